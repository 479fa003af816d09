"""Which device a model goes to, when the machine has none, one or several accelerators."""

import os
from typing import Any

import torch

from sloth_nb.errors import HardwareError
from sloth_nb.notices import warn

__all__ = ["best_device", "choose_device_map", "input_device", "main_device"]

_NO_DEVICES = ("disk", "meta")  # where accelerate puts what no device has room for

# accelerate's placements, which differ only in how they fill several GPUs.
_PLACEMENTS = ("sequential", "auto", "balanced", "balanced_low_0")


def best_device() -> torch.device:
    """The device of this process: its own GPU under a launcher, else the first GPU, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", _local_rank() or 0)
    if torch.backends.mps.is_available():
        return torch.device("mps")
    if hasattr(torch, "xpu") and torch.xpu.is_available():
        return torch.device("xpu", _local_rank() or 0)
    return torch.device("cpu")


def choose_device_map(requested: Any) -> dict[str, Any] | str:
    """What ``from_pretrained`` is told about placement.

    ``"sequential"``, the default, means one device: with several GPUs in sight and no launcher the first is
    used, and a warning names the way to use all of them. ``"auto"`` and ``"balanced"`` split the layers over
    the GPUs as accelerate does. A device, or a dict of placements, is taken as it is.

    Raises:
        HardwareError: a device that this machine doesn't have.
    """
    if isinstance(requested, dict):
        for place in requested.values():
            if place not in _NO_DEVICES:
                _existing_device(place, requested)
        return requested
    if requested is None or requested == "sequential":
        device = best_device()
        if device.type == "cuda" and torch.cuda.device_count() > 1 and not _launched():
            warn(
                f"{torch.cuda.device_count()} GPUs are visible; this process uses {device}. To train on all "
                "of them from a notebook, put loading and training in one function and start it with "
                f"accelerate.notebook_launcher(function, num_processes={torch.cuda.device_count()})."
            )
        return {"": device}
    if isinstance(requested, str) and requested in _PLACEMENTS:
        # Without a GPU there is nothing to split over, and accelerate would count the CPU's memory instead.
        return requested if torch.cuda.is_available() and not _launched() else {"": best_device()}
    return {"": _existing_device(requested, requested)}


def main_device(device_map: dict[str, Any] | str) -> torch.device:
    """The device that computes, from which the dtype is chosen."""
    if isinstance(device_map, str):
        return best_device()
    places = [torch.device(place) for place in device_map.values() if place != "disk"]
    return next((place for place in places if place.type not in ("cpu", "meta")), torch.device("cpu"))


def input_device(model: Any) -> torch.device:
    """Where token ids go: beside the embeddings or, when these are in host memory, where the layers begin."""
    weight = model.get_input_embeddings().weight
    return weight.device if isinstance(weight, torch.nn.Parameter) else model.device


def _existing_device(place: Any, requested: Any) -> torch.device:
    """The device of one placement among those ``requested``."""
    if isinstance(place, int) and best_device().type == "cpu":
        raise HardwareError(
            f"device_map={requested!r}, but this machine has no GPU. Leave device_map out to use what is there."
        )
    try:
        device = torch.device(best_device().type, place) if isinstance(place, int) else torch.device(place)
    except (RuntimeError, TypeError) as error:
        raise HardwareError(
            f"device_map={requested!r} is neither a device nor a placement. Known: a device such as "
            f"'cuda:0' or 'cpu', a dict of them, or {', '.join(map(repr, _PLACEMENTS))}."
        ) from error
    counts = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    count = counts.get(device.type)
    if count is not None and (device.index or 0) >= count:
        raise HardwareError(
            f"device_map={requested!r}, but this machine has {count or 'no'} {device.type} "
            f"device{'s' * (count > 1)}. Leave device_map out to use what is there."
        )
    return device


def _local_rank() -> int | None:
    rank = os.environ.get("LOCAL_RANK")
    return int(rank) if rank is not None else None


def _launched() -> bool:
    """Whether torchrun, accelerate or its notebook_launcher started this process as one of several."""
    return _local_rank() is not None
