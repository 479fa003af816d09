"""Steps in each contestant's own SFTTrainer, side by side: what a notebook's user waits for.

    python kernels/bench/trainer.py FOLDER WHO CASE...

FOLDER is a checkpoint that ``training.py make`` wrote, WHO one of hf, unsloth, sloth_nb, a CASE is BATCHxLENGTH. QLoRA
NF4, rank 32 on all projections, 8-bit AdamW, gradients clipped, the loss logged at every step, rows of random tokens
that are all as long. One contestant a process. Prints the median step from one's end to the next one's, and tokens/s.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from typing import Any

from training import load

STEPS, WARM = 40, 15


def rows(count: int, length: int, labelled: bool) -> Any:
    """Random token ids; the same for every contestant."""
    import torch
    from datasets import Dataset

    ids = torch.randint(4, 90000, (count, length), generator=torch.Generator().manual_seed(7)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids} if labelled else {"input_ids": ids})


def times_of(model: Any, who: str, tokenizer: Any, batch: int, length: int) -> list[float]:
    """When each step ended."""
    import torch
    from transformers import TrainerCallback

    if who == "sloth_nb":
        from sloth_nb import SFTConfig, SFTTrainer
    else:
        from trl import SFTConfig, SFTTrainer

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            torch.cuda.synchronize()
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder, per_device_train_batch_size=batch, max_steps=STEPS, logging_steps=1,
            gradient_accumulation_steps=1, optim="adamw_8bit", learning_rate=1e-4, bf16=True, max_length=length,
            report_to="none", save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=rows(batch * STEPS, length, who == "sloth_nb"),
            processing_class=tokenizer,
        )
        trainer.add_callback(Clock())
        trainer.train()
    return ends


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("who", choices=["hf", "unsloth", "sloth_nb"])
    parser.add_argument("cases", nargs="+", metavar="case")
    args = parser.parse_args()
    shapes = [tuple(map(int, case.split("x"))) for case in args.cases]
    model = load(args.folder, args.who, "sloth", max(length for _, length in shapes))

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.folder)
    for case, (batch, length) in zip(args.cases, shapes, strict=True):
        ends = times_of(model, args.who, tokenizer, batch, length)
        step = statistics.median(
            after - before for before, after in zip(ends[WARM:], ends[WARM + 1 :], strict=False)
        )
        row = {
            "who": args.who,
            "case": case,
            "step_ms": round(step * 1e3, 1),
            "tok_s": round(batch * length / step),
        }
        print("RESULT " + json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
