"""What the allocator leaves unused: walks over a few layers tell of all of them."""

import pytest

from sloth_nb import catalog
from sloth_nb.memory import Work, estimate_work, formulas, unused
from sloth_nb.memory.layers import Passes
from sloth_nb.memory.unused import Around, Kind, walk

MIB = 2**20
LAYERS = 12
H200 = catalog.gpu("H200")
# A forward that takes a wide tensor, lets it go, and leaves an output; nothing happens on the way back.
WIDE = Kind(Passes((228 * MIB, ~0, 128 * MIB), {"out": 1}, (), {}, {}), {}, 128 * MIB, 128 * MIB)
NARROW = Kind(Passes((128 * MIB, 64 * MIB, ~1), {"out": 0}, (), {}, {}), {}, 128 * MIB, 128 * MIB)


def test_outputs_in_the_places_of_wider_tensors_cost_a_wide_one_a_layer():
    assert walk([WIDE], (LAYERS,), Around(128 * MIB, 0, ())).each == (228 * MIB,)


def test_without_anything_wider_a_layer_costs_what_it_holds():
    assert walk([NARROW], (LAYERS,), Around(128 * MIB, 0, ())).each == (128 * MIB,)


def test_the_loss_comes_on_top_where_it_fits_no_hole():
    without, with_it = (
        walk([NARROW], (4,), Around(128 * MIB, 0, loss)).reserved for loss in ((), (900 * MIB,))
    )
    assert without + 600 * MIB < with_it <= without + 900 * MIB  # later tensors stand where it stood


def test_what_goes_to_the_host_leaves_its_place_to_the_layer_after_next():
    moving = Kind(NARROW.passes, {"input": 128 * MIB}, 0, 128 * MIB)
    held, moved = (walk([kind], (LAYERS,), Around(128 * MIB, 0, ())) for kind in (NARROW, moving))
    assert moved.each == (0,) and moved.reserved < held.reserved / 2


def test_layers_that_repeat_themselves_for_long_are_not_walked_through_to_the_end():
    assert walk([WIDE], (80,), Around(128 * MIB, 0, ())).counts == (13,)
    assert walk([WIDE, NARROW], (8, 80), Around(128 * MIB, 0, ())).counts[0] == 8


@pytest.mark.parametrize(
    ("name", "options", "card"),
    [
        ("gemma-3-27b-it", {"policy": "lean", "batch": 2, "length": 4096, "text_only": True}, "RTX 4090"),
        ("mistral-small-24b-instruct-2501", {"policy": "sloth", "batch": 4, "length": 8192}, "H200"),
        ("smollm2-135m", {"policy": "sloth", "method": "lora-8bit", "batch": 4, "length": 8192}, "A100"),
        ("qwen3-32b", {"policy": "offload", "method": "lora-8bit", "batch": 8, "length": 8192}, "H200"),
        ("gemma-3-12b", {"policy": ("keep", "recompute") * 24, "batch": 1, "text_only": True}, "H200"),
    ],
)
def test_what_repeats_tells_of_all_layers_within_three_percent(name, options, card, monkeypatch):
    work, gpu = Work.of(name, **options), catalog.gpu(card)
    some = estimate_work(work, gpu).total
    for known in (formulas._ANSWERS, formulas._WALKS):
        known.clear()
    monkeypatch.setattr(unused, "_repeats", lambda grown: False)
    every = estimate_work(work, gpu).total
    for known in (formulas._ANSWERS, formulas._WALKS):
        known.clear()
    assert some == pytest.approx(every, rel=0.03)


@pytest.mark.parametrize("policy", ["keep", "recompute", "lean", "offload", "sloth"])
def test_between_rounder_numbers_of_tokens_it_goes_in_a_straight_line(policy):
    work = Work.of("llama-3.1-8b", batch=1, policy=policy, mlp_tile=None, graphs=False)
    low, middle, high = (estimate_work(work.but(length=n), H200) for n in (8192, 9216, 10240))
    assert low.reserved * 0.97 <= middle.reserved <= high.reserved * 1.03
    assert middle.kinds["fragmentation"] > 0


def test_a_long_step_that_recomputes_leaves_gigabytes_unused_and_one_that_offloads_does_not():
    work = Work.of("llama-3.1-8b", batch=1, length=16384, rank=32)
    unused = [
        estimate_work(work.but(policy=p), H200).kinds["fragmentation"] / 2**30
        for p in ("recompute", "offload")
    ]
    assert unused[0] > 3 and unused[1] < 1
