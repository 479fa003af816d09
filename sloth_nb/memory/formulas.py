"""The formulas: an Estimate of a Work in a fraction of a millisecond, from the model's shape alone.

A step has moments (the forward and backward of the top and bottom layers, the loss, the optimiser's step,
generation); each is a sum of named tensors, and the fullest is the answer.
"""

from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sloth_nb.catalog import GPU
from sloth_nb.memory.caching_allocator import SMALL
from sloth_nb.memory.estimate import Estimate
from sloth_nb.memory.generation import generation
from sloth_nb.memory.layers import LayerCost, layer_cost
from sloth_nb.memory.libraries import MOVING, context_bytes, fragmentation, library_bytes
from sloth_nb.memory.loss import loss_cost
from sloth_nb.memory.moment import Moment, added
from sloth_nb.memory.notes import notes_on
from sloth_nb.memory.plain import plain_moments
from sloth_nb.memory.policy import Policy
from sloth_nb.memory.unused import Kind, reserved_bytes
from sloth_nb.memory.weights import Standing, standing
from sloth_nb.memory.work import Work

__all__ = ["estimate_work"]


def estimate_work(work: Work, gpu: GPU) -> Estimate:
    """What this work will take on this card. Says nothing of whether it fits."""
    base = standing(work)
    steady = {
        "weights": base.weights,
        "adapters": base.adapters,
        "optimiser": base.optimiser,
        "libraries": library_bytes(gpu, work.captured(gpu)),
    }
    runs: list[_Run] = []
    if work.engine == "hf":
        moments, host = plain_moments(work, gpu), 0
    else:
        runs = _runs(work, gpu)
        moments, host = _engine_moments(work, gpu, runs), sum(run.count * run.cost.host for run in runs)
    _outliving_gradients(work, gpu, base.gradients, moments)
    moments.append(Moment("optimiser step", _optimiser_step(work, gpu, base)))
    moments += generation(work)
    fullest = max(moments, key=lambda moment: sum(moment.kinds.values()))

    kinds = added(steady, fullest.kinds)
    kinds["fragmentation"] = _unused(work, runs, steady, kinds) if runs else fragmentation(kinds)
    kinds["context"] = context_bytes(gpu)
    return Estimate(
        work=work,
        gpu=gpu,
        kinds={kind: size for kind, size in kinds.items() if size},
        moment=fullest.name,
        host=base.host + host,
        trainable=base.trainable,
        notes=notes_on(work),
    )


# Where the fullest moment is not one that the walk over the large tensors sees (a backward's end, with gradients in
# the places of other tensors): so much of what comes and goes within a layer stays unused at least.
LEAST = 0.1


@dataclass(frozen=True)
class _Run:
    """Equal layers one above the other: their cost, how many, and the gradients that each leaves behind.

    ``small`` are those of the gradients that are no larger than a MB.
    """

    cost: LayerCost
    count: int
    gradients: int
    small: int


def _engine_moments(work: Work, gpu: GPU, runs: list[_Run]) -> list[Moment]:
    """The moments of our engine's step."""
    held = sum(run.count * run.cost.held for run in runs)
    shape = work.model.shape
    hidden = 2 * work.tokens * shape.hidden
    loss = loss_cost(work)
    # cos and sin of every position.
    turns = 4 * (work.tokens if work.packed else work.length) * shape.blocks[-1].head_dim
    moments = [
        Moment("loss", {"activations": held, "loss": loss.peak, "workspace": hidden + turns}),
    ]
    # The embeddings are the lowest layer's input, and held by their caller as long as the forward runs.
    embeddings = 0 if "input" in work.policies(gpu)[0].device else hidden
    below, done = held, loss.gradient
    # The gradient of the output arrives and is copied once, to be written to on the way down. The normed states are
    # the model's output, from which logits can still be made.
    around = 3 * hidden + turns + 2 * work.tokens * max(run.cost.room for run in runs)
    for run in reversed(runs):
        # Between equal layers memory moves in a straight line: only the ends of a run can be fullest.
        for down in {0, run.count - 1}:
            under, made = below - down * run.cost.held, done + down * run.gradients
            others = under - run.cost.held
            going = {"activations": others + hidden + embeddings, "workspace": turns}
            moments.append(Moment("forward", added(run.cost.forward, going)))
            coming = {"activations": others, "workspace": around, "gradients": made}
            moments.append(Moment("backward", added(run.cost.backward, coming)))
        below -= run.count * run.cost.held
        done += run.count * run.gradients
    if not work.lora:  # the embedding's gradient is dense; a tied head's waits for it
        embedding = 2 * shape.embedding_parameters
        moments.append(Moment("backward", {"gradients": done + embedding, "workspace": around - hidden}))
    return moments


def _unused(work: Work, runs: list[_Run], steady: dict[str, int], kinds: dict[str, int]) -> int:
    """Pieces of the allocator's segments that nothing fits into."""
    joined: list[list[Any]] = []
    for run in runs:
        if joined and joined[-1][0].policy == run.cost.policy and joined[-1][0].block is run.cost.block:
            joined[-1][0], joined[-1][1] = run.cost, joined[-1][1] + run.count
        else:
            joined.append([run.cost, run.count])
    hidden = 2 * work.tokens * work.model.shape.hidden
    loss = loss_cost(work).parts
    layers = [Kind(cost.passes, cost.moved, count) for cost, count in joined]
    large = reserved_bytes(layers, hidden, 2 * work.tokens * max(run.cost.room for run in runs), loss)
    # Small gradients have segments of their own: the rest's are of no use to them.
    small = sum(run.count * run.small for run in runs)
    walked = sum(steady.values()) + large + small - sum(kinds.values())
    return max(walked, int(LEAST * sum(kinds.get(kind, 0) for kind in MOVING if kind != "activations")))


def _runs(work: Work, gpu: GPU) -> list[_Run]:
    """The layers, bottom to top, equal neighbours together."""
    shape, found = work.model.shape, []
    wrapped = shape.adapted(work.targets) if work.lora else []
    policies = work.policies(gpu)
    tile = work.tile(policies, gpu)
    made: dict[tuple[int, Policy, Policy | None, bool], LayerCost] = {}
    place, below, wide = 0, None, False
    for number, block in enumerate(shape.blocks):
        gradients, small = 2 * block.parameters, 0
        if work.lora:
            sides = [
                4 * work.rank * n for owner, x in wrapped if owner is block for n in (x.inputs, x.outputs)
            ]
            gradients, small = sum(sides), sum(size for size in sides if size <= SMALL)
        for policy, same in groupby(policies[place : place + block.count]):
            count = len(list(same))
            # The lowest of a run has another layer below it than the rest, which matters for what is on its way.
            for part, under in ((1, below), (count - 1, policy)):
                if part:
                    beneath = under is not None and "gate_up" in under.host
                    wide = wide or beneath
                    # By the time that another such layer begins, a wide one has left, unless it is just beneath.
                    there = beneath or (wide and "gate_up" not in policy.host)
                    key = (number, policy, under if under and under.host else None, there)
                    if key not in made:
                        made[key] = layer_cost(
                            block, work, policy, gpu.capability, tile=tile, below=key[2], wide_below=there
                        )
                    found.append(_Run(made[key], part, gradients, small))
            below = policy
        place += block.count
    return found


def _outliving_gradients(work: Work, gpu: GPU, all_of_them: int, moments: list[Moment]) -> None:
    """Gradients that are there during a micro-step already, beside those that it makes.

    Accumulated ones outlive each micro-step. A captured step writes into buffers that stay, out of which
    accumulated ones are moved first.
    """
    accumulates = work.accumulation > 1
    for moment in moments:
        made = moment.kinds.get("gradients", 0)
        if work.captured(gpu):
            moment.kinds["gradients"] = all_of_them * (2 if accumulates else 1)
        elif accumulates and work.lora and work.engine == "sloth":  # of all layers, handed over at the end
            moment.kinds["gradients"] = all_of_them + made
        elif accumulates:  # handed over parameter by parameter, or layer by layer
            moment.kinds["gradients"] = max(all_of_them, made)


def _optimiser_step(work: Work, gpu: GPU, base: Standing) -> dict[str, int]:
    twice = work.captured(gpu) and work.accumulation > 1
    kinds = {"gradients": base.gradients * (2 if twice else 1)}
    if work.optimiser == "adamw_torch":  # the square roots of every second moment, all at once
        kinds["workspace"] = base.gradients
    return kinds
