"""Budget: bytes of device and host memory that a run may use."""

from dataclasses import dataclass

from sloth_nb.catalog import GPU
from sloth_nb.memory.machine import device_for, devices, ram_gib

__all__ = ["Budget"]

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
        """A named card's whole memory, or ``gb`` of it; and half of the RAM (this machine's unless given)."""
        card = device_for(gpu)
        ram = ram_gib() if ram_gb is None else ram_gb
        return cls(card, card.memory if gb is None else int(gb * GIB), int(ram * GIB / 2))

    @classmethod
    def here(cls, index: int = 0) -> "Budget":
        """What is free now on this machine's card, with what this process already holds of it."""
        found = devices()
        host = int(ram_gib() * GIB / 2)
        if not found:
            card = device_for("cpu")
            return cls(card, card.memory, 0)
        return cls(found[index].gpu, found[index].free, host)
