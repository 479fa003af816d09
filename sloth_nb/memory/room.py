"""For a model that is loaded already: which policies the room that is left on its card allows."""

from collections.abc import Mapping
from typing import Any

from sloth_nb.catalog import GPU, from_config
from sloth_nb.memory.budget import Budget
from sloth_nb.memory.formulas import estimate_work
from sloth_nb.memory.plan import SAFETY, fitted_policies
from sloth_nb.memory.policy import NAMED, Policy
from sloth_nb.memory.work import Work

__all__ = ["policies_for_room"]

# What is on the card before a step's first token. The optimiser's states come at the end of the first one.
STANDING = ("weights", "adapters", "libraries", "context")


def policies_for_room(
    config: Mapping[str, Any],
    *,
    room: int,
    host: int,
    gpu: GPU,
    optimiser_is_there: bool = False,
    **options: Any,
) -> tuple[Policy, ...]:
    """One policy a layer, bottom to top: the fastest mix whose step fits ``room`` more bytes of the card.

    Pure arithmetic, a few milliseconds: an engine may ask it before each new shape of batch. When not even
    "offload" fits, that is the answer all the same: nothing leaner is known.

    Args:
        config: the model's config, parsed.
        room: bytes of the card that are free or could be freed, while nothing of a step is held.
        host: bytes of RAM that offloading may take.
        optimiser_is_there: its states are on the card already.
        **options: of ``Work``: method, rank, targets, batch, length, packed, optimiser, accumulation, …
    Raises:
        ModelError, TrainingError: as ``estimate`` does.
    """
    work = Work.of(from_config(config), **options)
    kinds = estimate_work(work, gpu).kinds
    there = (*STANDING, "optimiser") if optimiser_is_there else STANDING
    device = room + sum(kinds.get(kind, 0) for kind in there)
    # The safety margin is for what may still go wrong, and what stands already can't.
    device += int(SAFETY * (device - room))
    fitted = fitted_policies(work, Budget(gpu, device, host))
    if fitted is None:
        return (NAMED["offload" if host else "lean"],) * work.model.shape.layers
    return fitted.policies(gpu)
