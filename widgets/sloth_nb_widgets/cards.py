"""The cards that a panel can be asked about: one of the table, this machine's own, or its CPU."""

from typing import Any

import traitlets

from sloth_nb import catalog
from sloth_nb.catalog import GPU
from sloth_nb.memory import device_for

__all__ = ["THIS_MACHINE", "CardName", "card_names", "card_of"]

THIS_MACHINE, CPU = "this machine", "cpu"


class CardName(traitlets.Unicode):
    """A card's name in any spelling that the catalogue knows (``a100``, ``rtx4090``), held as the table writes it.

    Raises:
        HardwareError: no such card; names the nearest.
    """

    def validate(self, obj: Any, value: Any) -> str:
        name = super().validate(obj, value)
        plain = name.strip().lower()
        return plain if plain in (THIS_MACHINE, CPU) else catalog.gpu(name).name


def card_names() -> list[str]:
    """What a control offers."""
    return [THIS_MACHINE, CPU, *(card.name for card in catalog.gpus())]


def card_of(name: str) -> GPU:
    """The card that a ``CardName`` means."""
    return device_for(None if name == THIS_MACHINE else name)
