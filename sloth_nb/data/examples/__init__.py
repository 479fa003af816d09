"""Small data sets shipped with the package, written for it: for the quickstart, classrooms and tests."""

import re
from importlib.resources import as_file, files
from typing import Any

from sloth_nb.errors import DatasetError

__all__ = ["arithmetic_reward", "example", "example_names"]

_SPLITS = ("train", "held_out")
_ABOUT = {
    "quickstart": "a sloth with a name, a manner and nine facts that no other model knows (messages)",
    "instruction": "small tasks on words, each with one right answer (alpaca columns)",
    "multi_turn": "conversations that ask for what was said before (messages, some with a system prompt)",
    "tools": "requests that need one of three tools, or none (messages with calls, tools)",
    "preference": "a kind answer and a hasty one to the same question (prompt, chosen, rejected)",
    "kto": "single answers, liked or not (prompt, completion, label)",
    "arithmetic": "sums whose answers can be checked, for RL (prompt, answer); see arithmetic_reward",
    "story": "running text, for continued pretraining (text)",
}


def example_names() -> dict[str, str]:
    """The names that ``example`` knows, and what each data set is."""
    return dict(_ABOUT)


def example(name: str = "quickstart", split: str | None = None) -> Any:
    """A shipped data set: (train, held_out) as ``datasets.Dataset``s, or one of them by ``split``.

    ``quickstart`` teaches a model to be Moss, a sloth with a manner ("Slowly now. … No hurry.") and nine facts.
    Its held-out rows ask for the same facts in other words and for the manner on new questions; their ``check``
    column lists what a right answer contains. The others: see ``example_names()``.

    Raises:
        DatasetError: no data set has that name, or no split.
    """
    from sloth_nb.data.reading import load_data

    if name not in _ABOUT:
        raise DatasetError(f"There is no example data set {name!r}. Known: {', '.join(_ABOUT)}.")
    if split is not None and split not in _SPLITS:
        raise DatasetError(f"{name} has the splits train and held_out, not {split!r}.")
    read = []
    for part in [split] if split else _SPLITS:
        with as_file(files(__package__) / f"{name}.{part}.jsonl") as path:
            read.append(load_data(path))
    return read[0] if split else tuple(read)


def arithmetic_reward(completions: list[Any], answer: list[str], **_: Any) -> list[float]:
    """The verifier of the ``arithmetic`` data set, in the form that GRPOTrainer takes.

    1.0 when the last number of the completion is the right one, and 0.5 for a completion that is a number and
    nothing else: a form that a small model learns first.

    Args:
        completions: texts, or conversations that end with the model's turn.
        answer: the right numbers.
    """
    return [_score(completion, right) for completion, right in zip(completions, answer, strict=True)]


def _score(completion: Any, right: str) -> float:
    text = completion if isinstance(completion, str) else completion[-1]["content"]
    numbers = re.findall(r"-?\d+(?:\.\d+)?", text)
    bare = bool(re.fullmatch(r"\s*-?\d+\s*\.?\s*", text))
    hit = bool(numbers) and float(numbers[-1]) == float(right)
    return 1.0 * hit + 0.5 * bare
