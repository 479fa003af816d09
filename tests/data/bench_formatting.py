"""How long formatting, tokenising and masking 100,000 Alpaca rows takes, against the bare tokenizer.

    python tests/data/bench_formatting.py [rows]

Needs the Qwen3 tokenizer (fetched once, see ``makers``). Both run in this process, alternating, on the
cores the machine has; the better of three rounds counts for either.
"""

import os
import random
import sys
import time
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "true"
sys.path.insert(0, str(Path(__file__).parent))
import makers

from sloth_nb.data import ChatTemplate, prepare, recognise, to_messages
from sloth_nb.data.packing import pack

WORDS = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8").split()


def alpaca(rows: int) -> list[dict[str, str]]:
    """Rows of Alpaca's shape and lengths (about 60, 0 or 60, 270 characters), from the licence's words."""
    draw = random.Random(0)

    def words(mean: float) -> str:
        return " ".join(draw.choices(WORDS, k=max(2, int(draw.lognormvariate(0, 0.6) * mean))))

    return [
        {"instruction": words(9), "input": words(9) if draw.random() < 0.4 else "", "output": words(38)}
        for _ in range(rows)
    ]


def main() -> None:
    import datasets

    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    tokenizer = makers.tokenizer("qwen-3")
    data = datasets.Dataset.from_list(alpaca(rows))
    schema, template = recognise(data), ChatTemplate(tokenizer)
    texts = [template.render(to_messages(row, schema)) for row in data]
    bare, ours, backend = [], [], []
    prepared: Any = None
    for _ in range(3):
        start = time.perf_counter()
        tokenizer(texts)
        bare.append(time.perf_counter() - start)
        start = time.perf_counter()
        [e.ids for e in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]
        backend.append(time.perf_counter() - start)
        start = time.perf_counter()
        prepared = prepare(data, tokenizer)
        ours.append(time.perf_counter() - start)
    tokens = prepared.report.tokens
    print(f"{rows:,} rows, {tokens:,} tokens, {os.cpu_count()} cores")
    print(f"bare tokenizer(texts)         {min(bare):7.2f} s")
    print(f"tokenizers' own encode_batch  {min(backend):7.2f} s")
    print(f"prepare(rows)                 {min(ours):7.2f} s")
    print(f"ratio to tokenizer(texts)     {min(ours) / min(bare):7.3f}  (bar: 1.15)")
    print(f"ratio to encode_batch         {min(ours) / min(backend):7.3f}")
    lengths = [len(ids) for ids in prepared.dataset["input_ids"]]
    start = time.perf_counter()
    packs = pack(lengths, 2048)
    seconds = time.perf_counter() - start
    print(
        f"packing {len(lengths):,} lengths      {seconds:7.2f} s, {sum(lengths) / len(packs) / 2048:.2%} full"
    )


if __name__ == "__main__":
    main()
