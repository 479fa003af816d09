"""The engine on a CPU against transformers + peft: SmolLM2-135M with LoRA on all projections, batch 2, length 256.

    python kernels/bench/cpu.py [--steps 12]
    python kernels/bench/cpu.py --ends 200       # where a training of 200 steps ends, 2×64

Each contestant in a process of its own, a step of the one after a step of the other, so that both meet the same
weather. Prints seconds a step (median; the clock's, and the processor's), the peak of memory above the loaded model,
and the ratio of each pair of steps (median, and the middle half).
With ``--ends``, the loss on held-out text before and after as many steps on other text, for either contestant and for
transformers + peft with another seed of the adapters: what is noise, and what would be more.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

# Steps that are not timed: memory comes to its size, and the first compute what they keep.
_WARM = 2


def contestant(who: str, seed: int = 0) -> Any:
    """SmolLM2 with fp32 adapters over what this CPU computes in, the engine in it or not."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from sloth_nb.catalog.embedded import default_model_path
    from sloth_nb.models.precision import choose_dtype

    torch.manual_seed(seed)
    dtype = choose_dtype(None, torch.device("cpu"))
    model = AutoModelForCausalLM.from_pretrained(default_model_path(), dtype=dtype)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules=targets)).train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if who == "sloth_nb":
        from sloth_nb.models.install import install

        install(model, "sloth")
    return model


def ends(who: str, seed: int, steps: int) -> dict[str, float]:
    """The loss on 32 held-out sequences before and after training."""
    import torch
    from transformers import AutoTokenizer

    from sloth_nb.catalog.embedded import default_model_path
    from sloth_nb.data.examples import example

    model, tokenizer = contestant(who, seed), AutoTokenizer.from_pretrained(default_model_path())
    text = "\n".join(json.dumps(row) for row in example("arithmetic", "train"))
    ids = torch.tensor(tokenizer(text)["input_ids"])
    rows = ids[: ids.numel() // 64 * 64].view(-1, 64)
    held_out, rows = rows[-32:], rows[:-32]
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-4)
    order = torch.Generator().manual_seed(0)

    def measured() -> float:
        with torch.no_grad():
            return float(model(input_ids=held_out, labels=held_out, use_cache=False).loss)

    before = measured()
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (2,), generator=order)]
        model(input_ids=batch, labels=batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return {"before": before, "after": measured()}


def serve(who: str) -> None:
    """Trains a step for each line that comes in, and tells of it in one that goes out."""
    import psutil
    import torch

    model = contestant(who)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, 40000, (2, 256), generator=torch.Generator().manual_seed(0))
    process = psutil.Process()
    base = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while True:
            peak = max(peak, process.memory_info().rss)
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    for _ in sys.stdin:
        started, worked = time.perf_counter(), time.process_time()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        step = {
            "clock": time.perf_counter() - started,
            "busy": time.process_time() - worked,
            "above": peak - base,
            "loss": float(loss.detach()),
        }
        print(json.dumps(step), flush=True)


class Served:
    """A contestant in a process of its own."""

    def __init__(self, who: str):
        self.who, command = who, [sys.executable, __file__, "--only", who]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.steps: list[dict[str, float]] = []

    def step(self) -> None:
        print(file=self.process.stdin, flush=True)
        said = self.process.stdout.readline()
        if not said:
            raise SystemExit(f"{self.who} ended early; echo | python {__file__} --only '{self.who}' says why")
        self.steps.append(json.loads(said))

    def median(self, what: str) -> float:
        return statistics.median(step[what] for step in self.steps[_WARM:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--ends", type=int, metavar="STEPS")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ends:
        for who, seed in (("transformers + peft", 0), ("sloth_nb", 0), ("transformers + peft", 1)):
            found = ends(who, seed, args.ends)
            print(f"{who:<20} seed {seed}: {found['before']:.4f} → {found['after']:.4f}")
        return
    if args.only:
        serve(args.only)
        return
    both = {who: Served(who) for who in ("transformers + peft", "sloth_nb")}
    for _ in range(_WARM + args.steps):
        for one in both.values():
            one.step()
    for who, one in both.items():
        print(
            f"{who:<20} {one.median('clock'):.2f} s a step, {one.median('busy'):.2f} s of processor, "
            f"{one.steps[-1]['above'] / 1e6:.0f} MB above the model, first loss {one.steps[0]['loss']:.4f}"
        )
    theirs, ours = both.values()
    ratios = [t["clock"] / o["clock"] for t, o in zip(theirs.steps, ours.steps, strict=True)][_WARM:]
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(
        f"sloth_nb: {middle:.2f} × the steps a second ({low:.2f} to {high:.2f}), "
        f"{theirs.median('busy') / ours.median('busy'):.2f} × by processor time, "
        f"{ours.steps[-1]['above'] / theirs.steps[-1]['above']:.2f} × the memory"
    )


if __name__ == "__main__":
    main()
