"""The planner: for a budget, the fastest way that fits. Pure arithmetic; the engine obeys what it says.

Between two policies memory and time both move in a straight line with the number of layers, so the best mix
uses at most two neighbours on the lower hull of (bytes, seconds); a bisection finds how many layers each.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from sloth_nb.errors import HardwareError
from sloth_nb.memory.advice import changes_to_fit, smallest_card, within_ram
from sloth_nb.memory.budget import Budget
from sloth_nb.memory.estimate import GB, Estimate
from sloth_nb.memory.formulas import estimate_within, estimate_work, host_bytes
from sloth_nb.memory.layers import layer_cost
from sloth_nb.memory.libraries import MOVING as WITHIN_A_STEP
from sloth_nb.memory.policy import NAMED, NAMES, Policy
from sloth_nb.memory.speed import layer_time, step_seconds
from sloth_nb.memory.work import Work

__all__ = ["Plan", "fitted_policies", "plan"]

# The formulas may be a few percent low, and the allocator needs some air.
SAFETY = 0.05
# A plan that leaves more of its budget than this unspent is looked at in smaller steps.
SPENT = 0.93
MOVING = tuple(name for name, policy in NAMED.items() if policy.host)
TILES = ("auto", 2048)
CHUNKS = (256 << 20, 64 << 20)


@dataclass(frozen=True)
class Plan:
    """What a budget buys: the work with everything decided, and what it will take.

    Attributes:
        work: with ``policy`` (one a layer), ``batch`` (the micro-batch), ``accumulation``, ``loss_chunk``,
            ``mlp_tile`` and ``embedding_offload`` filled in.
        seconds: of one optimiser step, roughly; good for ranking plans, not for promises.
    """

    work: Work
    budget: Budget
    estimate: Estimate
    seconds: float = field(compare=False)

    @property
    def policies(self) -> tuple[Policy, ...]:
        """What each layer keeps on the device and moves to the host, bottom to top."""
        return self.work.policies(self.budget.gpu)

    def summary(self) -> str:
        """The choices in one line: ``12 × keep, 20 × recompute; 2 × 2,048 tokens at a time …``."""
        names = self.work.policy
        names = (names,) * len(self.policies) if isinstance(names, str) else names
        order = [*NAMED, "sloth", *(name for name in dict.fromkeys(names) if isinstance(name, Policy))]
        parts = [", ".join(f"{names.count(name)} × {name}" for name in order if name in names)]
        parts.append(f"{self.work.batch} × {self.work.length:,} tokens at a time")
        if self.work.accumulation > 1:
            parts.append(f"{self.work.accumulation} micro-steps a step")
        if self.work.engine == "sloth":
            tile = self.work.tile(self.policies, self.budget.gpu)
            if tile:
                parts.append(f"MLP in tiles of {tile:,} tokens")
            parts.append(f"{self.work.loss_chunk >> 20} MB of logits at a time")
        if self.work.embedding_offload:
            parts.append("embeddings in host memory")
        return "; ".join(parts)

    def __str__(self) -> str:
        used = 100 * self.estimate.total / self.budget.device
        return (
            f"Plan for {self.work.model.name} on {self.budget.device / GB:.1f} GB of {self.budget.gpu.name}: "
            f"{self.estimate.total_gb:.1f} GB ({used:.0f} %)\n  {self.summary()}"
        )


def plan(work: Work, budget: Budget, *, split: bool = True, embeddings: bool = True) -> Plan:
    """The fastest plan for this work that fits the budget.

    The sequences of one optimiser step (``batch × accumulation``) stay as asked; how many go at once (with
    ``split``), what each layer keeps, the loss's chunk and the MLP's tile are the planner's; and, with
    ``embeddings``, whether the input embedding stays in host memory, where it may.

    Raises:
        HardwareError: nothing fits; with the cheapest changes that would.
    """
    best = _fastest(work, budget, split, None)
    if embeddings and _embeddings_may_move(work, budget) and not (best and _keeps_everything(best, work)):
        work = work.but(embedding_offload=True)
        best = _fastest(work, budget, split, best)
    if best is None:
        raise HardwareError(_refusal(work, budget, split))
    return best


def _fastest(work: Work, budget: Budget, split: bool, best: Plan | None) -> Plan | None:
    """The fastest plan of this work's that fits, or ``best`` when none is faster."""
    moving = [None] if budget.gpu.is_cpu or not budget.host else [None, *MOVING]
    for option in _options(work, split):
        option = _captured_or_not(option, budget)
        if best and step_seconds(option.but(policy="keep"), budget.gpu) >= best.seconds:
            continue
        if option.engine == "hf":
            tried = [_plain(option, budget)]
        else:
            tried = [_fit(option, budget, kind) for kind in moving]
        if len(moving) > 1 and option.engine == "sloth":
            tried.append(_inside(option.but(policy="sloth", ram=budget.host), budget))
        for fitted in tried:
            if fitted is None:
                continue
            seconds = step_seconds(fitted.work, budget.gpu)
            if best is None or seconds < best.seconds:
                best = Plan(fitted.work, budget, fitted, seconds)
    return best


def _captured_or_not(option: Work, budget: Budget) -> Work:
    """The engine captures a step where there is room for a second one beside the graph's: not in a full budget."""
    if not option.captured(budget.gpu):
        return option
    kept = estimate_within(option.but(policy="keep"), budget.gpu, budget.device)
    if kept is None:
        return option.but(graphs=False)
    again = sum(kept.kinds.get(kind, 0) for kind in WITHIN_A_STEP)
    return option if kept.tensors + again <= budget.device else option.but(graphs=False)


def _embeddings_may_move(work: Work, budget: Budget) -> bool:
    shape = work.model.shape
    may = work.engine == "sloth" and work.lora and not shape.tied and not budget.gpu.is_cpu
    return may and not work.embedding_offload and 2 * shape.embedding_parameters <= budget.host


def _keeps_everything(made: Plan, work: Work) -> bool:
    """All activations of the whole batch: there is nothing to win."""
    return made.work.batch == work.batch and all(len(policy.device) == len(NAMES) for policy in made.policies)


def fitted_policies(work: Work, budget: Budget) -> Work | None:
    """The same batch and chunks with a fast mix of policies that fits, RAM used only if it must; None: none does."""
    if work.engine == "hf":
        answer = _plain(work, budget)
        return None if answer is None else answer.work
    work = _captured_or_not(work, budget)
    answer = _fit(work, budget, None)
    if answer is None and not budget.gpu.is_cpu:
        answer = _fit(work, budget, "offload")
    return None if answer is None else answer.work


def _options(work: Work, split: bool) -> Iterator[Work]:
    """Everything but the policies, the likely best first: large micro-batches, large tiles and chunks."""
    sequences = work.batch * work.accumulation
    sizes = range(min(sequences, max(work.batch, 64)), 0, -1) if split else (work.batch,)
    for size in sizes:
        if sequences % size:
            continue
        if work.engine == "hf":  # knows neither tiles nor chunks
            yield work.but(batch=size, accumulation=sequences // size)
            continue
        for tile in TILES:
            for chunk in CHUNKS:
                yield work.but(batch=size, accumulation=sequences // size, mlp_tile=tile, loss_chunk=chunk)


def _hull(work: Work, budget: Budget, moving: str | None) -> tuple[str, ...]:
    """Policies worth mixing, least memory first: the lower convex hull of (bytes, seconds) of one layer.

    Of those that move something to the host, only ``moving`` takes part.
    """
    block = max(work.model.shape.blocks, key=lambda block: block.count)
    points = []
    for name, policy in NAMED.items():
        if policy.host and name != moving:
            continue
        tile = work.tile((policy,), budget.gpu)
        cost = layer_cost(block, work, policy, budget.gpu.capability, tile=tile)
        time = layer_time(block, work, policy, budget.gpu, tile)
        points.append((cost.held, time.alone(budget.gpu.host_gbps * 1e9), name))
    points.sort()
    hull: list[tuple[int, float, str]] = []
    for point in points:
        if hull and point[1] >= hull[-1][1]:
            continue  # more memory and no faster
        while (hull and point[0] == hull[-1][0]) or (len(hull) >= 2 and _above(hull[-2], hull[-1], point)):
            hull.pop()
        hull.append(point)
    return tuple(name for _, _, name in hull)


def _above(a: tuple, b: tuple, c: tuple) -> bool:
    """Whether b lies on or above the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) >= (c[1] - a[1]) * (b[0] - a[0])


def _inside(work: Work, budget: Budget) -> Estimate | None:
    """Its estimate, when that fits the budget."""
    answer = estimate_within(work, budget.gpu, int(budget.device / (1 + SAFETY)))
    return answer if answer is not None and answer.host <= budget.host else None


def _plain(work: Work, budget: Budget) -> Estimate | None:
    """Without this package's engine: one policy for all layers, and nothing moves."""
    return _inside(work.but(policy="keep"), budget) or _inside(work.but(policy="recompute"), budget)


def _ladder(option: Work, budget: Budget, moving: str | None) -> tuple[Callable[[int], tuple[str, ...]], int]:
    """From the leanest policies to the fastest, a layer a step, top first: (policies at a step, last step).

    When RAM can't take every layer's activations, as many bottom layers as it can are offloaded, and the
    others climb first.
    """
    hull, layers = _hull(option, budget, moving), option.model.shape.layers
    offloaded = 0
    least = hull[0]
    if NAMED[least].host:
        host = host_bytes(option.but(policy=least), budget.gpu)
        standing = host_bytes(option.but(policy="lean"), budget.gpu)
        each = max(1, (host - standing) // layers)
        offloaded = max(0, min(layers, (budget.host - standing) // each))
    dry = hull if offloaded == layers else _hull(option, budget, None)
    low = offloaded if offloaded < layers else 0
    top = layers - low
    climb = (len(dry) - 1) * top

    def at(step: int) -> tuple[str, ...]:
        level, lifted = divmod(min(step, climb), top)
        upper = (dry[level],) * (top - lifted) + dry[level + 1 : level + 2] * lifted
        freed = max(0, step - climb)
        return (least,) * (low - freed) + (dry[-1],) * freed + upper

    return at, climb + low


def _fit(option: Work, budget: Budget, moving: str | None) -> Estimate | None:
    """The highest step of the ladder that fits, as an estimate; None when its first doesn't."""
    policies, high = _ladder(option, budget, moving)

    def at(step: int) -> Estimate | None:
        return _inside(option.but(policy=policies(step)), budget)

    top = at(high)
    if top is not None:
        return top
    best = at(0)
    return None if best is None else _filled(_last(at, 0, high, best), budget)


def _last(at: Callable[[int], Estimate | None], low: int, high: int, best: Estimate) -> Estimate:
    """The answer at the highest step that has one; ``best`` is that of ``low``, and ``high`` has none."""
    while high - low > 1:
        middle = (low + high) // 2
        answer = at(middle)
        if answer is None:
            high = middle
        else:
            low, best = middle, answer
    return best


def _filled(fitted: Estimate, budget: Budget) -> Estimate:
    """Where the ladder's next step is too large for what is left: smaller ones, for as many layers as they fit."""
    if fitted.total >= SPENT * budget.device:
        return fitted
    work, names = fitted.work, fitted.work.policy
    policies = (names,) * work.model.shape.layers if isinstance(names, str) else tuple(names)
    below = [i for i, name in enumerate(policies) if name != policies[-1]] or list(range(len(policies)))
    lower = policies[below[-1]]
    these = [i for i in below if policies[i] == lower]
    now = NAMED[lower] if isinstance(lower, str) else lower
    best, fastest = fitted, step_seconds(work, budget.gpu)
    for added in (("middle",), ("middle", "qkv")):
        finer = Policy(now.device + tuple(name for name in added if name not in now.held), now.host)

        def at(count: int, finer: Policy = finer) -> Estimate | None:
            raised = set(these[len(these) - count :])
            mixed = tuple(finer if i in raised else old for i, old in enumerate(policies))
            return _inside(work.but(policy=mixed), budget)

        answer = at(len(these)) or _last(at, 0, len(these), fitted)
        seconds = step_seconds(answer.work, budget.gpu)
        if seconds < fastest:
            best, fastest = answer, seconds
    return best


def _refusal(work: Work, budget: Budget, split: bool) -> str:
    """What it would take at its leanest, and the cheapest changes that would fit."""
    here = work.leanest(budget.gpu)
    answers = (estimate_work(option.but(policy=here), budget.gpu) for option in _options(work, split))
    least = min(answers, key=lambda estimate: estimate.total)
    says = f"{least.total_gb:.1f} GB"
    if least.host:
        says += f" and {least.host / GB:.1f} GB of RAM"
    if least.host > budget.host:
        says += f", of which {budget.host / GB:.1f} GB may be used"
    lines = [
        f"{work} does not fit {budget.device / GB:.1f} GB of {budget.gpu.name}: "
        f"at its leanest it takes {says}."
    ]
    room = int(budget.device / (1 + SAFETY))
    changes = changes_to_fit(least.work, budget.gpu, room, host=budget.host)
    lines += [f"  {number}. {change}" for number, change in enumerate(changes, 1)]
    if not changes:
        card = smallest_card(within_ram(least.work, budget.gpu, budget.host))
        lines.append(
            f"  The smallest card that takes it is {card.name}." if card else "  No single card takes it."
        )
    return "\n".join(lines)
