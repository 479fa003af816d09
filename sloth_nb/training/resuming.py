"""Going on from a checkpoint: which one belongs to the run, and whether this trainer can go on from it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sloth_nb.errors import TrainingError
from sloth_nb.models.sources import ADAPTER_FILE
from sloth_nb.notices import warn
from sloth_nb.training.checkpoints import STATE_FILE, checkpoints, is_whole, names_of
from sloth_nb.training.config import SFTConfig
from sloth_nb.training.events import read_events

__all__ = ["check_resumable", "last_checkpoint", "tell_of_older_ones"]

_SHAPES = ("peft_type", "r", "rank_pattern", "target_modules", "modules_to_save", "use_dora")


def last_checkpoint(asked: str | os.PathLike[str] | bool, output_dir: str) -> Path:
    """The checkpoint to go on from. Says so when it may be another run's.

    Args:
        asked: a checkpoint's folder, or True for the newest whole one of the last run in ``output_dir``.

    Raises:
        TrainingError: there is none.
    """
    if asked is not True:
        if is_whole(Path(asked)):
            return Path(asked)
        raise TrainingError(
            f"{asked} is no checkpoint to go on from: it has no readable {STATE_FILE}. Checkpoints in "
            f"{output_dir}: {names_of(output_dir)}."
        )
    there = checkpoints(output_dir)
    if not there:
        raise TrainingError(
            f"There is no checkpoint in {output_dir} to go on from. Start with trainer.train(), or give a "
            "checkpoint's folder: trainer.train(resume_from_checkpoint='…/checkpoint-100')."
        )
    newest = max(there, key=lambda path: (path / STATE_FILE).stat().st_mtime_ns)
    recorded = _recorded(output_dir)
    if recorded is None:
        if newest != there[-1]:
            warn(
                f"{output_dir} has no record of which run wrote its checkpoints: going on from {newest.name}, the "
                f"newest, although {there[-1].name} has more steps."
            )
        return newest
    own = next((path for path in recorded if is_whole(path)), None)
    if own is None:
        warn(
            f"The last run in {output_dir} left no checkpoint: going on from {newest.name}, which an earlier run "
            "wrote. trainer.train() starts from the beginning."
        )
    return own or newest


def _recorded(output_dir: str) -> list[Path] | None:
    """Where the last run in that folder wrote checkpoints, the newest first; None without a run's record.

    A run that went on from a checkpoint is one with the run that wrote it.
    """
    try:
        events = list(read_events(output_dir))
    except (OSError, TrainingError):
        return None
    if not any(event.kind == "started" for event in events):
        return None
    found: list[Path] = []
    for event in reversed(events):
        if event.kind == "checkpoint" and "path" in event.data:
            # By its name: the folder may have been moved since, as from Colab to a drive.
            found.append(Path(output_dir) / Path(event.data["path"]).name)
        elif event.kind == "started":
            resumed_from = event.data.get("resumed_from")
            if resumed_from is None:
                break
            found.append(Path(resumed_from))
            if found[-1].parent.name == Path(output_dir).name:
                found.append(Path(output_dir) / found[-1].name)
    return found


def tell_of_older_ones(output_dir: str, save_total_limit: int | None) -> None:
    """Warns that a run which starts from the beginning finds an earlier one's checkpoints in its folder."""
    older = checkpoints(output_dir)
    if not older:
        return
    limited = f" save_total_limit={save_total_limit} counts them too." if save_total_limit else ""
    warn(
        f"{output_dir} holds checkpoints of an earlier run (the last is {older[-1].name}); this run starts from the "
        f"beginning and writes its own among them.{limited} To keep them apart, give it another output_dir."
    )


def check_resumable(path: Path, args: SFTConfig, model: Any) -> None:
    """Looks whether a run with these arguments and this model can go on from a checkpoint.

    Raises:
        TrainingError: it has no step left to go, or its adapter isn't shaped like the model's.
    """
    state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
    step, epoch = state.get("global_step") or 0, state.get("epoch") or 0.0
    option, there, end = (
        ("max_steps", step, args.max_steps)
        if args.max_steps > 0
        else ("num_train_epochs", epoch, args.num_train_epochs)
    )
    if there >= end:
        raise TrainingError(
            f"This run is finished: {path.name} is at step {step:,}, and {option} is {end:g}. Raise {option} to train "
            "on from it, or start from the beginning with trainer.train()."
        )
    differing = list(_unlike(path, model))
    if differing:
        raise TrainingError(
            f"{path.name} can't be gone on from with this model: {'; '.join(differing)}. Prepare the model as it was "
            "then, or start from the beginning with trainer.train()."
        )


def _unlike(path: Path, model: Any) -> Iterator[str]:
    """What sets the checkpoint's adapter apart from the model's, each in a few words."""
    configs = getattr(model, "peft_config", None)
    file = path / ADAPTER_FILE
    if not configs or not file.is_file():
        if file.is_file():
            yield "it holds an adapter, and the model has none"
        elif configs and any(path.glob("model*.safetensors")):
            yield "it holds a whole model, and this one has an adapter"
        return
    then = json.loads(file.read_text(encoding="utf-8"))
    now = next(iter(configs.values())).to_dict()
    for name in _SHAPES:
        a, b = _plain(then.get(name)), _plain(now.get(name))
        patterns = name == "target_modules" and not (isinstance(a, list) and isinstance(b, list))
        if name in then and a != b and not patterns:
            yield f"{name} is {a} there and {b} here"


def _plain(value: Any) -> Any:
    """A value as JSON would hold it, with an order for what has none; empty is the same as absent."""
    if isinstance(value, list | set | tuple):
        return sorted(value) or None
    return value or None
