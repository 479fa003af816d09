"""What a notebook can be about. One file a task, ``NAME.nb``, beside this module: that is all it takes to add one.

A file begins with its facts (TOML between two lines of ``+++``) and goes on with what it has of its own: blocks
of cells that take the place of the same blocks of ``parts/notebook.nb``, in Jinja.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from sloth_nb.errors import NotebookError, did_you_mean

__all__ = ["COMING", "Task", "task", "tasks"]

# Tasks of the catalogue whose trainers aren't in this version: what they are, and what kind of model they are for.
COMING = {
    "dpo": ("preference pairs", "text"),
    "orpo": ("preference pairs without a reference", "text"),
    "kto": ("liked and disliked answers", "text"),
    "grpo": ("rewards on generated answers", "text"),
    "ppo": ("rewards and a value model", "text"),
    "reward": ("a reward model", "text"),
    "vision": ("pictures with text", "text+image"),
    "tts": ("text to speech", "text→speech"),
    "stt": ("speech to text", "speech→text"),
    "gguf": ("export for llama.cpp", "text"),
}
_FENCE = "+++"


@dataclass(frozen=True)
class Task:
    """One thing to do with a model.

    Attributes:
        name: as a user asks for it.
        title: in a list. headline: of a notebook, with ``{model}`` in it.
        learns: what the model gets from it, in a sentence.
        data: what the shipped example is.
        order: where it stands in a list.
        steps, sequences: steps of a run, and sequences a step.
        length: tokens of the longest sequence that is asked for; fewer where the card has no room.
        usual: tokens of a row of the shipped data, for the time that a run takes.
        around: seconds that everything but fetching and training takes, installing among it.
        rank: of the adapters, where it asks for more than the model's usual one.
        packed: rows are packed into sequences of ``length``, so each step sees that many tokens.
        templates: names of chat templates that can do it; empty: any, or none.
        kinds: of model ("instruct", "reasoning", "base") that can do it; empty: any.
        example: the shipped data set; empty where the file makes its own. script: whether it is one run, that a
            script can do.
        needs_template: it trains on conversations.
        text: the cells, in Jinja.
    """

    name: str
    title: str
    headline: str
    learns: str
    data: str
    order: int
    text: str
    steps: int = 60
    sequences: int = 8
    length: int = 2048
    usual: int = 64
    around: int = 240
    rank: int = 0
    packed: bool = False
    templates: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    needs_template: bool = True
    example: str = ""
    script: bool = True


def tasks(folder: "resources.abc.Traversable | None" = None) -> tuple[Task, ...]:
    """Every task, the easiest first."""
    return tuple(sorted(_table(folder).values(), key=lambda found: found.order))


def task(name: "str | Task") -> Task:
    """A task by name, one of those that can be done in this version.

    Raises:
        NotebookError: no such task, with the nearest; or one whose trainer is still to come.
    """
    if isinstance(name, Task):
        return name
    found = _table().get(str(name).strip().lower())
    if found is not None:
        return found
    names = ", ".join(one.name for one in tasks())
    if (coming := COMING.get(str(name).strip().lower())) is not None:
        raise NotebookError(
            f"{name} ({coming[0]}) can't be done in this version, so no notebook is written for it. "
            f"What can: {names}."
        )
    hint = did_you_mean(str(name).lower(), [*_table(), *COMING], 0.5)
    raise NotebookError(f"No task named {name!r}.{hint} Known: {names}.")


def read_task(name: str, text: str) -> Task:
    """A task from its file's text.

    Raises:
        NotebookError: the facts are missing, or one of them is unknown or not TOML.
    """
    parts = text.split(f"{_FENCE}\n", 2)
    if len(parts) != 3 or parts[0].strip():
        raise NotebookError(f"The task {name!r} must begin with its facts between two lines of {_FENCE}.")
    try:
        facts: Mapping = tomllib.loads(parts[1])
        lists = {key: tuple(value) for key, value in facts.items() if isinstance(value, list)}
        return Task(name=name, text=parts[2], **{**facts, **lists})
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise NotebookError(f"The facts of the task {name!r} are wrong: {error}.") from error


@lru_cache(maxsize=4)
def _table(folder: "resources.abc.Traversable | None" = None) -> dict[str, Task]:
    files = (folder or resources.files(__package__)).iterdir()
    names = {file.name.removesuffix(".nb"): file for file in files if file.name.endswith(".nb")}
    return {name: read_task(name, file.read_text("utf-8")) for name, file in names.items()}
