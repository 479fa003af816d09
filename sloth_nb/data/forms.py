"""The shapes of data sets, one small function each: from a table of columns to a Schema, or None.

They are tried in ``ORDER``, the most telling first.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sloth_nb.data import columns as names
from sloth_nb.data.columns import Column, Table, plain, turns_of
from sloth_nb.data.conversation import PAIR_KEYS, ROLE_ALIASES, UNSURE_ROLES, content_key, role_key
from sloth_nb.data.schema import Schema

__all__ = ["ORDER", "hint"]

MOSTLY = 0.8  # the share of turns whose speaker must be known
CANONICAL = {
    ("instruction", "output"), ("instruction", "response"), ("question", "answer"), ("prompt", "completion"),
    ("prompt", "response"), ("input", "output"), ("query", "response"), ("question", "response"),
}  # fmt: skip


def tokenised(table: Table) -> Schema | None:
    if "input_ids" not in table:
        return None
    mapping = {part: part for part in ("input_ids", "labels", "seq_lengths") if part in table}
    return Schema("tokenised", mapping, 1.0, "it holds token ids already")


def conversation(table: Table) -> Schema | None:
    """A column of turns: role and content, from and value, a question and its answer, or plain strings."""
    usual = [column for name in names.CONVERSATION if (column := table.find((name,), "turns", "texts"))]
    rivals = [name for pair in names.RIVALS if all(name in table for name in pair) for name in pair]
    taken = {*names.TOOLS, *names.CHOSEN, *names.REJECTED, *rivals}
    others = [c for c in table.all("turns") if c not in usual and plain(c.name) not in taken]
    for column in [*usual, *others]:
        mapping = {"messages": column.name} | extras(table, system=names.SYSTEM, tools=names.TOOLS)
        if column.kind == "texts":
            if all(len(value) >= 2 for value in column.values):
                reason = "each row is a list of strings: user and assistant in turn"
                return Schema("sharegpt", mapping, 0.7, reason)
        elif pair := _pair_of_turns(column):
            return Schema("sharegpt", mapping, 0.9, f"every turn has {pair[0]!r} and {pair[1]!r}")
        elif found := _spoken(table, column, mapping, 1.0 if column in usual else 0.9):
            return found
    return None


def _spoken(table: Table, column: Column, mapping: dict[str, str], sure: float) -> Schema | None:
    speakers = speakers_of(column)
    known = {name: count for name, count in speakers.items() if name in ROLE_ALIASES}
    if not known or sum(known.values()) < MOSTLY * sum(speakers.values()):
        return None
    first = next(turn for value in column.values for turn in turns_of(value))
    role, content = role_key(first), content_key(first)
    reason = f"every turn has {role!r} and {content!r}; speakers: {', '.join(sorted(known))}"
    if unsure := sorted(set(known) & UNSURE_ROLES):
        sure = min(sure, 0.8)
        reason += f" (taken for user or assistant: {', '.join(unsure)})"
    if strangers := sorted(set(speakers) - set(known)):
        sure = min(sure, 0.7)
        reason += f"; not known: {', '.join(strangers)}"
    if not {ROLE_ALIASES[name] for name in known} & {"assistant", "tool_call"}:
        asked = {"prompt" if part == "messages" else part: name for part, name in mapping.items()}
        asked |= extras(table, answer=names.TRUTH)
        return Schema("prompt_only", asked, sure, reason + "; nobody answers")
    return Schema("messages" if (role, content) == ("role", "content") else "sharegpt", mapping, sure, reason)


def speakers_of(column: Column) -> Counter[str]:
    """How often each speaker of a conversation column speaks; nothing when its turns have no speakers."""
    turns = [turn for value in column.values for turn in turns_of(value)]
    key = role_key(turns[0]) if turns else None
    if key is None or content_key(turns[0]) is None:
        return Counter()
    return Counter(str(turn.get(key)).strip().lower() for turn in turns)


def _pair_of_turns(column: Column) -> tuple[str, str] | None:
    turns = [turn for value in column.values for turn in turns_of(value)]
    for user, assistant in PAIR_KEYS.items():
        if turns and all(isinstance(t.get(user), str) and isinstance(t.get(assistant), str) for t in turns):
            return user, assistant
    return None


def extras(table: Table, **parts: tuple[str, ...]) -> dict[str, str]:
    """Parts that a form may have besides, where their columns exist."""
    return {part: column.name for part, usual in parts.items() if (column := table.find(usual))}


def pair_of_numbers(table: Table) -> Schema | None:
    """As ``pair``, where a number asks or answers; not beside lists, which may say what it stands for (choices)."""
    found = None if table.all("texts", "turns", "list", "dict") else pair(table, "text", "number")
    return found and replace(found, confidence=0.7, reason=f"{found.reason}, its numbers as text")


def pair(table: Table, *kinds: str) -> Schema | None:
    """A column that asks and one that answers; a context, system prompt, thoughts or history besides."""
    kinds = kinds or ("text",)
    user = table.find(names.USER, *kinds)
    if user is None:
        return source_and_target(table) or summary(table)
    if (assistant := _answer_to(table, user, *kinds)) is None:
        return calls(table, user) or summary(table)
    mapping = {"user": user.name}
    if context := table.find(names.CONTEXT, *kinds, but=[user.name, assistant.name]):
        mapping["context"] = context.name
    mapping |= extras(table, system=names.SYSTEM, history=names.HISTORY)
    thought = table.find(names.REASONING, "text", but=[user.name, assistant.name])
    if thought:
        mapping["reasoning"] = thought.name
    mapping["assistant"] = assistant.name
    asked, said = plain(user.name), plain(assistant.name)
    kind = {"instruction": "alpaca"}.get(asked) or {"completion": "prompt_completion"}.get(
        said, "question_answer"
    )
    sure = 1.0 if (asked, said) in CANONICAL else 0.9 if assistant.kind == "text" else 0.7
    return Schema(kind, mapping, sure, f"{user.name!r} asks and {assistant.name!r} answers")


def _answer_to(table: Table, user: Column, *kinds: str) -> Column | None:
    worked = table.find(("solution", "generated_solution"), "text", but=[user.name])
    found = worked or table.find(names.ASSISTANT, *kinds, "texts", "dict", but=[user.name])
    if found and found.kind == "dict" and not all({"text", "value"} & set(value) for value in found.values):
        return None  # SQuAD's and TriviaQA's answers hold their text under one of these keys
    return found


def calls(table: Table, user: Column) -> Schema | None:
    """A question, and the tool calls that answer it (JSON or objects with a name and arguments)."""
    for column in table.all("turns"):
        made = [call for value in column.values for call in turns_of(value)]
        if column is user or plain(column.name) in names.TOOLS or not made:
            continue
        if all("name" in call and {"arguments", "parameters"} & set(call) for call in made):
            mapping = {"user": user.name, "calls": column.name}
            mapping |= extras(table, system=names.SYSTEM, tools=names.TOOLS)
            return Schema(
                "question_answer", mapping, 0.9, f"{column.name!r} calls tools to answer {user.name!r}"
            )
    return None


def source_and_target(table: Table) -> Schema | None:
    """Pairs named as in translation; elsewhere "source" says where a row comes from."""
    source, target = table.find(("source",), "text"), table.find(("target", "targets"), "text")
    if source is None or target is None:
        return None
    mapping = {"user": source.name} | extras(table, reasoning=names.REASONING) | {"assistant": target.name}
    return Schema("question_answer", mapping, 0.8, f"{target.name!r} is what {source.name!r} becomes")


def summary(table: Table) -> Schema | None:
    long, short = table.find(names.LONG, "text"), table.find(names.SHORT, "text")
    if long is None or short is None:
        return None
    mapping = {"user": long.name, "assistant": short.name}
    return Schema("question_answer", mapping, 0.8, f"{short.name!r} sums up {long.name!r}")


def conversational_pair(table: Table) -> Schema | None:
    """TRL's prompt and completion, each a list of turns."""
    prompt, completion = table.find(("prompt",), "turns"), table.find(("completion", "response"), "turns")
    if prompt is None or completion is None:
        return None
    mapping = {"prompt": prompt.name, "completion": completion.name} | extras(table, tools=names.TOOLS)
    if liked := table.find(names.LIKED, "flag"):
        reason = f"answers with {liked.name!r}, true or false"
        return Schema("kto", mapping | {"label": liked.name}, 1.0, reason)
    return Schema("prompt_completion", mapping, 1.0, "the prompt is turns, and so is what follows it")


def preference(table: Table) -> Schema | None:
    """Two answers of which one is preferred, with the prompt or with both beginning with it."""
    chosen = table.find(names.CHOSEN, "text", "turns", "dict")
    rejected = table.find(names.REJECTED, "text", "turns", "dict")
    asked = table.find(names.USER, "text", "turns") or table.find(names.CONVERSATION, "turns")
    if rejected and not chosen:
        chosen = table.find(names.ASSISTANT, rejected.kind, but=[rejected.name, asked.name if asked else ""])
    if chosen is None or rejected is None:
        return _rivals(table, asked)
    if chosen.kind != rejected.kind:
        return None
    prompt = {"prompt": asked.name} if asked and asked.name not in (chosen.name, rejected.name) else {}
    mapping = prompt | extras(table, system=names.SYSTEM) | {"chosen": chosen.name, "rejected": rejected.name}
    how = "with their prompt" if prompt else "the prompt is what both begin with"
    return Schema("preference", mapping, 1.0, f"{chosen.name!r} is preferred to {rejected.name!r}; {how}")


def _rivals(table: Table, asked: Column | None) -> Schema | None:
    for first, second in names.RIVALS:
        a, b = table.find((first,), "text", "turns"), table.find((second,), "text", "turns")
        winner = table.find(names.WINNER, "number", "text", "flag")
        if a and b and winner and (asked or a.kind == b.kind == "turns"):
            mapping = {"prompt": asked.name} if asked else {}
            mapping |= {"first": a.name, "second": b.name, "winner": winner.name}
            return Schema(
                "preference", mapping, 0.9, f"{winner.name!r} says which of two answers is preferred"
            )
    return None


def kto(table: Table) -> Schema | None:
    """Single answers, each liked or not."""
    liked = table.find(names.LIKED, "flag")
    if liked is None:
        return None
    reason = f"answers with {liked.name!r}, true or false"
    talk = conversation(table)
    if talk and "messages" in talk.mapping:
        return Schema("kto", talk.mapping | {"label": liked.name}, 1.0, reason)
    prompt = table.find(names.USER, "text", "turns")
    completion = prompt and table.find(names.ASSISTANT, "text", "turns", but=[prompt.name])
    if prompt is None or completion is None:
        return None
    mapping = {"prompt": prompt.name, "completion": completion.name, "label": liked.name}
    return Schema("kto", mapping, 1.0, reason)


def prompt_only(table: Table) -> Schema | None:
    """Prompts that a model answers itself, with something to check the answer by."""
    prompt = table.find(names.ASKING, "text", "turns")
    if prompt is None or table.all("image", "audio"):
        return None
    if truth := table.find(names.TRUTH, but=[prompt.name]):
        mapping = {"prompt": prompt.name, "answer": truth.name}
        return Schema("prompt_only", mapping, 0.9, f"prompts, with {truth.name!r} to check an answer by")
    others = [c for c in table.all("text") if c is not prompt and plain(c.name) not in names.METADATA]
    if others or plain(prompt.name) not in ("prompt", "prompts"):
        return None
    return Schema("prompt_only", {"prompt": prompt.name}, 0.9, "prompts without answers")


def text(table: Table) -> Schema | None:
    """Running text. Not where rows are single turns of a conversation, or texts with a class."""
    if table.find(names.SPEAKER) or table.find(names.CLASS_LABEL, "number", "flag", "list"):
        return None
    texts = [c for c in table.all("text") if plain(c.name) not in names.METADATA]
    for name in names.TEXT:
        column = table.find((name,), "text")
        if column is None:
            continue
        rest = [c.name for c in texts if c is not column]
        if rest and name != "text":
            return None
        unused = f"; not used: {', '.join(rest)}" if rest else ""
        reason = f"column {column.name!r} holds text{unused}"
        return Schema("text", {"text": column.name}, 0.7 if rest else 1.0, reason)
    if len(table.names) == 1 and texts:
        return Schema("text", {"text": texts[0].name}, 0.6, f"the only column, {texts[0].name!r}, holds text")
    return None


def vision(table: Table) -> Schema | None:
    return _media(table, "image", "images", names.IMAGE, names.CAPTION)


def audio(table: Table) -> Schema | None:
    return _media(table, "audio", "audio", names.AUDIO, names.SPOKEN)


def _media(
    table: Table, kind: str, part: str, usual: tuple[str, ...], written: tuple[str, ...]
) -> Schema | None:
    """Rows with a picture or a sound: a conversation or a question about it, or what it shows or says."""
    media = table.find(usual, kind, "text", "texts", "list", "turns") or next(iter(table.all(kind)), None)
    name = "vision" if kind == "image" else "audio"
    mapping = {part: media.name} if media else {}
    talk = conversation(table)
    if talk and "messages" in talk.mapping and (media or _has_parts(table, talk.mapping["messages"], kind)):
        where = f"conversations with {media.name!r}" if media else f"the conversations hold {kind} parts"
        return Schema(name, mapping | talk.mapping, 1.0, where)
    if media is None:
        return None
    if (asked := pair(table)) and media.name not in asked.mapping.values():
        return Schema(name, mapping | asked.mapping, 0.9, f"{asked.reason}, about {media.name!r}")
    told = table.find(written, "text", "texts", but=[media.name])
    if told is None or table.find(names.CLASS_LABEL, "number"):
        return None
    return Schema(
        name, mapping | {"assistant": told.name}, 0.9, f"{told.name!r} says what {media.name!r} holds"
    )


def _has_parts(table: Table, name: str, kind: str) -> bool:
    """Whether a conversation column's contents hold parts of this kind."""

    def is_part(part: Any) -> bool:
        return isinstance(part, dict) and str(part.get("type", "")).startswith(kind)

    contents = [
        turn.get("content")
        for c in table.all("turns")
        if c.name == name
        for v in c.values
        for turn in turns_of(v)
    ]
    return any(is_part(part) for content in contents if isinstance(content, list) for part in content)


def hint(table: Table) -> str:
    """What a data set of no known form looks like, when that can be told."""
    if table.find(names.SPEAKER, "text") and table.find(("content", "text", "value", "utterance"), "text"):
        return "Each row looks like one turn: put the turns of a conversation into one row's list."
    for column in table.all("turns"):
        if unknown := sorted(set(speakers_of(column)) - set(ROLE_ALIASES)):
            roles = ", ".join(f'{name!r}: "…"' for name in unknown[:4])
            return (
                f"In {column.name!r} the speakers {', '.join(map(repr, unknown))} aren't known: "
                f'say who is who, mapping={{"messages": "{column.name}", "roles": {{{roles}}}}}.'
            )
    if table.find(names.CLASS_LABEL, "number") and table.all("text"):
        return 'It looks like texts to classify: name what answers, mapping={"user": "…", "assistant": "…"}.'
    return ""


Form = Callable[[Table], Schema | None]
_ANSWERED: list[Form] = [conversational_pair, conversation, pair]
ORDER: dict[str | None, list[Form]] = {
    None: [tokenised, vision, audio, preference, kto, *_ANSWERED, prompt_only, text],
    "sft": [tokenised, vision, audio, *_ANSWERED, text, preference, kto, pair_of_numbers, prompt_only],
    "preference": [preference],
    "kto": [kto, conversational_pair],
    "rl": [prompt_only, conversation],
    "text": [text],
}
