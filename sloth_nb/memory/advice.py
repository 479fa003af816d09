"""What to change when a run doesn't fit: bundles of changes, the cheapest in time and quality first."""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from sloth_nb.catalog import GPU, gpus
from sloth_nb.memory.budget import usable_ram
from sloth_nb.memory.estimate import GB, Estimate
from sloth_nb.memory.formulas import estimate_within, estimate_work, standing_total
from sloth_nb.memory.steps import TAKES_RAM, Step, another_result, back_on_the_card, options_of, same_result
from sloth_nb.memory.work import Work

__all__ = ["Change", "changes_to_fit", "on_every_card", "smallest_card", "within_ram"]


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


def changes_to_fit(
    work: Work, gpu: GPU, memory: int | None = None, count: int = 3, *, host: int | None = None
) -> list[Change]:
    """The ``count`` cheapest bundles of changes with which the work fits; empty when it fits as it is.

    Cheap is what leaves the result alone (how activations are held, chunks, the same batch in smaller steps);
    dear is what changes it (fewer tokens, a smaller rank, another method).

    Args:
        memory: bytes of the card; None is all of it.
        host: bytes of RAM that may be taken; None is half of this machine's. No change is offered that takes more.
    """
    budget, ram = gpu.memory if memory is None else memory, usable_ram() if host is None else host
    known = estimate_within(work, gpu, budget)
    if known is not None and known.host <= ram:
        return []
    search = _Search(work, gpu, budget, ram)
    if search.base:
        search.keep(())
        if search.found:
            return search.found
    for bundles in (search.cheap_bundles, search.dear_bundles):
        search.moving(True)
        bundles(count)
        if search.short_of_ram and len(search.found) < count:
            search.moving(False)
            bundles(count)
    return search.found[:count]


def within_ram(work: Work, gpu: GPU, host: int) -> Work:
    """The work, without what it moves to the host where that takes more than ``host`` bytes."""
    return work.but(**options_of(back_on_the_card(work, gpu, host)))


class _Search:
    """Tries bundles of steps on one work, and remembers those that fit.

    It searches at a rounder length, the next above: a slider that moves on asks for the same answers again, and these
    are remembered. What is found is told of the work itself.
    """

    def __init__(self, work: Work, gpu: GPU, budget: int, host: int):
        self.gpu, self.budget, self.host = gpu, budget, host
        self.asked = work
        self.base = back_on_the_card(work, gpu, host)
        self.work = work.but(**options_of(self.base))
        step = max(1, 1 << max(0, work.length.bit_length() - 5))
        self.rounder = self.work.but(length=-(-work.length // step) * step)
        self.found: list[Change] = []
        self.cheap_ones, self.dear_ones = (
            sorted(steps, key=lambda step: step.weight)
            for steps in (same_result(self.rounder), another_result(self.rounder))
        )

    def moving(self, may: bool) -> None:
        """From now on, steps that take RAM are tried, or not. Said before anything is tried."""
        self.short_of_ram = False
        may = may and self.host > 0 and not self.gpu.is_cpu
        self.cheap, self.dear = (
            [step for step in steps if may or not step.takes_ram]
            for steps in (self.cheap_ones, self.dear_ones)
        )

    def fits(self, steps: tuple[Step, ...]) -> bool:
        work = self.rounder.but(**options_of(steps))
        if standing_total(work, self.gpu) > self.budget:  # most of what can't fit, at a tenth of the cost
            return False
        estimate = estimate_within(work, self.gpu, self.budget)
        if estimate is not None and estimate.host > self.host:
            self.short_of_ram = True
            return False
        return estimate is not None

    def keep(self, steps: tuple[Step, ...]) -> None:
        estimate = estimate_within(self.work.but(**options_of(steps)), self.gpu, self.budget)
        # A few tokens less may lie less well in memory.
        if estimate is None or estimate.host > self.host:
            return
        kept = (one for one in self.base if not any(step.replaces(one) for step in steps))
        steps = tuple(step for step in (*kept, *steps) if step.changes(self.asked))
        options = options_of(steps)
        if any(options == change.options for change in self.found):
            return
        costs = dict.fromkeys(part for step in steps for part in step.cost.split(", "))
        if any(step in self.dear_ones for step in steps):
            costs.pop("same result", None)
        ram = f"takes {estimate.host / GB:.1f} GB of RAM"
        said = [ram if cost == TAKES_RAM else cost for cost in costs]
        self.found.append(Change(", ".join(step.say for step in steps), ", ".join(said), options, estimate))

    def cheap_bundles(self, count: int) -> None:
        """Steps that leave the result alone: single ones; then few of them together, each time without the dearest of
        those before; then stronger values than would be enough."""
        strongest = _strongest(self.cheap)
        if not self.fits(strongest):
            return
        vital = [step for step in strongest if not self.fits(_without(strongest, step))]
        alone: list[Step] = []
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

    def _stronger(self, enough: list[Step], known: list[Step], helpers: tuple[Step, ...], count: int) -> None:
        """Where there are fewer answers than were asked for: more of what is enough by itself."""
        for step in known:
            stronger = any(step.is_as_strong_as(one) for one in enough) and step not in enough
            if len(self.found) < count and stronger and self.fits((step, *helpers)):
                self.keep((step, *self._needed((step,), helpers)))

    def _weakened(
        self, bundle: tuple[Step, ...], known: list[Step], helpers: tuple[Step, ...] = ()
    ) -> tuple[Step, ...]:
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

    def _needed(self, chosen: tuple[Step, ...], helpers: tuple[Step, ...]) -> tuple[Step, ...]:
        """Those of the helpers that can't be left out, the dearest tried first; often that is all of them at once."""
        if self.fits(chosen):
            return ()
        for helper in sorted(helpers, key=lambda step: -step.weight):
            rest = _without(helpers, helper)
            if self.fits((*chosen, *rest)):
                helpers = rest
        return helpers


def _without(steps: tuple[Step, ...], one: Step) -> tuple[Step, ...]:
    return tuple(step for step in steps if step is not one)


def _strongest(steps: list[Step]) -> tuple[Step, ...]:
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
