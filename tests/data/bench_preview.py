"""How long a 2 GB JSONL file takes to be opened in a DatasetPreview, and how much memory that needs.

    python tests/data/bench_preview.py [gigabytes]

Writes the file into a temporary folder and removes it.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from sloth_nb_widgets import DatasetPreview


def write(path: Path, size: int) -> int:
    """A file of about ``size`` bytes; how many rows it has."""
    rows = 0
    block = "".join(
        json.dumps({"instruction": f"What is {i}?", "input": "", "output": f"It is {i}. " * 18}) + "\n"
        for i in range(10_000)
    ).encode()
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(block)
            rows += 10_000
    return rows


def peak() -> float:
    """This process' largest resident set so far, in MB (Linux counts in KB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    size = float(sys.argv[1]) if len(sys.argv) > 1 else 2.0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.jsonl"
        small = Path(folder) / "small.jsonl"
        small.write_text('{"question": "q", "answer": "a"}\n', encoding="utf-8")
        rows = write(path, int(size * 1e9))
        DatasetPreview(small)._view()  # what is imported once counts for neither
        before, start = peak(), time.perf_counter()
        preview = DatasetPreview(path)
        html = preview._view()
        opened, used = time.perf_counter() - start, peak() - before
        print(f"{path.stat().st_size / 1e9:.2f} GB, {rows:,} rows")
        print(
            f"opened and drawn in {opened:6.2f} s (bar: 2), {used:6.1f} MB more (bar: 300), {len(html):,} bytes sent"
        )
        print(f"                    {preview._summary()}")
        start = time.perf_counter()
        preview.row = rows
        preview._view()
        print(
            f"jumped to row {rows:,} in {time.perf_counter() - start:6.2f} s, {peak() - before:6.1f} MB more in all"
        )
        start = time.perf_counter()
        preview.row = rows // 2
        preview._view()
        print(f"and to the middle in {time.perf_counter() - start:6.3f} s")


if __name__ == "__main__":
    main()
