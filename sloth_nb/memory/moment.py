"""Moment: one point of a step at which the memory could be fullest."""

from dataclasses import dataclass, field

__all__ = ["Moment", "added"]


@dataclass
class Moment:
    """Bytes by kind, beyond those that stay for the whole run."""

    name: str
    kinds: dict[str, int] = field(default_factory=dict)


def added(*parts: dict[str, int]) -> dict[str, int]:
    """Bytes by kind of several parts together."""
    total: dict[str, int] = {}
    for part in parts:
        for kind, size in part.items():
            total[kind] = total.get(kind, 0) + size
    return total
