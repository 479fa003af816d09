"""Cards and what hosted notebooks lend: memory, what they can compute in, how fast they move bytes."""

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources

from sloth_nb.errors import HardwareError

__all__ = ["GPU", "Offer", "cpu", "gpu", "gpus", "offer", "offers"]

GIB = 2**30


@dataclass(frozen=True)
class GPU:
    """A card, or the CPU seen as one.

    Attributes:
        memory_gib: what a program may see of it.
        capability: CUDA compute capability; 0 for a CPU.
        bandwidth: of its memory, GB/s.
        tflops_16: dense 16-bit matrix products, TFLOP/s.
        host_gbps: pinned copies to the host, GB/s each way.
    """

    name: str
    memory_gib: float
    capability: float
    bandwidth: float
    tflops_16: float
    host_gbps: float
    aliases: tuple[str, ...] = ()

    @property
    def memory(self) -> int:
        return int(self.memory_gib * GIB)

    @property
    def bf16(self) -> bool:
        """Whether it computes in bf16 for real. (On a T4 torch says yes and emulates.)"""
        return self.capability == 0 or self.capability >= 8.0

    @property
    def is_cpu(self) -> bool:
        return self.capability == 0


@dataclass(frozen=True)
class Offer:
    """What a host lends: one or more cards and the machine's RAM."""

    name: str
    gpu: GPU | None
    count: int
    ram_gib: float


@lru_cache(maxsize=1)
def _tables() -> tuple[tuple[GPU, ...], tuple[Offer, ...]]:
    data = tomllib.loads((resources.files("sloth_nb.catalog") / "gpus.toml").read_text("utf-8"))
    cards = tuple(GPU(**{**row, "aliases": tuple(row.get("aliases", ()))}) for row in data["gpus"])
    by_name = {card.name: card for card in cards}
    lent = tuple(
        Offer(**{**row, "gpu": by_name[row["gpu"]] if "gpu" in row else None}) for row in data["offers"]
    )
    return cards, lent


def gpus() -> tuple[GPU, ...]:
    """Every card of the table."""
    return _tables()[0]


def offers() -> tuple[Offer, ...]:
    """What hosted notebooks lend."""
    return _tables()[1]


def gpu(name: "str | GPU") -> GPU:
    """A card by name, in any spelling (``t4``, ``rtx4090``, ``NVIDIA A100-SXM4-80GB``).

    Raises:
        HardwareError: no such card; names the nearest.
    """
    if isinstance(name, GPU):
        return name
    wanted = _plain(name)
    for card in gpus():
        if wanted in (_plain(card.name), *map(_plain, card.aliases)):
            return card
    # The driver's long names hold the short one's words, and the memory: take the card with most words in it.
    said = set(_words(name))
    inside = [
        (len(words), card)
        for card in gpus()
        for words in map(_words, (card.name, *card.aliases))
        if said.issuperset(words)
    ]
    if inside:
        return max(inside, key=lambda found: found[0])[1]
    raise HardwareError(_unknown("card", name, [card.name for card in gpus()], _plain))


def offer(name: str) -> Offer:
    """A hosted notebook's machine by name (``Kaggle T4 x2``).

    Raises:
        HardwareError: no such offer; names the nearest.
    """
    for lent in offers():
        if _plain(lent.name) == _plain(name):
            return lent
    raise HardwareError(_unknown("offer", name, [lent.name for lent in offers()], _plain))


def cpu(ram_gib: float) -> GPU:
    """A CPU with this much RAM, as a device that a run may use. Speeds are a small server's."""
    return GPU("CPU", ram_gib, capability=0, bandwidth=40, tflops_16=0.3, host_gbps=40)


def _plain(name: str) -> str:
    return "".join(ch for ch in str(name).lower() if ch.isalnum())


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", str(name).lower())


def _unknown(what: str, name: str, names: list[str], plain: Callable[[str], str]) -> str:
    near = get_close_matches(plain(name), [plain(n) for n in names], n=3, cutoff=0.4)
    shown = [n for n in names if plain(n) in near] or names
    return f"No {what} named {name!r}. {'Nearest' if near else 'Known'}: {', '.join(shown)}."
