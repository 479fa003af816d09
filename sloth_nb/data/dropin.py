"""The field's own names for data work, so that published notebooks run with the import changed."""

from collections.abc import Mapping, Sequence
from typing import Any

from sloth_nb.data.collate import Collator, overwrites_labels
from sloth_nb.data.conversation import ROLE_ALIASES, normalise_messages
from sloth_nb.data.lint import lint_template
from sloth_nb.data.named import resolve
from sloth_nb.data.recognising import recognise
from sloth_nb.data.responses import IGNORED, ResponseMask
from sloth_nb.errors import DatasetError, TemplateError
from sloth_nb.notices import warn

__all__ = [
    "get_chat_template",
    "standardize_data_formats",
    "standardize_sharegpt",
    "train_on_responses_only",
]

_PLAIN_KEYS = {"role": "role", "content": "content", "user": "user", "assistant": "assistant"}


def get_chat_template(
    tokenizer: Any,
    chat_template: str | tuple[str, str] = "chatml",
    mapping: Mapping[str, str] = _PLAIN_KEYS,
    map_eos_token: bool = True,
    system_message: str | None = None,
    **ignored: Any,
) -> Any:
    """Gives a tokenizer a chat template: a named one, or the user's own Jinja.

    Args:
        tokenizer: changed in place, and returned.
        chat_template: a name (see ``template_names``), Jinja text, or a pair (Jinja text, end-of-turn token).
        mapping: what the data calls the two keys and the two speakers, such as
            ``{"role": "from", "content": "value", "user": "human", "assistant": "gpt"}``.
        map_eos_token: make the template's end-of-turn token the tokenizer's EOS, when its vocabulary has it.
        system_message: said before conversations that bring no system message of their own.
    Raises:
        TemplateError: no such name, or the template doesn't work. What only looks wrong is a warning.
    """
    from sloth_nb.data.template import ChatTemplate

    for name in ignored:
        warn(f"get_chat_template has no use for {name!r}: left out.")
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    end = None
    if isinstance(chat_template, (tuple, list)):
        chat_template, end = chat_template
    text = resolve(chat_template, inner)
    if system_message:
        text = _with_system(system_message) + text
    if (keys := {**_PLAIN_KEYS, **mapping}) != _PLAIN_KEYS:
        text = _with_keys(keys) + text
    inner.chat_template = text
    if tokenizer is not inner:
        tokenizer.chat_template = text
    findings = lint_template(inner)
    for finding in findings:
        if finding.level == "error":
            raise TemplateError(f"This chat template doesn't work: {finding.message}")
    if map_eos_token:
        end = end or ChatTemplate(inner).end_of_turn.strip()
        if end and end != inner.eos_token and end in inner.get_vocab():
            inner.eos_token = end
            findings = lint_template(inner)
    for finding in findings:
        if finding.level == "warning":
            warn(f"About this chat template: {finding.message}")
    return tokenizer


def _with_system(message: str) -> str:
    return (
        "{%- if messages[0].role != 'system' -%}"
        "{%- set messages = [{'role': 'system', 'content': "
        + repr(message)
        + "}] + messages -%}{%- endif -%}"
    )


def _with_keys(keys: Mapping[str, str]) -> str:
    """Jinja that renames a data set's own keys and speakers before the template sees them.

    Messages with the usual names, which prepare() and generate() make of any, pass as they are.
    """
    names = repr({keys["user"]: "user", keys["assistant"]: "assistant"})
    own = {usual: f"m[{keys[usual]!r}]" for usual in ("role", "content")}
    value = {usual: f"({key} if {key} is defined else m.{usual})" for usual, key in own.items()}
    others = [f"{key} is defined" for usual, key in own.items() if keys[usual] != usual]
    return (
        "{%- set plain = namespace(messages=[]) -%}{%- set names = " + names + " -%}"
        "{%- for m in messages -%}{%- set role = " + value["role"] + " -%}"
        "{%- if " + " or ".join([*others, "names.get(role, role) != role"]) + " -%}"
        "{%- set m = {'role': names.get(role, role), 'content': " + value["content"] + "} -%}{%- endif -%}"
        "{%- set plain.messages = plain.messages + [m] -%}{%- endfor -%}"
        "{%- set messages = plain.messages -%}"
    )


def standardize_data_formats(
    dataset: Any,
    tokenizer: Any = None,
    aliases_for_system: Sequence[str] = ("system",),
    aliases_for_user: Sequence[str] = ("user", "human", "input"),
    aliases_for_assistant: Sequence[str] = ("gpt", "assistant", "output"),
    batch_size: int = 1000,
    num_proc: int | None = None,
) -> Any:
    """Conversations of any usual shape, rewritten as ``role`` / ``content`` in the column they came from.

    A data set without conversations (alpaca columns, say) is returned as it is.

    Raises:
        DatasetError: a turn can't be read, with its row.
    """
    try:
        schema = recognise(dataset)
    except DatasetError:
        return dataset
    column = schema.mapping.get("messages")
    if column is None:
        return dataset
    aliases = dict(ROLE_ALIASES)
    for role, names in (
        ("system", aliases_for_system),
        ("user", aliases_for_user),
        ("assistant", aliases_for_assistant),
    ):
        aliases |= {name.lower(): role for name in names} | {name: role for name in names}

    def rewrite(batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        rows = []
        for turns, index in zip(batch[column], indices, strict=True):
            try:
                rows.append(normalise_messages(turns, aliases))
            except DatasetError as error:
                raise DatasetError(f"Row {index + 1:,}: {error}.") from error
        return {column: rows}

    return dataset.map(
        rewrite,
        batched=True,
        with_indices=True,
        batch_size=batch_size,
        num_proc=num_proc,
        remove_columns=[column],
    )


standardize_sharegpt = standardize_data_formats


def train_on_responses_only(
    trainer: Any,
    instruction_part: str | None = None,
    response_part: str | None = None,
    force_match: bool = True,
    tokenizer: Any = None,
    return_function: bool = False,
    num_proc: int | None = None,
    last_response_only: bool = False,
) -> Any:
    """Masks a trainer's data sets so that only the assistant's turns are learnt.

    With neither part given, both come from the tokenizer's own chat template.

    Args:
        trainer: one whose ``train_dataset`` (and ``eval_dataset``) holds ``input_ids``. Changed in place,
            returned.
        instruction_part, response_part: what stands before a user's and an assistant's turn.
        force_match: False ignores white space around the two parts.
        return_function: return the mapping function (batch → labels) instead, touching no trainer.
        last_response_only: only the last response of each row.
    Raises:
        DatasetError: the rows aren't tokenised, or the response part is in none of them.
    """
    tokenizer = tokenizer or getattr(trainer, "processing_class", None) or getattr(trainer, "tokenizer", None)
    if tokenizer is None:
        raise TemplateError("The trainer has no tokenizer: pass tokenizer=….")
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    mask = ResponseMask(inner, instruction_part, response_part, last_response_only, force_match)

    def relabel(batch: dict[str, list]) -> dict[str, list]:
        return _relabel(batch, mask, inner.bos_token_id)

    if return_function:
        return relabel
    if getattr(trainer, "train_dataset", None) is not None:
        trainer.train_dataset = _masked(trainer.train_dataset, relabel, mask, num_proc, "train_dataset")
    evaluation = getattr(trainer, "eval_dataset", None)
    if isinstance(evaluation, dict):
        trainer.eval_dataset = {k: _masked(v, relabel, mask, num_proc, k) for k, v in evaluation.items()}
    elif evaluation is not None:
        trainer.eval_dataset = _masked(evaluation, relabel, mask, num_proc, "eval_dataset")
    _honour_labels(trainer, inner)
    return trainer


def _relabel(batch: dict[str, list], mask: ResponseMask, bos: int | None) -> dict[str, list]:
    """Labels for a batch of rows, each split into its packed sequences; a doubled BOS loses its twin."""
    lengths = batch.get("seq_lengths") or [[len(ids)] for ids in batch["input_ids"]]
    sequences = []
    for ids, counts in zip(batch["input_ids"], lengths, strict=True):
        at, parts = 0, []
        for count in counts:
            part = list(ids[at : at + count])
            at += count
            parts.append(part[1:] if bos is not None and part[:2] == [bos, bos] else part)
        sequences.append(parts)
    flat = iter(mask.labels([part for parts in sequences for part in parts]))
    out: dict[str, list] = {"input_ids": [], "labels": []}
    if "seq_lengths" in batch:
        out["seq_lengths"] = [[len(part) for part in parts] for parts in sequences]
    if "attention_mask" in batch:
        out["attention_mask"] = [[1] * sum(map(len, parts)) for parts in sequences]
    for parts in sequences:
        labels = [next(flat) for _ in parts]
        out["input_ids"].append([i for part in parts for i in part])
        out["labels"].append([i for row in labels for i in ([IGNORED, *row[1:]] if len(parts) > 1 else row)])
    return out


def _masked(dataset: Any, relabel: Any, mask: ResponseMask, num_proc: int | None, name: str) -> Any:
    import datasets

    if "input_ids" not in (dataset.column_names or ["input_ids"]):
        raise DatasetError(
            f"The trainer's {name} is not tokenised (columns: {', '.join(dataset.column_names)})."
        )
    if isinstance(dataset, datasets.IterableDataset):
        return dataset.map(relabel, batched=True)
    marked = dataset.map(relabel, batched=True, num_proc=num_proc, desc="Masking all but the responses")
    kept = marked.filter(
        lambda labels: any(i != IGNORED for i in labels), input_columns="labels", num_proc=num_proc
    )
    if len(kept) == 0:
        start = mask.tokenizer.decode(dataset[0]["input_ids"][:60])
        raise DatasetError(
            f"Not one of the {len(dataset):,} rows of {name} holds an answer after {mask.response_part!r}.\n"
            f"  The first row begins {start!r}.\n"
            "  Leave both parts out: they come from the tokenizer's template."
        )
    if len(kept) < len(dataset):
        warn(
            f"{len(dataset) - len(kept):,} of {len(dataset):,} rows of {name} hold nothing after "
            f"{mask.response_part!r} (cut off, or no answer): left out."
        )
    return kept


def _honour_labels(trainer: Any, tokenizer: Any) -> None:
    """A collator that would overwrite the labels is replaced by ours, which keeps them."""
    given = getattr(trainer, "data_collator", None)
    if overwrites_labels(given):
        warn(
            f"The trainer's {type(given).__name__} would overwrite the labels and learn every token; sloth_nb's own "
            "Collator takes its place, which keeps them."
        )
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        trainer.data_collator = Collator(pad)
