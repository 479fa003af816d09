"""What to change when a run doesn't fit: bundles of changes, the cheapest in time and quality first."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from sloth_nb.catalog import GPU, ModelInfo, gpus, models
from sloth_nb.memory.estimate import Estimate
from sloth_nb.memory.families import engine_runs
from sloth_nb.memory.formulas import estimate_within, estimate_work, standing_total
from sloth_nb.memory.work import Work

__all__ = ["Change", "changes_to_fit", "on_every_card", "smallest_card"]


SMALL_CHUNK = 64 << 20
TILE = 2048


@dataclass(frozen=True)
class Change:
    """One way to make a run fit.

    Attributes:
        say: what to do, as a sentence's part ("halve the batch to 1 and accumulate 2").
        cost: what it costs, in words.
        options: what to change on the Work.
        estimate: the work with the change.
    """

    say: str
    cost: str
    options: dict[str, object]
    estimate: Estimate

    def __str__(self) -> str:
        return f"{self.say} ({self.cost}): {self.estimate.total_gb:.1f} GB"


@dataclass(frozen=True)
class _Step:
    weight: float
    say: str
    cost: str
    options: dict[str, object]
    takes_ram: bool = False

    def replaces(self, other: "_Step") -> bool:
        """Whether it is another value of the same options."""
        return self.options.keys() == other.options.keys()

    def is_as_strong_as(self, other: "_Step") -> bool:
        """Whether it is that step, or a stronger value of the same options."""
        return self.replaces(other) and self.weight >= other.weight


def changes_to_fit(
    work: Work, gpu: GPU, memory: int | None = None, count: int = 3, *, offload: bool = True
) -> list[Change]:
    """The ``count`` cheapest bundles of changes with which the work fits; empty when it fits as it is.

    Cheap is what leaves the result alone (how activations are held, chunks, the same batch in smaller steps);
    dear is what changes it (fewer tokens, a smaller rank, another method). Without ``offload`` nothing that
    takes RAM is offered.
    """
    search = _Search(work, gpu, gpu.memory if memory is None else memory, offload)
    if estimate_within(work, gpu, search.budget):
        return []
    search.cheap_bundles(count)
    search.dear_bundles(count)
    return search.found[:count]


class _Search:
    """Tries bundles of steps on one work, and remembers those that fit.

    It searches at a rounder length, the next above: a slider that moves on asks for the same answers again, and these
    are remembered. What is found is told of the work itself.
    """

    def __init__(self, work: Work, gpu: GPU, budget: int, offload: bool):
        self.work, self.gpu, self.budget = work, gpu, budget
        step = max(1, 1 << max(0, work.length.bit_length() - 5))
        self.rounder = work.but(length=-(-work.length // step) * step)
        cheap, dear = (
            [step for step in steps if (offload and not gpu.is_cpu) or not step.takes_ram]
            for steps in (_same_result(self.rounder), _another_result(self.rounder))
        )
        self.cheap = sorted(cheap, key=lambda step: step.weight)
        self.dear = sorted(dear, key=lambda step: step.weight)
        self.found: list[Change] = []

    def fits(self, steps: tuple[_Step, ...]) -> bool:
        work = self.rounder.but(**_options(steps))
        if standing_total(work, self.gpu) > self.budget:  # most of what can't fit, at a tenth of the cost
            return False
        return estimate_within(work, self.gpu, self.budget) is not None

    def keep(self, steps: tuple[_Step, ...]) -> None:
        estimate = estimate_within(self.work.but(**_options(steps)), self.gpu, self.budget)
        if estimate is None:  # a few tokens less may lie less well in memory
            return
        say = ", ".join(step.say for step in steps)
        costs = dict.fromkeys(part for step in steps for part in step.cost.split(", "))
        if any(step in self.dear for step in steps):
            costs.pop("same result", None)
        self.found.append(Change(say, ", ".join(costs), _options(steps), estimate))

    def cheap_bundles(self, count: int) -> None:
        """Steps that leave the result alone: single ones; then few of them together, each time without the dearest of
        those before; then stronger values than would be enough."""
        strongest = _strongest(self.cheap)
        if not self.fits(strongest):
            return
        vital = [step for step in strongest if not self.fits(_without(strongest, step))]
        alone: list[_Step] = []
        for step in self.cheap:
            known = any(step.replaces(one) for one in alone)
            if len(self.found) >= count or known or not all(step.replaces(one) for one in vital):
                continue
            if self.fits((step,)):
                alone.append(step)
                self.keep((step,))
        left = [step for step in self.cheap if not any(step.is_as_strong_as(one) for one in alone)]
        while len(self.found) < count and self.fits(_strongest(left)):
            bundle = self._weakened(self._needed((), _strongest(left)), left)
            self.keep(bundle)
            dearest = max(bundle, key=lambda step: step.weight)
            left = [step for step in left if not step.is_as_strong_as(dearest)]
        self._stronger(alone, self.cheap, (), count)

    def dear_bundles(self, count: int) -> None:
        """Single dear steps, or two or three where no single one does, with only those cheap ones that they still need.

        Cheap steps that are part of an answer help no dear one.
        """
        answers = {option for change in self.found for option in change.options}
        helpers = _strongest([step for step in self.cheap if not answers & set(step.options)])
        strongest, alone = _strongest(self.dear), []
        if not self.fits((*strongest, *helpers)):
            return
        for size in range(1, len(strongest) + 1):
            for chosen in combinations(strongest, size):
                if len(self.found) < count and self.fits((*chosen, *helpers)):
                    chosen = self._weakened(chosen, self.dear, helpers)
                    self.keep((*chosen, *self._needed(chosen, helpers)))
                    alone += chosen if size == 1 else ()
            if self.found:
                break
        self._stronger(alone, self.dear, helpers, count)

    def _stronger(
        self, enough: list[_Step], known: list[_Step], helpers: tuple[_Step, ...], count: int
    ) -> None:
        """Where there are fewer answers than were asked for: more of what is enough by itself."""
        for step in known:
            stronger = any(step.is_as_strong_as(one) for one in enough) and step not in enough
            if len(self.found) < count and stronger and self.fits((step, *helpers)):
                self.keep((step, *self._needed((step,), helpers)))

    def _weakened(
        self, bundle: tuple[_Step, ...], known: list[_Step], helpers: tuple[_Step, ...] = ()
    ) -> tuple[_Step, ...]:
        """The bundle, which fits, with each step's weakest value that still does beside the others."""
        for place, step in enumerate(bundle):
            before, after = bundle[:place], bundle[place + 1 :]
            values = [one for one in known if one.replaces(step) and one.weight <= step.weight]
            enough = bisect_left(
                values,
                True,
                hi=len(values) - 1,
                key=lambda value, others=(*before, *after, *helpers): self.fits((value, *others)),
            )
            bundle = (*before, values[enough], *after)
        return bundle

    def _needed(self, chosen: tuple[_Step, ...], helpers: tuple[_Step, ...]) -> tuple[_Step, ...]:
        """Those of the helpers that can't be left out, the dearest tried first; often that is all of them at once."""
        if self.fits(chosen):
            return ()
        for helper in sorted(helpers, key=lambda step: -step.weight):
            rest = _without(helpers, helper)
            if self.fits((*chosen, *rest)):
                helpers = rest
        return helpers


def _options(steps: tuple[_Step, ...]) -> dict[str, Any]:
    return {key: value for step in steps for key, value in step.options.items()}


def _without(steps: tuple[_Step, ...], one: _Step) -> tuple[_Step, ...]:
    return tuple(step for step in steps if step is not one)


def _strongest(steps: list[_Step]) -> tuple[_Step, ...]:
    """Of the steps that change the same option, the last, which saves most."""
    return tuple({tuple(step.options): step for step in steps}.values())


def smallest_card(work: Work) -> GPU | None:
    """The card of the table with the least memory that this work fits; None when none has enough."""
    for answer in on_every_card(work):
        if answer.fits:
            return answer.gpu
    return None


def on_every_card(work: Work, known: Estimate | None = None) -> Iterator[Estimate]:
    """The work on each card of the table, least memory first. Cards of one generation need the same: asked once.

    ``known``: its estimate on some card, so that this generation isn't asked again.
    """
    by_kind = {} if known is None else {_kind(known.gpu): known}
    for card in sorted(gpus(), key=lambda card: card.memory_gib):
        kind = _kind(card)
        if kind not in by_kind:
            by_kind[kind] = estimate_work(work, card)
        yield by_kind[kind].on(card)


def _kind(card: GPU) -> tuple[bool, bool, bool]:
    """What decides what a step takes on it."""
    return card.is_cpu, card.capability < 8, card.capability < 9


def _same_result(work: Work) -> Iterator[_Step]:
    """How things are held and in what portions they are computed."""
    same, policies = "same result", {work.policy} if isinstance(work.policy, str) else set(work.policy)
    plain = work.engine == "hf" and not engine_runs(work.model)  # which have no other way than to recompute
    if work.engine == "hf" and not plain:
        yield _Step(
            0.1, "use this package's engine (engine='sloth')", "same result, faster", {"engine": "sloth"}
        )
    if work.loss_chunk > SMALL_CHUNK and not plain:
        yield _Step(0.2, "hold 64 MB of logits at a time (loss_chunk)", same, {"loss_chunk": SMALL_CHUNK})
    if work.tokens > TILE and not plain and (work.mlp_tile in (None, "auto") or int(work.mlp_tile) > TILE):
        say = f"run the MLP in tiles of {TILE:,} tokens (mlp_tile)"
        yield _Step(0.3, say, "same result, a little slower", {"mlp_tile": TILE})
    for part in (2, 4, 8):
        if work.batch >= part and work.task != "grpo":
            batch, steps = -(-work.batch // part), work.accumulation * part
            say = f"batch {batch} with {steps} steps accumulated"
            yield _Step(
                part / 4, say, "same result, a little slower", {"batch": batch, "accumulation": steps}
            )
    if work.engine == "sloth" and work.lora and not work.model.shape.tied and not work.embedding_offload:
        say = "keep the embeddings in host memory (offload_embedding=True)"
        yield _Step(0.6, say, "same result, takes RAM", {"embedding_offload": True}, takes_ram=True)
    if "keep" in policies:
        say = "recompute activations (policy='recompute')"
        yield _Step(1.0, say, "same result, about a quarter slower", {"policy": "recompute"})
    if policies & {"keep", "recompute"} and not plain:
        say = "keep only each layer's input (policy='lean')"
        yield _Step(1.4, say, "same result, slower by the attention's forward", {"policy": "lean"})
    if policies != {"offload"} and not plain:
        say = "move activations to host memory (policy='offload')"
        yield _Step(1.5, say, "same result, takes RAM", {"policy": "offload"}, takes_ram=True)


def _another_result(work: Work) -> Iterator[_Step]:
    """Less to train, coarser weights and states, shorter rows."""
    if work.method == "full":
        yield _Step(4.0, "train a LoRA instead (method='lora')", "fewer weights trained", {"method": "lora"})
    if work.method != "qlora":
        weight = 3.0 if work.lora else 6.0
        yield _Step(
            weight, "load in 4 bits (method='qlora')", "slightly different weights", {"method": "qlora"}
        )
    if not engine_runs(work.model) and engine_runs(work.model.text_part):
        say = "train its language part alone (text_only=True), which this package's engine runs"
        yield _Step(2.0, say, "no pictures", {"model": work.model.text_part})
    nearly = "nearly the same result"
    if work.optimiser not in ("adamw_8bit", "paged_adamw_8bit", "sgd"):
        yield _Step(1.2, "8-bit AdamW (optim='adamw_8bit')", nearly, {"optimiser": "adamw_8bit"})
    if work.optimiser not in ("paged_adamw_8bit", "sgd"):
        say = "page an 8-bit optimiser to RAM (optim='paged_adamw_8bit')"
        yield _Step(1.6, say, nearly, {"optimiser": "paged_adamw_8bit"}, takes_ram=True)
    for rank in (16, 8):
        if work.lora and work.rank > rank:
            yield _Step(2.5 + 8 / rank, f"rank {rank}", "fewer weights trained", {"rank": rank})
    length = work.length // 2
    while length >= 256:
        say = f"cut sequences to {length:,} tokens"
        yield _Step(5.0 + work.length / length, say, "longer rows are cut", {"length": length})
        length //= 2
    for place, smaller in enumerate(_smaller_kin(work.model)):
        yield _Step(12.0 + place, f"train {smaller.name} instead", "a smaller model", {"model": smaller})


def _smaller_kin(info: ModelInfo) -> list[ModelInfo]:
    """The next three smaller models of the same family, kind and modality, the largest first."""
    kin = [
        other
        for other in models()
        if (other.family, other.kind, other.modality) == (info.family, info.kind, info.modality)
        and other.parameters < info.parameters
    ]
    return sorted(kin, key=lambda other: -other.parameters)[:3]
