"""Standard columns: preference, KTO and prompt-only data in the shapes that TRL's trainers take.

- preference: ``prompt``, ``chosen``, ``rejected``, each a list of messages
- KTO: ``prompt``, ``completion`` (messages) and ``label`` (bool)
- prompt-only: ``prompt`` (messages), and ``answer`` where there is something to check by
"""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from sloth_nb.data.conversation import ROLE_ALIASES, normalise_messages
from sloth_nb.data.recognising import recognise
from sloth_nb.data.schema import Schema
from sloth_nb.errors import DatasetError

__all__ = ["standardise"]

Messages = list[dict[str, Any]]


def standardise(dataset: Any, schema: Schema | None = None) -> Any:
    """A preference, KTO or prompt-only data set with the columns that TRL's trainers take, and no others.

    Args:
        dataset: a ``datasets.Dataset``.
        schema: what it is; None recognises it.
    Raises:
        DatasetError: it is of another kind, or a row can't be read (with its number).
    """
    schema = schema or recognise(dataset)
    if schema.kind not in _READERS:
        raise DatasetError(f"This is {schema}; it has no preferences, likes or prompts to standardise.")
    read = _READERS[schema.kind]

    def rewrite(row: dict[str, Any], number: int) -> dict[str, Any]:
        try:
            # Under names of their own: a new column that had an old one's name would be cast to its type.
            return {f"new {name}": value for name, value in read(row, schema).items()}
        except DatasetError as error:
            raise DatasetError(f"Row {number + 1:,}: {error}.") from error

    made = dataset.map(rewrite, with_indices=True, remove_columns=dataset.column_names)
    return made.rename_columns({name: name.removeprefix("new ") for name in made.column_names})


def _turns(value: Any, role: str, schema: Schema) -> Messages:
    """A cell as messages: turns as they are, a text as one message of ``role``."""
    if isinstance(value, str) and value.lstrip()[:2] != "[{":
        return _marked_turns(value) or [{"role": role, "content": value}]
    if isinstance(value, Mapping):
        value = [value]
    return normalise_messages(value, {**ROLE_ALIASES, **schema.roles})


_SPEECH = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")


def _marked_turns(text: str) -> Messages:
    """Turns of a text that marks them as Anthropic's data does; [] when it doesn't."""
    pieces = _SPEECH.split(text)
    if len(pieces) < 3 or pieces[0].strip():
        return []
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[who], "content": said.strip()}
        for who, said in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def _system(row: Mapping[str, Any], schema: Schema) -> Messages:
    said = row.get(schema.mapping.get("system", ""))
    return [{"role": "system", "content": said}] if said else []


def _preference(row: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    columns = schema.mapping
    if "winner" in columns:
        first_wins = _first_wins(row[columns["winner"]])
        chosen, rejected = row[columns["first"]], row[columns["second"]]
        if not first_wins:
            chosen, rejected = rejected, chosen
    else:
        chosen, rejected = row[columns["chosen"]], row[columns["rejected"]]
    good, bad = _turns(chosen, "assistant", schema), _turns(rejected, "assistant", schema)
    shared = 0
    while shared < min(len(good), len(bad)) - 1 and good[shared] == bad[shared]:
        shared += 1
    prompt = good[:shared]
    if not prompt and "prompt" in columns:
        prompt = _turns(row[columns["prompt"]], "user", schema)
    if not prompt:
        raise DatasetError(
            "the two answers share no beginning that could be their prompt, and there is no prompt column"
        )
    return {"prompt": _system(row, schema) + prompt, "chosen": good[shared:], "rejected": bad[shared:]}


def _first_wins(winner: Any) -> bool:
    """Whether the first of two answers is the better, by any usual way to say so."""
    if isinstance(winner, bool) or winner in (0, 1):
        return int(winner) == 0
    word = str(winner).strip().lower()
    if word[-1:] in ("a", "1") or word in ("first", "left"):
        return True
    if word[-1:] in ("b", "2") or word in ("second", "right"):
        return False
    raise DatasetError(f"{winner!r} doesn't say which of the two answers is better")


def _kto(row: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    columns = schema.mapping
    if "messages" in columns:
        turns = _turns(row[columns["messages"]], "user", schema)
        cut = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=-1) + 1
        prompt, completion = turns[:cut], turns[cut:]
    else:
        prompt = _turns(row[columns["prompt"]], "user", schema)
        completion = _turns(row[columns["completion"]], "assistant", schema)
    if not completion:
        raise DatasetError("nobody answers")
    return {"prompt": prompt, "completion": completion, "label": bool(row[columns["label"]])}


def _prompt_only(row: Mapping[str, Any], schema: Schema) -> dict[str, Any]:
    columns = schema.mapping
    made: dict[str, Any] = {"prompt": _system(row, schema) + _turns(row[columns["prompt"]], "user", schema)}
    if "answer" in columns:
        answer = row[columns["answer"]]
        if isinstance(answer, Mapping):
            answer = answer.get("ground_truth", answer)
        made["answer"] = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
    return made


_READERS: dict[str, Callable[[Mapping[str, Any], Schema], dict[str, Any]]] = {
    "preference": _preference,
    "kto": _kto,
    "prompt_only": _prompt_only,
}
