"""Recipe: model × task × platform × machine, from which a notebook, a script and their settings are written."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sloth_nb.authoring import render
from sloth_nb.authoring.cells import Cell, as_notebook, as_text, read_cells, save
from sloth_nb.authoring.platforms import Machine, Platform, platform
from sloth_nb.authoring.possible import choose
from sloth_nb.authoring.settings import Settings, settle
from sloth_nb.authoring.tasks import Task
from sloth_nb.catalog import ModelInfo, known

__all__ = ["Recipe", "make_notebook"]

_DOWNLOAD = 40e6  # bytes a second that a hosted notebook fetches, at the least that is usual


@dataclass(frozen=True)
class Recipe:
    """What a notebook is made from. ``Recipe.of`` makes one from names, and refuses what can't be.

    Example:
        >>> Recipe.of("qwen3-14b", "sft", "colab").save("qwen3-14b.ipynb")
    """

    model: ModelInfo
    task: Task
    platform: Platform
    machine: Machine
    settings: Settings
    options: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        model: "str | os.PathLike[str] | ModelInfo",
        task: "str | Task" = "sft",
        platform_name: "str | Platform" = "colab",
        card: str | None = None,
        **options: Any,
    ) -> "Recipe":
        """The recipe of these names.

        Args:
            model: a catalogue name, a hub id, a folder, or an entry.
            task: one of ``tasks()``. platform_name: one of ``platforms()``.
            card: a machine of that platform ("T4", "A100", "P100", "cpu"); None is its usual one.
            **options: instead of what would be worked out: method, length, batch, accumulation, rank,
                learning_rate, steps, activations, data; and ``offline=True`` for a Kaggle notebook without internet.
        Raises:
            ModelError, NotebookError: an unknown name (with the nearest), or a pair that can't be.
            HardwareError: no such card there, or one too small (with what would do).
        """
        info, found = choose(model if isinstance(model, ModelInfo) else str(model), task)
        where = platform(platform_name)
        machine = where.machine(card)
        where.notebook_metadata(machine, offline=options.get("offline", False))  # refuses what it can't
        return cls(info, found, where, machine, settle(info, found, machine, **options), options)

    @property
    def name(self) -> str:
        """A file's name without its ending: ``qwen3-14b-sft``, with the machine where it isn't the usual one."""
        usual = self.platform.machine().name
        machine = "" if self.machine.name == usual else f"-{self.machine.name.lower().replace(' ', '-')}"
        return f"{self.model.name}-{self.task.name}{machine}"

    @property
    def _model_name(self) -> str:
        """What finds the model again: its catalogue name, or where it lies."""
        return self.model.name if known(self.model.name) is self.model else self.model.hub_id

    @property
    def seconds(self) -> float:
        """From its first cell to its last, roughly: installing, fetching the weights, training, looking around."""
        fetching = 0 if self.model.offline else self.settings.download_bytes / _DOWNLOAD
        return self.task.around + fetching + self.settings.training_seconds

    def cells(self) -> list[Cell]:
        """The notebook's cells."""
        return read_cells(render.notebook(self), where=f"the notebook of {self.task.name}")

    def notebook(self) -> dict[str, Any]:
        """The notebook, as nbformat's JSON data."""
        offline = self.options.get("offline", False)
        return as_notebook(self.cells(), self.platform.notebook_metadata(self.machine, offline=offline))

    def text(self) -> str:
        """The notebook's file."""
        return as_text(self.notebook())

    def outline(self) -> list[str]:
        """The notebook's headings, in order."""
        lines = (
            line for cell in self.cells() if cell.kind == "markdown" for line in cell.source.splitlines()
        )
        return [line.lstrip("#").strip() for line in lines if line.startswith("#")]

    def script(self) -> dict[str, str]:
        """The same run for several cards or a cluster: file name → text, of a script and accelerate's config."""
        return render.script(self)

    def code(self, path: str | None = None) -> str:
        """The call that makes this notebook."""
        said = [repr(self._model_name), repr(self.task.name), repr(self.platform.name)]
        if self.machine.name != self.platform.machine().name:
            said.append(f"card={self.machine.name!r}")
        said += [f"{name}={value!r}" for name, value in self.options.items()]
        if path:
            said.append(f"path={path!r}")
        return f"sloth_nb.make_notebook({', '.join(said)})"

    def command(self) -> str:
        """The same for a shell."""
        said = [self._model_name, f"--task {self.task.name}", f"--platform {self.platform.name}"]
        if self.machine.name != self.platform.machine().name:
            said.append(f'--card "{self.machine.name}"')
        for name, value in self.options.items():
            flag = f"--{name.replace('_', '-')}"
            said += [flag] if value is True else [] if value is False else [f"{flag} {value}"]
        return f"sloth-nb notebook {' '.join(said)}"

    def save(self, path: str | os.PathLike[str] | None = None, *, force: bool = False) -> Path:
        """Writes the notebook; without a path, here and under its own name.

        Raises:
            NotebookError: the file exists and ``force`` is not given, or it can't be written.
        """
        return save(self.text(), path or f"{self.name}-{self.platform.name}.ipynb", force=force)

    def save_script(self, folder: str | os.PathLike[str] | None = None, *, force: bool = False) -> list[Path]:
        """Writes the script and its config into a folder; without one, here, into one of its own name.

        Raises:
            NotebookError: a file exists and ``force`` is not given, or it can't be written.
        """
        target = Path(folder or self.name)
        return [save(text, target / name, force=force) for name, text in self.script().items()]


def make_notebook(
    model: "str | os.PathLike[str] | ModelInfo",
    task: str = "sft",
    platform: str = "colab",
    *,
    card: str | None = None,
    path: str | os.PathLike[str] | None = None,
    force: bool = False,
    **options: Any,
) -> Path:
    """Writes a fine-tuning notebook for a model, a task and a place to run it, and returns its path.

    Args:
        model: a catalogue name ("qwen3-14b"), a hub id, or a folder.
        task: what to do: "sft", "pretraining", "completion", "tools", "synthetic", "evaluate".
        platform: where: "colab", "kaggle", "jupyter", "classroom".
        card: a machine of that platform; None is its usual one.
        path: where the notebook goes; None is here, under its own name.
        force: write over a file that exists.
        **options: instead of what would be worked out for the card: method, length, batch, accumulation, rank,
            learning_rate, steps, activations, data; and ``offline=True`` for a Kaggle notebook without internet.
    Raises:
        ModelError, NotebookError, HardwareError: as ``Recipe.of`` and ``Recipe.save`` do.

    Example:
        >>> make_notebook("qwen3-14b", "sft", "kaggle", path="teach.ipynb")
    """
    return Recipe.of(model, task, platform, card, **options).save(path, force=force)
