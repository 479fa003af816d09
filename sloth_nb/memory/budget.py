"""Budget: bytes of device and host memory that a run may use."""

import math
from dataclasses import dataclass

from sloth_nb.catalog import GPU
from sloth_nb.errors import HardwareError
from sloth_nb.memory.machine import device_for, devices, ram_gib

__all__ = ["Budget", "usable_ram"]

GIB = 2**30


@dataclass(frozen=True)
class Budget:
    """What a plan may spend.

    Attributes:
        gpu: the card, for what it can do.
        device: bytes of it that the process may take, driver and all.
        host: bytes of RAM that pinned buffers may take.
    """

    gpu: GPU
    device: int
    host: int

    @classmethod
    def of(cls, gpu: "str | GPU", *, gb: float | None = None, ram_gb: float | None = None) -> "Budget":
        """A named card's whole memory, or ``gb`` of it; and half of the RAM (this machine's unless given).

        Raises:
            HardwareError: no such card, or an amount that can't be.
        """
        card = device_for(gpu)
        device = card.memory if gb is None else int(_checked("the card's memory", gb) * GIB)
        return cls(card, device, usable_ram(ram_gb))

    @classmethod
    def here(cls, index: int = 0) -> "Budget":
        """What is free now on this machine's card, with what this process already holds of it."""
        found = devices()
        if not found:
            card = device_for("cpu")
            return cls(card, card.memory, 0)
        return cls(found[index].gpu, found[index].free, usable_ram())


def usable_ram(ram_gb: float | None = None) -> int:
    """Bytes that pinned buffers may take of so much RAM, or of this machine's: half of it.

    Raises:
        HardwareError: an amount that can't be.
    """
    return int((ram_gib() if ram_gb is None else _checked("the RAM", ram_gb)) * GIB / 2)


def _checked(what: str, gb: float) -> float:
    if isinstance(gb, bool) or not isinstance(gb, (int, float)) or not (math.isfinite(gb) and gb >= 0):
        raise HardwareError(f"{gb!r} GB was given as {what}; it must be a number of at least 0.")
    return gb
