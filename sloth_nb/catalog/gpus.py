"""Cards and what hosted notebooks lend: memory, what they can compute in, how fast they move bytes."""

import re
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import resources

from sloth_nb.errors import HardwareError

__all__ = ["GPU", "Offer", "akin", "cpu", "gpu", "gpus", "offer", "offers"]

GIB = 2**30
# What drivers and people add to a card's name without meaning another card.
SAME_CARD = frozenset(
    (
        *("nvidia", "tesla", "geforce", "gpu", "card"),
        *("sxm", "sxm2", "sxm3", "sxm4", "sxm5", "pcie", "hbm2", "hbm2e", "hbm3", "hbm3e"),
    )
)


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
    """A card by name, in any spelling (``t4``, ``NVIDIA A100-SXM4-80GB``), or an offer's only one (``Colab free``).

    A word or a size that the table's name lacks means another card (``RTX 3060 Ti``, ``A100 MIG 1g.5gb``).

    Raises:
        HardwareError: no such card; names the nearest.
    """
    if isinstance(name, GPU):
        return name
    sizes, rest = _size_and_words(name)
    for card in gpus():
        if "".join(rest + sizes) in _names(card) or _plain(name) in _names(card):
            return card
    for card in gpus():  # with the size that it is sold with, which its name in the table lacks
        if "".join(rest) in _names(card) and all(_sold_with(card, size) for size in sizes):
            return card
    for lent in offers():
        if _plain(lent.name) == _plain(name):
            return _only_card(lent)
    raise HardwareError(_unknown("card", name, [card.name for card in gpus()], akin(name)))


def akin(name: str) -> GPU | None:
    """The card of the table with most of the words of a name, whatever else it says: a Ti's plain sister."""
    said = set(_words(name))
    names = [(words, card) for card in gpus() for words in map(_words, (card.name, *card.aliases))]
    inside = [(len(words), card) for words, card in names if said.issuperset(words)]
    return max(inside, key=lambda found: found[0])[1] if inside else None


def offer(name: str) -> Offer:
    """A hosted notebook's machine by name (``Kaggle T4 x2``).

    Raises:
        HardwareError: no such offer; names the nearest.
    """
    for lent in offers():
        if _plain(lent.name) == _plain(name):
            return lent
    raise HardwareError(_unknown("offer", name, [lent.name for lent in offers()]))


def cpu(ram_gib: float) -> GPU:
    """A CPU with this much RAM, as a device that a run may use. Speeds are a small server's."""
    return GPU("CPU", ram_gib, capability=0, bandwidth=40, tflops_16=0.3, host_gbps=40)


def _only_card(lent: Offer) -> GPU:
    if lent.gpu is None:
        raise HardwareError(f"{lent.name} lends no card. Name a card, or say 'cpu' for this machine's.")
    if lent.count > 1:
        raise HardwareError(
            f"{lent.name} lends {lent.count} cards. Name one of them, {lent.gpu.name}, and their number."
        )
    return lent.gpu


def _plain(name: str) -> str:
    return "".join(ch for ch in str(name).lower() if ch.isalnum())


def _words(name: str) -> list[str]:
    """In lower case, a size as one word: ``80 GB`` and ``80GiB`` are ``80gb``."""
    return re.findall(r"[a-z0-9]+", re.sub(r"(?<![a-z0-9])(\d+) ?gi?b?\b", r"\1gb", str(name).lower()))


def _size_and_words(name: str) -> tuple[list[str], list[str]]:
    """The sizes in a card's name, and its other words but those that tell no card from another."""
    words = [word for word in _words(name) if word not in SAME_CARD]
    sizes = [word for word in words if re.fullmatch(r"\d+gb", word)]
    return sizes, [word for word in words if word not in sizes]


def _names(card: GPU) -> set[str]:
    return {_plain(name) for name in (card.name, *card.aliases)}


def _sold_with(card: GPU, size: str) -> bool:
    """Whether a card is sold as one of this size: a program sees up to a tenth less of it."""
    said = int(size.removesuffix("gb"))
    return 0.9 * said <= card.memory_gib <= said


def _unknown(what: str, name: str, names: list[str], alike: GPU | None = None) -> str:
    sizes, rest = _size_and_words(name)
    near = get_close_matches("".join(rest + sizes), [_plain(n) for n in names], n=3, cutoff=0.4)
    near += [_plain(alike.name)] if alike else []
    shown = [n for n in names if _plain(n) in near] or names
    return f"No {what} named {name!r}. {'Nearest' if near else 'Known'}: {', '.join(shown)}."
