"""Measures on a GPU what the memory model predicts: real shapes, random weights made on the card, real steps.

    PYTHONPATH=.:kernels:widgets python tests/memory/measure.py rows OUT.json [--minutes 4.8] [--only WORD] [--moving]
    PYTHONPATH=.:kernels:widgets python tests/memory/measure.py plans OUT.json [--minutes 5.8] [--only WORD]

``rows`` runs the table ROWS and writes the allocator's peaks beside each work; the file is kept as
tests/memory/data/engine_<card>.json, where the tests compare it with the formulas and the dry run. ``plans`` caps
the process to budgets, runs the plan made for each and its nearest alternatives, and writes times and peaks
(plans_<card>.json). Every finished row is written at once, and the groups are ordered so that a run that is cut off
has seen every family or every cap. What fails is said and left out; the rest goes on.
"""

from __future__ import annotations

import argparse
import json
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from measured_step import Card, measured
from real_models import build, text_only

from sloth_nb.memory import GB, Budget, Work, estimate_work, plan, step_seconds
from sloth_nb.memory.policy import NAMED

BEGUN = time.monotonic()

# name, method, [(batch, length, policy, more)]: each model is made once a method, first one of every family.
ROWS: list[tuple[str, str, list[tuple[int, int, Any, dict[str, Any]]]]] = [
    ("qwen3-0.6b", "lora", [(8, 2048, "keep", {}), (2, 8192, "recompute", {})]),
    ("gemma-3-1b-it", "lora", [(4, 2048, "recompute", {}), (2, 2048, "keep", {}), (1, 16384, "offload", {})]),
    ("phi-4-mini-instruct", "lora-8bit", [
        (2, 2048, "recompute", {}), (2, 4096, "offload", {}), (1, 4096, "keep", {}),
    ]),
    ("llama-3.1-8b", "qlora", [
        (2, 2048, "keep", {}), (2, 2048, "recompute", {}), (2, 2048, "lean", {}), (2, 2048, "offload", {}),
        (2, 2048, "offload-wide", {}), (2, 2048, "sloth", {}), (1, 4096, "offload-all", {}),
        (8, 512, "recompute", {"packed": True}), (4, 2048, "mixed", {}), (2, 256, "lean", {}),
        (2, 256, "keep", {"graphs": True}), (1, 1024, "recompute", {"graphs": True}),
        (1, 8192, "sloth", {}), (1, 16384, "recompute", {}), (1, 32768, "lean", {}), (1, 32768, "offload", {}),
    ]),
    ("llama-3.2-1b", "full", [
        (2, 1024, "keep", {"optimiser": "adamw_torch"}), (2, 1024, "recompute", {"optimiser": "adamw_torch"}),
        (4, 2048, "recompute", {}), (1, 8192, "lean", {}), (2, 2048, "offload", {}),
    ]),
    ("qwen3-4b", "qlora", [
        (4, 2048, "recompute", {"rank": 64}), (2, 2048, "keep", {"rank": 64}), (1, 8192, "sloth", {"rank": 64}),
        (2, 2048, "recompute", {"rank": 64, "accumulation": 2}),
    ]),
    ("gemma-3-4b-it", "qlora", [(2, 2048, "recompute", {}), (2, 1024, "keep", {}), (1, 8192, "lean", {})]),
    ("phi-4", "qlora", [
        (2, 2048, "recompute", {}), (1, 2048, "keep", {}), (1, 4096, "sloth", {}), (4, 1024, "lean", {}),
    ]),
    ("llama-3.2-3b", "lora-8bit", [(2, 2048, "recompute", {}), (4, 1024, "keep", {}), (1, 8192, "offload", {})]),
    ("qwen3-14b", "qlora", [
        (2, 2048, "recompute", {}), (1, 2048, "keep", {}), (1, 8192, "offload", {}), (1, 8192, "lean", {}),
    ]),
    ("qwen3-0.6b", "full", [(4, 2048, "recompute", {}), (8, 512, "keep", {}), (1, 256, "lean", {})]),
    ("llama-3.2-1b", "lora", [(8, 1024, "keep", {}), (4, 4096, "recompute", {}), (1, 32768, "offload", {})]),
    ("gemma-3-270m-it", "lora", [(8, 2048, "keep", {}), (2, 8192, "recompute", {})]),
]  # fmt: skip

# name, [(batch, length, GB)]: mostly one long sequence, kept whole larger than its budget, because a batch can be
# cut into micro-steps that fit; three that can be. Each model is made once; every cap comes early.
PLANS: list[tuple[str, list[tuple[int, int, float]]]] = [
    ("qwen3-4b", [(1, 6144, 8), (1, 12288, 24), (2, 8192, 16)]),
    ("llama-3.1-8b", [(1, 8192, 16), (8, 2048, 16), (1, 8192, 24), (1, 16384, 40)]),
    ("qwen3-14b", [(1, 15360, 80), (1, 9216, 40)]),
    ("llama-3.2-1b", [(1, 16384, 8), (4, 4096, 8)]),
    ("phi-4", [(1, 6144, 24)]),
]
# Of the plans that the model thinks next fastest, so many are tried beside the chosen one.
NEAREST = 3
# Half of it may be pinned, which takes a third of a second a GB at first.
RAM_GB = 48


def asked(work: Work) -> dict[str, Any]:
    """The options that make this work, as the file keeps them."""
    names = (
        "method",
        "batch",
        "length",
        "rank",
        "optimiser",
        "packed",
        "mlp_tile",
        "loss_chunk",
        "accumulation",
        "graphs",
    )
    policy = work.policy
    if not isinstance(policy, str):
        policy = [p if isinstance(p, str) else {"device": p.device, "host": p.host} for p in policy]
    return {"model": work.model.name, "policy": policy, **{name: getattr(work, name) for name in names}}


def works() -> Iterator[tuple[str, str, list[Work]]]:
    """ROWS as works, a group a model."""
    for name, method, cases in ROWS:
        info, group = text_only(name), []
        for batch, length, policy, more in cases:
            if policy == "mixed":
                layers = info.shape.layers
                policy = ("offload",) * (layers // 3) + ("recompute",) * (layers // 3)
                policy += ("keep",) * (layers - len(policy))
            options = {"rank": 32, "method": method, "batch": batch, "length": length, "policy": policy}
            group.append(Work.of(info, **{**options, "graphs": False, **more}))
        yield name, method, group


class Output:
    """The file that the rows go to, written anew after each; and the time that is left for more."""

    def __init__(self, path: Path, card: Card, minutes: float):
        self.path, self.end = path, BEGUN + 60 * minutes
        self.data: dict[str, Any] = {
            "what": "peaks of torch's allocator over real steps on random weights, by tests/memory/measure.py",
            "card": card.name,
            "libraries": card.libraries(),
            "date": time.strftime("%Y-%m-%d"),
            "rows": [],
        }

    def add(self, row: dict[str, Any]) -> None:
        self.data["rows"].append(row)
        self.path.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")

    def out_of_time(self) -> bool:
        late = time.monotonic() > self.end
        if late:
            say("out of time")
        return late


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGUN:5.1f} s] {text}", flush=True)


def attempt(what: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The call's answer; None when it fails, which is said."""
    try:
        return call(*arguments, **options)
    except Exception:
        say(f"{what} failed:\n{traceback.format_exc()}")
        return None


def made(work: Work, card: Card) -> Any:
    card.uncap()
    model = attempt(f"building {work.model.name}", build, work)
    card.clear()
    say(f"{work.model.name} {work.method} made")
    return model


def measure_rows(path: Path, minutes: float, only: str = "", moving: bool = False) -> None:
    card = Card()
    output = Output(path, card, minutes)
    for name, _, group in works():
        if moving:
            group = [work for work in group if any(policy.host for policy in work.policies(card.gpu))]
        if only not in name or not group:
            continue
        if output.out_of_time():
            return
        model = made(group[0], card)
        for work in group if model is not None else ():
            if output.out_of_time():
                return
            found = attempt(str(work), measured, model, work, card)
            card.clear()
            if found is not None:
                output.add({**asked(work), **found})
                say_row(work, found, card)
        del model
        card.clear()


def say_row(work: Work, found: dict[str, Any], card: Card) -> None:
    said = estimate_work(work, card.gpu)
    error = 100 * (said.tensors / found["allocated"] - 1)
    share = 100 * (said.reserved / found["reserved"] - 1)
    say(
        f"{work!s:66s} allocated {found['allocated'] / GB:6.2f} formulas {error:+5.1f} % reserved "
        f"{found['reserved'] / GB:6.2f} {share:+5.1f} % ok {found['ok']} {found['seconds']} s"
    )


def alternatives(made: Work) -> Iterator[Work]:
    """Other plans for the same step: each uniform policy, at the plan's micro-batch, half and twice of it."""
    sequences = made.batch * made.accumulation
    sizes = {made.batch, max(1, made.batch // 2), min(sequences, 2 * made.batch)}
    for size in sorted(size for size in sizes if sequences % size == 0):
        for policy in (*NAMED, "sloth"):
            yield made.but(batch=size, accumulation=sequences // size, policy=policy)


def tried_for(chosen: Work, budget: Budget) -> list[Work]:
    """The plan, and after it the ones that the model thinks next fastest of those that it thinks fit."""
    fitting = []
    for other in alternatives(chosen):
        answer = estimate_work(other, budget.gpu)
        same = other.but(policy=chosen.policy) == chosen and other.policies(budget.gpu) == chosen.policies(
            budget.gpu
        )
        if not same and answer.total <= budget.device and answer.host <= budget.host:
            fitting.append(other)
    return [chosen, *sorted(fitting, key=lambda work: step_seconds(work, budget.gpu))[:NEAREST]]


def measure_plans(path: Path, minutes: float, only: str = "") -> None:
    card = Card()
    output = Output(path, card, minutes)
    for name, cases in PLANS:
        if only not in name:
            continue
        if output.out_of_time():
            return
        model = made(Work.of(text_only(name), rank=32), card)
        for batch, length, gb in cases if model is not None else ():
            work = Work.of(text_only(name), batch=batch, length=length, rank=32, graphs=False)
            room = min(int(gb * GB), card.largest_budget())
            budget = Budget.of(card.gpu, gb=room / GB, ram_gb=RAM_GB)
            chosen = attempt(f"planning {work}", plan, work, budget, embeddings=False)
            if chosen is None:
                continue
            say(str(chosen))
            for place, other in enumerate(tried_for(chosen.work, budget)):
                if output.out_of_time():
                    return
                row = attempt(str(other), capped, model, other, card, room)
                if row is not None:
                    output.add({"who": "other" if place else "plan", "gb": gb, "budget": room, **row})
        del model
        card.clear()


def capped(model: Any, work: Work, card: Card, room: int) -> dict[str, Any]:
    """The row of one work with no more than this room on the card."""
    card.clear()
    card.cap(room)
    try:
        found = measured(model, work, card, timed=2)
    finally:
        card.uncap()
    said, seconds = estimate_work(work, card.gpu), step_seconds(work, card.gpu)
    used = 100 * (found["reserved"] + found["context"]) / room
    say(
        f"  {work!s:66s} ok {found['ok']} uses {used:.0f} % in {found['seconds']} s, said {seconds:.3f} s; "
        f"allocated {found['allocated'] / GB:.2f}, said {said.tensors / GB:.2f}"
    )
    # What one sequence alone would take with everything kept: above the budget no micro-step makes it fit.
    one = estimate_work(work.but(policy="keep", batch=1, accumulation=1), card.gpu).total
    return {
        **asked(work),
        **found,
        "predicted_seconds": round(seconds, 4),
        "predicted_bytes": said.total,
        "keep_one": one,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("rows", "plans"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, help="stop beginning anything new after so many")
    parser.add_argument("--only", default="", help="only models with this in their name")
    parser.add_argument("--moving", action="store_true", help="only rows that move something to the host")
    options = parser.parse_args()
    if options.what == "rows":
        measure_rows(options.output, options.minutes or 4.8, options.only, options.moving)
    else:
        measure_plans(options.output, options.minutes or 5.8, options.only)
