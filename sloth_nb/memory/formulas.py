"""The formulas: an Estimate of a Work in a fraction of a millisecond, from the model's shape alone.

A step has moments (the forward and backward of the top and bottom layers, the loss, the optimiser's step,
generation); each is a sum of named tensors, and the fullest is the answer.
"""

from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

from sloth_nb.catalog import GPU, ModelInfo
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
from sloth_nb.memory.unused import Around, Kind, Walk, walk
from sloth_nb.memory.weights import Standing, standing
from sloth_nb.memory.work import Work

__all__ = ["estimate_within", "estimate_work", "host_bytes", "standing_total"]


# The latest answers: a search for the longest context, say, asks the same ones at each move of the batch's slider. Of
# work that was only asked whether it fits, and doesn't, the bytes of its tensors.
_ANSWERS: "dict[tuple[Any, ...], tuple[ModelInfo, Estimate | int]]" = {}
_MOST_ANSWERS = 2048
_OPTIONS = attrgetter(*(name for name in Work.__dataclass_fields__ if name != "model"))


def estimate_work(work: Work, gpu: GPU) -> Estimate:
    """What this work will take on this card. Says nothing of whether it fits. Answers are remembered."""
    answer = _answered(work, gpu, None)
    assert isinstance(answer, Estimate)
    return answer


def estimate_within(work: Work, gpu: GPU, budget: int) -> Estimate | None:
    """The estimate, where its total is at most ``budget`` bytes: where tensors alone are more, at half the cost."""
    answer = _answered(work, gpu, budget)
    return answer if isinstance(answer, Estimate) and answer.total <= budget else None


def _answered(work: Work, gpu: GPU, budget: int | None) -> Estimate | int:
    """The estimate, or, when that is more than the budget already, the bytes of its tensors."""
    key = (id(work.model), gpu, *_OPTIONS(work))
    model, known = _ANSWERS.get(key, (None, 0))
    if model is work.model and (isinstance(known, Estimate) or (budget is not None and known > budget)):
        return known
    if len(_ANSWERS) >= _MOST_ANSWERS:
        _ANSWERS.clear()
    full = _fullest(work, gpu)
    kinds = full.kinds | {"context": context_bytes(gpu)}
    tensors = sum(kinds.values())
    answer = tensors if budget is not None and tensors > budget else _estimated(work, gpu, full, kinds)
    _ANSWERS[key] = work.model, answer
    return answer


def _estimated(work: Work, gpu: GPU, full: "_Fullest", kinds: dict[str, int]) -> Estimate:
    kinds = kinds | {"fragmentation": _unused(work, gpu, full)}
    return Estimate(
        work=work,
        gpu=gpu,
        kinds={kind: size for kind, size in kinds.items() if size},
        moment=full.moment,
        host=full.host,
        trainable=full.base.trainable,
        notes=notes_on(work),
    )


def host_bytes(work: Work, gpu: GPU) -> int:
    """What this work takes of the machine's RAM; an estimate's ``host`` without the rest of it."""
    return standing(work).host + _moved([] if work.engine == "hf" else _runs(work, gpu))


def standing_total(work: Work, gpu: GPU) -> int:
    """What this work takes at least, whatever its step."""
    base = standing(work)
    return base.weights + base.adapters + base.optimiser + library_bytes(gpu) + context_bytes(gpu)


def _moving(kinds: dict[str, int]) -> int:
    return sum(kinds.get(kind, 0) for kind in MOVING)


@dataclass(frozen=True)
class _Fullest:
    """Bytes by kind at the fullest moment, of tensors alone; ``steady`` of them are there all the time."""

    kinds: dict[str, int]
    moment: str
    steady: int
    host: int
    base: Standing
    runs: "list[_Run]"


def _fullest(work: Work, gpu: GPU) -> _Fullest:
    base = standing(work)
    steady = {
        "weights": base.weights,
        "adapters": base.adapters,
        "optimiser": base.optimiser,
        "libraries": library_bytes(gpu, work.captured(gpu)),
    }
    runs = [] if work.engine == "hf" else _runs(work, gpu)
    moments = _engine_moments(work, gpu, runs) if runs else plain_moments(work, gpu)
    _outliving_gradients(work, gpu, base.gradients, moments)
    moments.append(Moment("optimiser step", _optimiser_step(work, gpu, base)))
    moments += generation(work)
    fullest = max(moments, key=lambda moment: sum(moment.kinds.values()))
    host = base.host + _moved(runs)
    return _Fullest(added(steady, fullest.kinds), fullest.name, sum(steady.values()), host, base, runs)


def _moved(runs: "list[_Run]") -> int:
    """Bytes of all layers in pinned host memory, between their forward and their backward."""
    return sum(run.count * run.cost.host for run in runs)


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
    embeddings = 0 if "input" in runs[0].cost.policy.device else hidden
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


def _unused(work: Work, gpu: GPU, full: _Fullest) -> int:
    """Pieces of the allocator's segments that nothing fits into."""
    if not full.runs or gpu.is_cpu:
        return fragmentation(full.kinds)
    # Small gradients have segments of their own: the rest's are of no use to them.
    small = sum(run.count * run.small for run in full.runs)
    walked = full.steady + _large_reserved(work, gpu, full.runs) + small - sum(full.kinds.values())
    return max(walked, int(LEAST * (_moving(full.kinds) - full.kinds.get("activations", 0))))


def _large_reserved(work: Work, gpu: GPU, runs: list[_Run]) -> int:
    """What large tensors make the allocator reserve: walked through at the next rounder numbers of tokens on both
    sides, of three binary digits, and between them in a straight line. Walks are remembered.
    """
    joined = _joined(runs)
    counts = [count for _, count in joined]
    step = 1 << max(0, work.tokens.bit_length() - 3)
    if any(block.positions for block in work.model.shape.blocks):
        step = 1
    low = work.tokens // step * step
    layers = tuple((id(cost.block), cost.policy, count) for cost, count in joined)
    found = []
    for tokens in (low,) if low == work.tokens else (low, low + step):
        key = (id(work.model), layers, work.method, work.rank, work.targets, work.packed)
        key += (work.mlp_tile, work.loss_chunk, gpu.capability, tokens)
        known = _WALKS.get(key)
        if known is None or known[0] is not work.model:
            if len(_WALKS) >= 4096:
                _WALKS.clear()
            known = _WALKS[key] = work.model, _walked(work, gpu, tokens, joined)
        answer = known[1]
        more = zip(counts, answer.counts, answer.each, strict=True)
        found.append(answer.reserved + sum(int((all_ - some) * each) for all_, some, each in more))
    return found[0] + (found[-1] - found[0]) * (work.tokens - low) // step


_WALKS: "dict[tuple[Any, ...], tuple[ModelInfo, Walk]]" = {}


def _walked(work: Work, gpu: GPU, tokens: int, joined: list[tuple[LayerCost, int]]) -> Walk:
    """The walk of this work's layers over another number of tokens."""
    if tokens != work.tokens:
        work = work.but(task="sft", batch=1, length=tokens, policy=work.policies(gpu))
        joined = _joined(_runs(work, gpu))
    layers = [Kind(cost.passes, cost.moved, cost.held, cost.input) for cost, _ in joined]
    shape, loss = work.model.shape, loss_cost(work)
    room = 2 * tokens * max(cost.room for cost, _ in joined)
    embedding = 0 if work.lora else 2 * shape.embedding_parameters
    around = Around(2 * tokens * shape.hidden, room, loss.parts, loss.gradient, embedding)
    return walk(layers, [count for _, count in joined], around)


def _joined(runs: list[_Run]) -> list[tuple[LayerCost, int]]:
    """Runs whose layers differ only in what is below the lowest of them, as one."""
    joined: list[tuple[LayerCost, int]] = []
    for run in runs:
        cost = joined[-1][0] if joined else None
        if cost is not None and cost.policy == run.cost.policy and cost.block is run.cost.block:
            joined[-1] = run.cost, joined[-1][1] + run.count
        else:
            joined.append((run.cost, run.count))
    return joined


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
        for _, group in groupby(policies[place : place + block.count], id):
            same = list(group)
            policy, count = same[0], len(same)
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
    accumulates, captured = work.accumulation > 1, work.captured(gpu)
    if not (accumulates or captured):
        return
    for moment in moments:
        made = moment.kinds.get("gradients", 0)
        if captured:
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
