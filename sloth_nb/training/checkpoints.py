"""Checkpoints that are whole or not there: written aside, then renamed."""

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, sort_checkpoints

from sloth_nb.errors import TrainingError

__all__ = [
    "WholeCheckpoints",
    "checkpoints",
    "delete_oldest",
    "is_whole",
    "names_of",
    "refuses_to_save",
    "written_whole",
]

STATE_FILE = "trainer_state.json"  # written last, so its presence says that the rest is there
_DISK = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}
_STREAM = ("file write failed", "PytorchStreamWriter", "failed writing file")


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """The whole checkpoints in that folder by step; one that was cut off while saving is left out."""
    found = []
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if step.isdecimal() and is_whole(path):
            found.append((int(step), path))
    return [path for _, path in sorted(found)]


def is_whole(path: Path) -> bool:
    """Whether that is a checkpoint's folder with all that belongs to it."""
    try:
        json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def names_of(output_dir: str | os.PathLike[str]) -> str:
    """The whole checkpoints in that folder, for a sentence."""
    return ", ".join(path.name for path in checkpoints(output_dir)) or "none"


@contextlib.contextmanager
def written_whole(folder: Path, name: str) -> Iterator[Path]:
    """A folder to write ``name`` in, which moves into ``folder`` when all went well; else nothing changes."""
    aside = folder / f".saving-{name}"
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir(parents=True)
        yield aside
        target = folder / name
        if target.exists():
            target.rename(aside / "replaced")
        (aside / name).rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def refuses_to_save(folder: Path, step: int) -> Iterator[None]:
    """Turn a disk's trouble while saving into one clear sentence; other errors pass.

    Raises:
        TrainingError: the disk is full, or the folder can't be written.
    """
    try:
        yield
    except Exception as error:
        if not _is_the_disk_s(error):
            raise
        kept = names_of(folder)
        free = shutil.disk_usage(folder if folder.exists() else Path(folder.anchor or ".")).free
        raise TrainingError(
            f"The checkpoint of step {step} could not be written to {folder} ({_reason(error)}; "
            f"{free / 1e6:,.0f} MB free).\n  Checkpoints that are whole: {kept}. The model in memory is "
            f"still trained to step {step}: free some space, then trainer.save_model('elsewhere') keeps it, "
            "or trainer.train(resume_from_checkpoint=True) goes on from the newest checkpoint."
        ) from error


def _is_the_disk_s(error: BaseException) -> bool:
    # safetensors and torch.save wrap the system's error in their own, with only its text left.
    return isinstance(error, OSError) or any(word in str(error) for word in ("os error", *_STREAM))


def _reason(error: BaseException) -> str:
    text = str(error)
    if getattr(error, "errno", None) in _DISK or any(f"os error {number}" in text for number in _DISK):
        return "the disk is full"
    if any(word in text for word in _STREAM):
        return "writing broke off; the disk may be full"
    return getattr(error, "strerror", None) or text.splitlines()[0]


def delete_oldest(folder: Path, limit: int | None, newest: str, best: str | None) -> None:
    """Deletes the oldest checkpoints beyond ``limit``, but never the one just written, nor the best.

    transformers' own rotation goes by steps where a file system's times tell nothing; it would keep an earlier run's
    checkpoint for its many steps, and delete the one just written.
    """
    if not limit or limit < 0:
        return
    oldest_first = [Path(path) for path in sort_checkpoints(str(folder), use_mtime=True)]
    kept = {folder / newest} | ({Path(best)} if best else set())
    spare = [path for path in oldest_first if path not in kept]
    too_many = len(oldest_first) - max(limit, len(kept))
    for path in spare[: max(too_many, 0)]:
        shutil.rmtree(path, ignore_errors=True)


class WholeCheckpoints(Trainer):
    """A base for trainers: a checkpoint is whole or not there, and older ones stay until it is."""

    _aside: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._aside) if self._aside is not None else super()._get_output_dir(trial)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint that is whole or not there; older ones stay as they were until it is."""
        folder, step = Path(self._get_output_dir(trial)), self.state.global_step
        with refuses_to_save(folder, step):
            if self.args.world_size > 1 or self.args.push_to_hub:  # others use the same folder meanwhile
                super()._save_checkpoint(model, trial)
                return
            name = f"{PREFIX_CHECKPOINT_DIR}-{step}"
            with written_whole(folder, name) as self._aside:
                try:
                    super()._save_checkpoint(model, trial)
                    self._name_best(folder, name)
                finally:
                    self._aside = None
            delete_oldest(folder, self.args.save_total_limit, name, self.state.best_model_checkpoint)

    def _name_best(self, folder: Path, name: str) -> None:
        """If this checkpoint is the best so far, its state shall name its final place."""
        if self.state.best_model_checkpoint == str(self._aside / name):
            self.state.best_model_checkpoint = str(folder / name)
            self.state.save_to_json(str(self._aside / name / "trainer_state.json"))
