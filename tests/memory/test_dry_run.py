"""The dry run against the formulas: the engine's own code says what the formulas say."""

import threading
import time

import pytest
import torch

from sloth_nb import catalog
from sloth_nb.errors import ModelError, TrainingError
from sloth_nb.memory import Work, estimate_work
from sloth_nb.memory.caching_allocator import CachingAllocator
from sloth_nb.memory.dry_run import _sample, dry_run, runs_within
from sloth_nb.memory.whole_step import Stretch, WholeStep

H200 = catalog.gpu("H200")
CASES = [
    ("llama-3.1-8b", {"policy": "keep"}),
    ("llama-3.1-8b", {"policy": "recompute", "batch": 1, "length": 16384}),
    ("llama-3.1-8b", {"policy": "lean", "rank": 64}),
    ("llama-3.1-8b", {"policy": "offload", "length": 4096}),
    ("llama-3.1-8b", {"policy": ["offload"] * 20 + ["keep"] * 12, "length": 4096}),
    ("llama-3.1-8b", {"policy": "sloth", "batch": 1, "length": 16384}),
    ("llama-3.1-8b", {"policy": ["offload-all"] * 16 + ["keep"] * 16}),
    ("llama-3.1-8b", {"policy": "offload-all", "batch": 1, "length": 16384}),
    ("qwen3-4b", {"policy": "recompute", "rank": 64, "accumulation": 2}),
    ("qwen3-4b", {"policy": "recompute", "rank": 64, "accumulation": 2, "graphs": False}),
    ("qwen3-4b", {"policy": "recompute", "mlp_tile": 2048}),
    ("qwen3-4b", {"policy": "keep", "packed": True}),
    ("qwen3-0.6b", {"method": "full", "policy": "recompute"}),
    ("llama-3.2-1b", {"method": "full", "policy": "keep", "optimiser": "adamw_torch", "batch": 1}),
    ("gemma-3-1b-it", {"method": "lora", "policy": "recompute"}),
    ("gemma-3-4b-it", {"policy": "offload", "text_only": True}),
    ("phi-4", {"method": "lora-8bit", "policy": "recompute"}),
    ("phi-4-mini-instruct", {"policy": "lean", "batch": 4}),
    ("smollm2-135m-instruct", {"policy": "recompute", "accumulation": 4}),
]


@pytest.mark.parametrize(
    ("name", "options"), CASES, ids=lambda x: x if isinstance(x, str) else "-".join(map(str, x))
)
def test_the_formulas_say_what_the_engine_does(name, options):
    work = Work.of(name, **options)
    ran, said = dry_run(work, H200), estimate_work(work, H200)
    assert ran.depth == "dry run"
    assert said.tensors == pytest.approx(ran.tensors, rel=0.015)
    assert sum(ran.kinds.values()) == ran.total


@pytest.mark.parametrize("card", ["T4", "A100", "L4"])
def test_other_cards_take_other_kernels_and_still_agree(card):
    work = Work.of("llama-3.2-1b", policy="recompute", length=4096)
    gpu = catalog.gpu(card)
    assert estimate_work(work, gpu).tensors == pytest.approx(dry_run(work, gpu).tensors, rel=0.03)


def test_a_dry_run_disturbs_nobody():
    """A training thread beside it sees real tensors and real devices."""
    from sloth_nb_kernels.launch import on_gpu

    going, wrong = threading.Event(), []

    def train():
        while not going.is_set():
            x = torch.ones(4, requires_grad=True)
            (x * 2).sum().backward()
            if on_gpu(x) or type(x) is not torch.Tensor or x.grad.tolist() != [2.0] * 4:
                wrong.append(x)
            time.sleep(0.002)

    beside = threading.Thread(target=train)
    beside.start()
    try:
        dry_run(Work.of("smollm2-135m-instruct"), H200)
    finally:
        going.set()
        beside.join()
    assert not wrong
    assert type(torch.ones(1)) is torch.Tensor


def test_the_torch_optimiser_is_counted_as_cuda_runs_it():
    """On CUDA AdamW takes its foreach way, which makes every square root at once."""
    work = Work.of("smollm2-360m-instruct", method="full", batch=1, length=64, optimiser="adamw_torch")
    plain = dry_run(work, H200)
    assert plain.moment == "optimiser step"
    # weights, gradients, two moments and the square roots, all 16-bit
    assert plain.tensors == pytest.approx(5 * 2 * work.model.parameters, rel=0.05)
    assert dry_run(work.but(optimiser="adamw_torch_fused"), H200).tensors < 0.9 * plain.tensors


def test_what_it_cannot_run_is_refused_with_the_reason():
    with pytest.raises(ModelError, match="whisper-tiny"):
        dry_run(Work.of("whisper-tiny", engine="sloth"), H200)
    with pytest.raises(TrainingError, match="CPU"):
        dry_run(Work.of("smollm2-135m-instruct"), catalog.cpu(16))
    with pytest.raises(TrainingError, match="formulas"):
        dry_run(Work.of("smollm2-135m-instruct", engine="hf"), H200)


def test_few_layers_stand_for_many():
    policies = ("offload",) * 10 + ("keep",) * 6
    chosen, stands_for = _sample(policies, ("full",) * 16)
    assert chosen == [0, 1, 2, 8, 9, 10, 11, 12, 14, 15]
    assert [chosen[place] for place in stands_for] == [0, 1, *[2] * 6, 8, 9, 10, 11, *[12] * 2, 14, 15]
    assert {policies[i] == policies[chosen[place]] for i, place in enumerate(stands_for)} == {True}


def test_every_kind_of_layer_is_among_the_few():
    kinds = ("sliding",) * 5 + ("full",)
    chosen, stands_for = _sample(("keep",) * 24, kinds * 4)
    assert len(chosen) <= 6
    assert all((kinds * 4)[i] == (kinds * 4)[chosen[place]] for i, place in enumerate(stands_for))


MIB = 2**20


def step_of_one_layer():
    """A layer's forward leaves its tape behind; its backward takes the tape of the layer and makes a gradient."""
    begin = Stretch("begin", [("come", 0, 4 * MIB)])
    up = Stretch(("forward", 0), [("come", 1, 40 * MIB), ("come", 2, 10 * MIB), ("go", 1, 40 * MIB)])
    down = Stretch(("backward", 0), [("inside", -1, 60 * MIB), ("come", 3, 2 * MIB), ("go", 2, 10 * MIB)])
    return [begin, up, down]


def test_stretches_add_up_to_the_whole():
    allocator = CachingAllocator()
    moment, left = WholeStep(step_of_one_layer(), [0] * 3).run(allocator)
    assert allocator.allocated_peak == (4 + 3 * 10 + 60) * MIB and moment == "backward"
    assert sorted(block.size // MIB for block in left) == [2, 2, 2, 4]


def test_gradients_that_have_buffers_are_not_made():
    _, left = WholeStep(step_of_one_layer(), [0] * 3, buffers=True).run(CachingAllocator())
    assert [block.size // MIB for block in left] == [4]


def test_a_sum_stands_where_its_first_part_stood():
    begin = Stretch(
        "begin", [("come", 0, 30 * MIB), ("come", 1, 30 * MIB), ("take over", 2, 0), ("go", 1, 30 * MIB)]
    )
    allocator = CachingAllocator()
    WholeStep([begin], []).run(allocator)
    assert allocator.allocated == 30 * MIB and allocator.allocated_peak == 60 * MIB


def test_a_layer_lets_go_of_what_its_neighbour_made():
    up = [
        Stretch(("forward", i), [("come", 10 + i, 20 * MIB)] + [("go", 9 + i, 20 * MIB)] * (i > 0))
        for i in (0, 1)
    ]
    down = [Stretch(("backward", i), []) for i in (0, 1)]
    allocator = CachingAllocator()
    _, left = WholeStep([Stretch("begin"), *up, *down], [0, 1, 1, 1]).run(allocator)
    assert len(left) == 1 and allocator.allocated_peak == 40 * MIB


def test_what_goes_some_layers_later_goes_though_layers_between_were_left_out():
    """A wide tensor on its way to the host leaves piece by piece, over layers of which only some are run."""
    up = [Stretch(("forward", i), [("come", 0, 30 * MIB)] if i == 0 else []) for i in range(4)]
    up[3].events.append(("go", 0, 30 * MIB))
    down = [Stretch(("backward", i)) for i in range(4)]
    allocator = CachingAllocator()
    _, left = WholeStep([Stretch("begin"), *up, *down], [0, 1, 2, 2, 2, 3]).run(allocator)
    assert left == [] and allocator.allocated == 0


def test_a_work_runs_within_what_it_reserves_and_not_within_what_its_tensors_take():
    work = Work.of("llama-3.2-1b", batch=1, length=4096, policy="recompute", graphs=False)
    said = dry_run(work, H200)
    assert runs_within(work, H200, said.total)
    assert not runs_within(work, H200, said.tensors)
