"""What to change when a run doesn't fit: bundles of changes, the cheapest in time and quality first."""

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import combinations, islice
from typing import Any

from sloth_nb.catalog import GPU, ModelInfo, gpus, models
from sloth_nb.memory.estimate import Estimate
from sloth_nb.memory.formulas import estimate_within, estimate_work, standing_total
from sloth_nb.memory.work import Work

__all__ = ["Change", "changes_to_fit", "on_every_card", "smallest_card"]


SMALL_CHUNK = 64 << 20
TILE = 2048
# Bundles that are tried: a slider waits for the answer.
CHEAP_TRIES, DEAR_TRIES = 14, 20


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
        """Steps that leave the result alone, single ones first, then bundles in the order of their summed weight."""
        if not self.fits(_strongest(self.cheap)):
            return
        queue = [(0.0, (index,)) for index in range(len(self.cheap))]
        heapify(queue)
        answered: list[tuple[int, ...]] = []
        for _ in range(CHEAP_TRIES):
            if not queue or len(self.found) >= count:
                return
            _, chosen = heappop(queue)
            if any(set(done) <= set(chosen) for done in answered):
                continue  # it would fit with less
            steps = tuple(self.cheap[index] for index in chosen)
            if self.fits(steps):
                answered.append(chosen)
                self.keep(steps)
                continue
            used = {key for step in steps for key in step.options}
            for index in range(chosen[-1] + 1, len(self.cheap)):
                if not self.cheap[index].options.keys() & used:
                    weight = sum(step.weight for step in steps) + self.cheap[index].weight
                    heappush(queue, (weight, (*chosen, index)))

    def dear_bundles(self, count: int) -> None:
        """One to three dear steps each, with only as many cheap ones as they still need.

        Cheap steps that are an answer by themselves help no dear one. Bundles of different options come first;
        another value of the same one only when there are no others.
        """
        answers = {step for change in self.found for step in change.options}
        helpers = _strongest([step for step in self.cheap if not answers & set(step.options)])
        if not self.fits((*_strongest(self.dear), *helpers)):
            return
        answered: set[frozenset[str]] = set()
        spare: list[tuple[_Step, ...]] = []
        for chosen in islice(self._dear_choices(), DEAR_TRIES):
            if len(self.found) >= count:
                return
            keys = frozenset(key for step in chosen for key in step.options)
            if any(done < keys for done in answered) or not self.fits((*chosen, *helpers)):
                continue
            if keys in answered:
                spare.append(chosen)
                continue
            answered.add(keys)
            self.keep((*chosen, *self._needed(chosen, helpers)))
        for chosen in spare[: count - len(self.found)]:
            self.keep((*chosen, *self._needed(chosen, helpers)))
        if not self.found:  # only much at once helps
            chosen = self._needed(helpers, _strongest(self.dear))
            self.keep((*chosen, *self._needed(chosen, helpers)))

    def _dear_choices(self) -> Iterator[tuple[_Step, ...]]:
        """Different options each, few of them first, those of the least weight before others."""
        for size in (1, 2, 3):
            for chosen in sorted(
                combinations(self.dear, size), key=lambda steps: sum(s.weight for s in steps)
            ):
                if len({key for step in chosen for key in step.options}) == size:
                    yield chosen

    def _needed(self, chosen: tuple[_Step, ...], helpers: tuple[_Step, ...]) -> tuple[_Step, ...]:
        """Those of the helpers that can't be left out, the dearest tried first; often that is all of them at once."""
        if self.fits(chosen):
            return ()
        for helper in sorted(helpers, key=lambda step: -step.weight):
            rest = tuple(step for step in helpers if step is not helper)
            if self.fits((*chosen, *rest)):
                helpers = rest
        return helpers


def _options(steps: tuple[_Step, ...]) -> dict[str, Any]:
    return {key: value for step in steps for key, value in step.options.items()}


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
    if work.engine == "hf":
        yield _Step(
            0.1, "use this package's engine (engine='sloth')", "same result, faster", {"engine": "sloth"}
        )
    if work.loss_chunk > SMALL_CHUNK:
        yield _Step(0.2, "hold 64 MB of logits at a time (loss_chunk)", same, {"loss_chunk": SMALL_CHUNK})
    if work.tokens > TILE and (work.mlp_tile in (None, "auto") or int(work.mlp_tile) > TILE):
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
    if policies & {"keep", "recompute"}:
        say = "keep only each layer's input (policy='lean')"
        yield _Step(1.4, say, "same result, slower by the attention's forward", {"policy": "lean"})
    if policies != {"offload"}:
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
