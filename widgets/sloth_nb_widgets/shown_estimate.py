"""``sloth_nb.estimate``: the memory model's answer, which a notebook shows as a bar and tables. Loads no widgets."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any

from sloth_nb import memory
from sloth_nb.catalog import GPU, ModelInfo
from sloth_nb.memory import Estimate

from .estimate_view import estimate_bundle

__all__ = ["ShownEstimate", "estimate", "shown"]


@dataclass(frozen=True)
class ShownEstimate(Estimate):
    """An ``Estimate`` that shows itself."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        return estimate_bundle(self)


def shown(answer: Estimate) -> ShownEstimate:
    """The same answer, for a notebook."""
    return ShownEstimate(**{field.name: getattr(answer, field.name) for field in fields(answer)})


def estimate(
    model: "str | PathLike[str] | Mapping[str, Any] | ModelInfo",
    *,
    gpu: "str | GPU | None" = None,
    **options: Any,
) -> ShownEstimate:
    return shown(memory.estimate(model, gpu=gpu, **options))


estimate.__doc__ = memory.estimate.__doc__
