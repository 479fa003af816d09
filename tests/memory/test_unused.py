"""What the allocator leaves unused: walks over a few layers tell of all of them."""

import pytest

from sloth_nb import catalog
from sloth_nb.memory import Work, estimate_work
from sloth_nb.memory.layers import Passes
from sloth_nb.memory.unused import LAYERS, MOST, Around, Kind, walk, walked_counts

MIB = 2**20
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


def test_of_many_kinds_the_uppermost_are_walked_through():
    assert walked_counts([80]) == (LAYERS,)
    assert walked_counts([40, 40]) == (LAYERS, LAYERS)
    counts = walked_counts([7, 1] * 10)
    assert sum(counts) == MOST and counts[-4:] == (7, 1, 7, 1) and counts[0] == 0


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
