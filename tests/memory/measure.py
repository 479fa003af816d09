"""Measures on a GPU what the memory model predicts: real shapes, random weights made on the card, real steps.

    PYTHONPATH=.:kernels:widgets python tests/memory/measure.py rows  OUT.json [--minutes 9] [--only WORD]
    PYTHONPATH=.:kernels:widgets python tests/memory/measure.py plans OUT.json [--minutes 9]

``rows`` runs the table ROWS and writes the allocator's peaks beside each work; the file is kept as
tests/memory/data/engine_<card>.json, where the tests compare it with the formulas and the dry run. ``plans`` caps
the process to budgets, runs the plan made for each and its alternatives, and writes times and peaks.
Every finished row is written at once, so that a run that is cut off loses one row at most.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from real_models import build, inputs_of, install, optimiser_of, text_only

from sloth_nb import catalog
from sloth_nb.memory import Budget, Work, estimate_work, plan, step_seconds
from sloth_nb.memory.policy import NAMED

# name, method, [(batch, length, policy, more)]: grouped so that each model is made once a method.
ROWS: list[tuple[str, str, list[tuple[int, int, Any, dict[str, Any]]]]] = [
    ("llama-3.1-8b", "qlora", [
        (2, 2048, "keep", {}), (2, 2048, "recompute", {}), (2, 2048, "lean", {}), (2, 2048, "offload", {}),
        (2, 2048, "sloth", {}), (1, 16384, "recompute", {}), (1, 16384, "sloth", {}), (1, 32768, "lean", {}),
        (1, 32768, "offload", {}), (2, 256, "lean", {}), (8, 512, "recompute", {"packed": True}),
        (4, 2048, "mixed", {}), (2, 256, "keep", {"graphs": True}), (1, 1024, "recompute", {"graphs": True}),
    ]),
    ("llama-3.2-1b", "lora", [(8, 1024, "keep", {}), (4, 4096, "recompute", {}), (1, 32768, "offload", {})]),
    ("llama-3.2-1b", "full", [
        (2, 1024, "keep", {"optimiser": "adamw_torch"}), (2, 1024, "recompute", {"optimiser": "adamw_torch"}),
        (4, 2048, "recompute", {}), (1, 8192, "lean", {}), (2, 2048, "offload", {}),
    ]),
    ("llama-3.2-3b", "lora-8bit", [(2, 2048, "recompute", {}), (4, 1024, "keep", {}), (1, 16384, "offload", {})]),
    ("qwen3-0.6b", "full", [(4, 2048, "recompute", {}), (8, 512, "keep", {}), (1, 256, "lean", {})]),
    ("qwen3-0.6b", "lora", [(8, 2048, "keep", {}), (2, 16384, "recompute", {})]),
    ("qwen3-4b", "qlora", [
        (4, 2048, "recompute", {"rank": 64}), (2, 2048, "keep", {"rank": 64}), (1, 32768, "sloth", {"rank": 64}),
    ]),
    ("qwen3-14b", "qlora", [
        (2, 2048, "recompute", {}), (1, 4096, "keep", {}), (1, 16384, "offload", {}), (1, 8192, "lean", {}),
    ]),
    ("gemma-3-270m-it", "lora", [(8, 2048, "keep", {}), (2, 8192, "recompute", {})]),
    ("gemma-3-1b-it", "lora", [(4, 2048, "recompute", {}), (2, 2048, "keep", {}), (1, 16384, "offload", {})]),
    ("gemma-3-4b-it", "qlora", [(2, 2048, "recompute", {}), (2, 1024, "keep", {}), (1, 8192, "lean", {})]),
    ("phi-4-mini-instruct", "lora-8bit", [(2, 2048, "recompute", {}), (2, 4096, "offload", {})]),
    ("phi-4", "qlora", [
        (2, 2048, "recompute", {}), (1, 2048, "keep", {}), (1, 16384, "sloth", {}), (4, 1024, "lean", {}),
    ]),
]  # fmt: skip

# name, batch, length, GB: works larger than their budget, and some that are not.
PLANS = [
    ("llama-3.2-1b", 8, 2048, 8),
    ("llama-3.1-8b", 4, 2048, 8),
    ("llama-3.1-8b", 8, 2048, 16),
    ("qwen3-4b", 8, 4096, 16),
    ("llama-3.1-8b", 1, 32768, 16),
    ("phi-4", 4, 4096, 24),
    ("qwen3-4b", 8, 4096, 24),
    ("llama-3.1-8b", 8, 4096, 24),
    ("llama-3.1-8b", 16, 4096, 40),
    ("qwen3-4b", 1, 65536, 40),
    ("llama-3.1-8b", 1, 65536, 40),
    ("qwen3-14b", 16, 4096, 80),
]


def clear() -> None:
    import torch

    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def run(model: Any, work: Work, *, graphs: bool = False, steps: int = 2) -> dict[str, Any]:
    """Some steps and what they took. Out of memory is an answer too."""
    import torch

    optimiser, batch = optimiser_of(work, model), inputs_of(work)
    clear()
    seconds, loss = [], None
    try:
        install(model, work, graphs)
        for _ in range(steps):
            torch.cuda.synchronize()
            begun = time.perf_counter()
            for _ in range(work.accumulation):
                output = model(**batch)
                output.loss.backward()
                loss = output.loss.detach()
                del output
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
        found = {"ok": True, "loss": round(float(loss), 4), "seconds": round(min(seconds[1:]), 4)}
    except torch.cuda.OutOfMemoryError:
        found = {"ok": False}
    reserved = torch.cuda.max_memory_reserved()
    free, total = torch.cuda.mem_get_info()
    found |= {
        "allocated": torch.cuda.max_memory_allocated(),
        "reserved": reserved,
        "context": total - free - torch.cuda.memory_reserved(),
    }
    optimiser.zero_grad(set_to_none=True)
    del optimiser, batch
    return found


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
    )
    policy = work.policy if isinstance(work.policy, str) else list(work.policy)
    return {"model": work.model.name, "policy": policy, **{name: getattr(work, name) for name in names}}


def works() -> Iterator[tuple[str, str, list[tuple[Work, bool]]]]:
    for name, method, cases in ROWS:
        info, group = text_only(name), []
        for batch, length, policy, more in cases:
            more = dict(more)
            graphs = more.pop("graphs", False)
            if policy == "mixed":
                layers = info.shape.layers
                policy = ("offload",) * (layers // 3) + ("recompute",) * (layers // 3)
                policy += ("keep",) * (layers - len(policy))
            options = {
                "rank": 32,
                "method": method,
                "batch": batch,
                "length": length,
                "policy": policy,
                **more,
            }
            group.append((Work.of(info, **options), graphs))
        yield name, method, group


class Output:
    """The file that the rows go to, written anew after each."""

    def __init__(self, path: Path):
        import bitsandbytes
        import peft
        import torch
        import transformers

        self.path = path
        libraries = {m.__name__: m.__version__ for m in (torch, transformers, peft, bitsandbytes)}
        self.data: dict[str, Any] = {
            "what": "peaks of torch's allocator over real steps on random weights, by tests/memory/measure.py",
            "card": torch.cuda.get_device_name(),
            "libraries": libraries,
            "date": time.strftime("%Y-%m-%d"),
            "rows": [],
        }

    def add(self, row: dict[str, Any]) -> None:
        self.data["rows"].append(row)
        self.path.write_text(json.dumps(self.data, indent=1) + "\n", encoding="utf-8")


def measure_rows(path: Path, minutes: float, only: str) -> None:
    output, end = Output(path), time.monotonic() + 60 * minutes
    gpu = catalog.gpu("H200")
    for name, method, group in works():
        if only not in name or time.monotonic() > end:
            continue
        begun = time.monotonic()
        model = build(group[0][0])
        print(f"# {name} {method} made in {time.monotonic() - begun:.1f} s", flush=True)
        for work, graphs in group:
            if time.monotonic() > end:
                print("# out of time", flush=True)
                break
            found = run(model, work, graphs=graphs, steps=6 if graphs else 2)
            output.add({**asked(work), "graphs": graphs, **found})
            said = estimate_work(work, gpu)
            error = 100 * (said.tensors / found["allocated"] - 1)
            share = 100 * (said.reserved / found["reserved"] - 1)
            print(
                f"{work!s:72s} allocated {found['allocated'] / 2**30:7.3f} formulas {error:+5.1f} % "
                f"reserved {found['reserved'] / 2**30:7.3f} {share:+5.1f} % {found}",
                flush=True,
            )
            clear()
        del model
        clear()


def alternatives(made: Work) -> Iterator[Work]:
    """Other plans for the same step: each uniform policy, at the plan's micro-batch, half and twice of it."""
    sequences = made.batch * made.accumulation
    sizes = {made.batch, max(1, made.batch // 2), min(sequences, 2 * made.batch)}
    for size in sorted(size for size in sizes if sequences % size == 0):
        for policy in (*NAMED, "sloth"):
            yield made.but(batch=size, accumulation=sequences // size, policy=policy)


def measure_plans(path: Path, minutes: float) -> None:
    import torch

    output, end = Output(path), time.monotonic() + 60 * minutes
    card, total = catalog.gpu("H200"), torch.cuda.mem_get_info()[1]
    for name, batch, length, gb in PLANS:
        if time.monotonic() > end:
            print("# out of time", flush=True)
            return
        info = text_only(name)
        asked_for = Work.of(info, batch=batch, length=length, rank=32)
        budget = Budget.of(card, gb=gb, ram_gb=96)
        made = plan(asked_for, budget)
        print(made, flush=True)
        torch.cuda.set_per_process_memory_fraction(1.0)
        model = build(asked_for)
        clear()
        # The driver's own memory is outside of what torch counts.
        context = total - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()
        torch.cuda.set_per_process_memory_fraction((gb * 2**30 - context) / total)
        tried = [("plan", made.work)]
        for other in alternatives(made.work):
            answer = estimate_work(other, card)
            if answer.total <= budget.device and answer.host <= budget.host and other != made.work:
                tried.append(("other", other))
        # The ones that the model thinks fastest: what else could have been the best.
        tried[1:] = sorted(tried[1:], key=lambda pair: step_seconds(pair[1], card))[:5]
        for who, work in tried:
            if time.monotonic() > end:
                break
            found = run(model, work, steps=3)
            row = {"who": who, "gb": gb, **asked(work), **found}
            row["predicted_seconds"] = round(step_seconds(work, card), 4)
            row["predicted_bytes"] = estimate_work(work, card).total
            output.add(row)
            used = 100 * (found["reserved"] + found["context"]) / (gb * 2**30)
            print(
                f"  {who:5s} {work!s:64s} {found} uses {used:.0f} % said {row['predicted_seconds']} s",
                flush=True,
            )
            clear()
        del model
        clear()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("rows", "plans"))
    parser.add_argument("output", type=Path)
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--only", default="", help="rows: only models with this in their name")
    options = parser.parse_args()
    if options.what == "rows":
        measure_rows(options.output, options.minutes, options.only)
    else:
        measure_plans(options.output, options.minutes)
