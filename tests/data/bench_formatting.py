"""How long formatting, tokenising and masking 100,000 Alpaca rows takes, against the bare tokenizer.

    python tests/data/bench_formatting.py [rows]

Needs the Qwen3 tokenizer (fetched once, see ``makers``). Both run in this process, alternating, on the
cores the machine has. CPU time is shown too: on a machine that others use, it is the steadier of the two.
"""

import os
import random
import sys
import time
from collections.abc import Callable
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
    times: dict[str, list[tuple[float, float]]] = {"bare": [], "backend": [], "ours": []}
    prepared: Any = None

    def clock(name: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        made = work()
        times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        return made

    for _ in range(3):
        clock("bare", lambda: tokenizer(texts))
        clock("backend", lambda: [e.ids for e in tokenizer.backend_tokenizer.encode_batch(texts)])
        prepared = clock("ours", lambda: prepare(data, tokenizer))
    best = {name: (min(w for w, _ in rounds), min(c for _, c in rounds)) for name, rounds in times.items()}
    print(
        f"{rows:,} rows, {prepared.report.tokens:,} tokens, {os.cpu_count()} cores; wall and CPU seconds, best of 3"
    )
    print("bare tokenizer(texts)         {:7.2f} {:7.2f}".format(*best["bare"]))
    print("tokenizers' own encode_batch  {:7.2f} {:7.2f}".format(*best["backend"]))
    print("prepare(rows)                 {:7.2f} {:7.2f}".format(*best["ours"]))
    print(
        "ratio to tokenizer(texts)     {:7.3f} {:7.3f}  (bar: 1.15)".format(
            *_ratio(best["ours"], best["bare"])
        )
    )
    print("ratio to encode_batch         {:7.3f} {:7.3f}".format(*_ratio(best["ours"], best["backend"])))
    lengths = [len(ids) for ids in prepared.dataset["input_ids"]]
    start = time.perf_counter()
    packs = pack(lengths, 2048)
    seconds = time.perf_counter() - start
    print(
        f"packing {len(lengths):,} lengths      {seconds:7.2f} s, {sum(lengths) / len(packs) / 2048:.2%} full"
    )


def _ratio(ours: tuple[float, float], theirs: tuple[float, float]) -> tuple[float, float]:
    return ours[0] / theirs[0], ours[1] / theirs[1]


if __name__ == "__main__":
    main()
