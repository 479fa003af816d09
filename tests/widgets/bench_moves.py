"""How long the two panels take to answer: a move of each slider, the picture that follows, a search, a new card.

    python tests/widgets/bench_moves.py

Every combination of these models, cards and ways of training; 55 moves each, after five that nobody counts. A move
is what the slider waits for; its picture is drawn right after it, from a timer, and skips moves that came meanwhile.
Prints milliseconds.
"""

import statistics
import time
from dataclasses import replace
from itertools import product

from sloth_nb_widgets import ModelPicker, VramEstimator

from sloth_nb import catalog

MODELS = ("llama-3.3-70b-instruct", "qwen3-30b-a3b", "qwen3-14b", "llama-3.1-8b", "gemma-3-12b-it", "phi-4")
CARDS = ("T4", "A100-40GB", "H200")
WAYS = (
    {"policy": "recompute"},
    {"policy": "sloth"},
    {"policy": "auto"},
    {"policy": "auto", "task": "grpo"},
    {"policy": "auto", "method": "full"},
)
SLIDERS = {"length": (4096, 64), "batch": (1, 1)}


def took(action) -> float:
    start = time.perf_counter()
    action()
    return (time.perf_counter() - start) * 1e3


def moved(panel: VramEstimator, slider: str) -> tuple[float, float, float]:
    """Milliseconds of a move and of a picture (medians), and of the slowest picture."""
    first, step = SLIDERS[slider]
    moves, pictures = [], []
    for turn in range(60):
        moves.append(took(lambda value=first + step * turn: setattr(panel, slider, value)))
        pictures.append(took(panel._view))
    return statistics.median(moves[5:]), statistics.median(pictures[5:]), max(pictures[5:])


def estimator() -> None:
    VramEstimator.snapshot_delay = 3600
    rows = []
    for model, card, way, slider in product(MODELS, CARDS, WAYS, SLIDERS):
        panel = VramEstimator(model, gpu=card, length=4096, **way)
        assert panel.widget is not None
        panel._pulse.action = lambda: None  # pictures are drawn here, to be timed apart
        rows.append((*moved(panel, slider), f"{slider} of {model} on {card}, {way}"))
    pictures = sorted(row[1] for row in rows)
    print(f"{len(rows)} sliders: a move {max(row[0] for row in rows):.2f} ms at the most")
    print(
        f"its picture: median {statistics.median(pictures):.1f}, 90 % within {pictures[int(0.9 * len(rows))]:.1f}, "
        f"{sum(picture <= 5 for picture in pictures)} of {len(rows)} within 5; the slowest:"
    )
    for _, picture, slowest, name in sorted(rows, key=lambda row: -row[1])[:8]:
        print(f"  {picture:5.1f} (at most {slowest:5.1f})  {name}")


def picker() -> None:
    ModelPicker.snapshot_delay = 3600
    known = catalog.models()
    entries = [replace(info, name=f"{info.name}-{copy}") for copy in range(5) for info in known][:300]
    panel = ModelPicker(entries)
    assert panel.widget is not None
    new_card = statistics.median(took(lambda card=card: setattr(panel, "gpu", card)) for card in CARDS)
    queries = ("q", "qw", "qwen", "llama 8b", "apache", "")
    search = statistics.median(took(lambda query=query: setattr(panel, "query", query)) for query in queries)
    print(f"picker of {len(entries)} models: a new card {new_card:.1f} ms, a search {search:.1f} ms")


if __name__ == "__main__":
    estimator()
    picker()
