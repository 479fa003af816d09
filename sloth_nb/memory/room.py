"""For a model that is loaded already: the plan that the room which is left on its card allows."""

from sloth_nb.catalog import GPU
from sloth_nb.memory.budget import Budget
from sloth_nb.memory.formulas import estimate_work
from sloth_nb.memory.plan import SAFETY, Plan, plan
from sloth_nb.memory.work import Work

__all__ = ["plan_for_room"]

# What is on the card before a step's first token. Workspaces of libraries may be or not.
STANDING = ("weights", "adapters", "context")


def plan_for_room(
    work: Work,
    *,
    room: int,
    host: int,
    gpu: GPU,
    optimiser_is_there: bool = False,
    split: bool = False,
    embeddings: bool = False,
) -> Plan:
    """The fastest plan for this work whose step fits ``room`` more bytes of the card.

    Pure arithmetic, some tens of milliseconds. The batch stays as it is, unless it may be ``split`` into micro-steps.

    Args:
        room: bytes of the card that are free or could be freed, while nothing of a step is held.
        host: bytes of RAM that offloading may take.
        embeddings: the input embedding, which is on the card, may move to the host.
        optimiser_is_there: its states are on the card already; else they come at the end of the first step.
    Raises:
        HardwareError: nothing fits; with the cheapest changes that would.
    """
    kinds = estimate_work(work, gpu).kinds
    there = (*STANDING, "optimiser") if optimiser_is_there else STANDING
    device = room + sum(kinds.get(kind, 0) for kind in there)
    # The safety margin is for what may still go wrong, and what stands already can't.
    device += int(SAFETY * (device - room))
    return plan(work, Budget(gpu, device, host), split=split, embeddings=embeddings)
