"""The engine on a CPU against transformers + peft: SmolLM2-135M with LoRA on all projections, batch 2, length 256.

    OMP_WAIT_POLICY=PASSIVE python kernels/bench/cpu.py [--steps 6]
    OMP_WAIT_POLICY=PASSIVE python kernels/bench/cpu.py --ends 200       # where a training of 200 steps ends, 2×64

Each contestant in a process of its own, three times in turn. Prints seconds a step (median; the clock's, and the
processor's, which other work on the machine disturbs less), the peak of memory above the loaded model, and ratios.
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


def measure(who: str, steps: int) -> dict[str, float]:
    import psutil
    import torch

    model = contestant(who)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, 40000, (2, 256), generator=torch.Generator().manual_seed(0))
    process, over = psutil.Process(), threading.Event()
    base = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    threading.Thread(target=watch, daemon=True).start()
    clock, busy, first = [], [], None
    for _ in range(steps):
        started, worked = time.perf_counter(), time.process_time()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        clock.append(time.perf_counter() - started)
        busy.append(time.process_time() - worked)
        first = float(loss.detach()) if first is None else first
    over.set()
    return {
        "clock": statistics.median(clock[1:]),
        "busy": statistics.median(busy[1:]),
        "above": peak - base,
        "loss": first,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ends", type=int, metavar="STEPS")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.ends:
        for who, seed in (("transformers + peft", 0), ("sloth_nb", 0), ("transformers + peft", 1)):
            found = ends(who, seed, args.ends)
            print(f"{who:<20} seed {seed}: {found['before']:.4f} → {found['after']:.4f}")
        return
    if args.only:
        print(json.dumps(measure(args.only, args.steps)))
        return
    rows: dict[str, list[dict[str, float]]] = {"transformers + peft": [], "sloth_nb": []}
    for _ in range(args.rounds):
        for who, results in rows.items():
            command = [sys.executable, __file__, "--only", who, "--steps", str(args.steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.strip().splitlines()[-1]))
    best = {who: {k: min(r[k] for r in results) for k in results[0]} for who, results in rows.items()}
    for who, row in best.items():
        print(
            f"{who:<20} {row['clock']:.2f} s a step, {row['busy']:.2f} s of processor, "
            f"{row['above'] / 1e6:.0f} MB above the model, first loss {row['loss']:.4f}"
        )
    ours, theirs = best["sloth_nb"], best["transformers + peft"]
    print(
        f"sloth_nb: {theirs['clock'] / ours['clock']:.2f} × the steps a second "
        f"({theirs['busy'] / ours['busy']:.2f} × by processor time), {ours['above'] / theirs['above']:.2f} × the memory"
    )


if __name__ == "__main__":
    main()
