"""The rows of a measured file beside what the memory model says of them, as a table in Markdown.

    PYTHONPATH=.:kernels:widgets python tests/memory/table.py tests/memory/data/engine_h200.json [--dry]

``--dry`` adds the dry run, some seconds a row.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from real_models import work_of

from sloth_nb import catalog
from sloth_nb.memory import GB, estimate_work

__all__ = ["lines"]


def lines(data: dict[str, Any], dry: bool = False) -> Iterator[str]:
    """One line a row: measured GB of tensors and of reserved memory, and by how many percent each answer is off."""
    ways = ["formulas", *(["dry run"] if dry else [])]
    heads = ["work", "measured", *ways, "reserved", *ways]
    yield f"| {' | '.join(heads)} |"
    yield f"|{' --- |' * len(heads)}"
    card = catalog.gpu(data["card"])
    for row in data["rows"]:
        if not row["ok"]:
            continue
        work = work_of(row)
        said = estimate_work(work, card)
        answers = [said]
        if dry:
            from sloth_nb.memory.dry_run import dry_run

            answers.append(dry_run(work, card))
        cells = [
            str(work),
            f"{row['allocated'] / GB:.2f}",
            *(_off(x.tensors, row["allocated"]) for x in answers),
        ]
        cells += [f"{row['reserved'] / GB:.2f}", *(_off(x.reserved, row["reserved"]) for x in answers)]
        yield f"| {' | '.join(cells)} |"


def _off(said: int, measured: int) -> str:
    return f"{100 * (said / measured - 1):+.1f} %"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--dry", action="store_true", help="the dry run, too")
    options = parser.parse_args()
    print("\n".join(lines(json.loads(options.file.read_text("utf-8")), options.dry)))
