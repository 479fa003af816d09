"""Plans fit their budget, spend it, and refuse with what would fit."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloth_nb import catalog
from sloth_nb.errors import HardwareError
from sloth_nb.memory import Budget, Work, estimate_work, plan, step_seconds

GIB = 2**30
NAMES = ["smollm2-135m-instruct", "llama-3.2-1b", "llama-3.1-8b", "gemma-3-4b-it", "phi-4", "qwen3-14b"]


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    method=st.sampled_from(["qlora", "lora", "full"]),
    batch=st.integers(1, 12),
    length=st.sampled_from([256, 2048, 8192, 65536]),
    gb=st.sampled_from([8, 16, 24, 40, 80]),
    ram=st.sampled_from([2, 13, 200]),
)
def test_a_plan_fits_its_budget_or_is_refused_with_what_would(name, method, batch, length, gb, ram):
    work = Work.of(name, method=method, batch=batch, length=length)
    budget = Budget.of("H200", gb=gb, ram_gb=ram)
    try:
        made = plan(work, budget)
    except HardwareError as error:
        assert f"does not fit {gb}.0 GB" in str(error)
        return
    assert made.estimate.total <= gb * GIB
    assert made.estimate.host <= ram * GIB / 2
    assert made.estimate.total == estimate_work(made.work, budget.gpu).total
    assert made.work.batch * made.work.accumulation == batch
    assert len(made.policies) == work.model.shape.layers


def test_a_card_with_room_keeps_everything():
    made = plan(Work.of("llama-3.1-8b", batch=2), Budget.of("H200"))
    assert set(made.work.policy) == {"keep"}
    assert made.work.accumulation == 1


@pytest.mark.parametrize("gb", [8, 16, 24, 40, 80])
def test_a_budget_smaller_than_the_work_is_spent(gb):
    name = "llama-3.2-3b" if gb == 8 else "llama-3.1-8b"
    work = Work.of(name, batch=1, length={8: 8192, 16: 32768, 24: 65536, 40: 65536, 80: 131072}[gb])
    made = plan(work, Budget.of("H200", gb=gb, ram_gb=400))
    assert estimate_work(work.but(policy="keep"), made.budget.gpu).total > gb * GIB
    assert made.estimate.total >= 0.85 * gb * GIB


@pytest.mark.parametrize(("gb", "captured"), [(141, True), (36, True), (24, False), (16, False)])
def test_a_step_is_captured_where_a_second_one_fits_beside_the_graph(gb, captured):
    work = Work.of("llama-3.1-8b", batch=2, length=2048)
    made = plan(work, Budget.of("H200", gb=gb))
    assert work.captured(made.budget.gpu) and made.work.captured(made.budget.gpu) == captured


def test_what_a_whole_layer_is_too_large_for_goes_to_parts_of_layers():
    work = Work.of("llama-3.1-8b", batch=1, length=131072)
    made = plan(work, Budget.of("H200", gb=80, ram_gb=400))
    assert "keep input + attention + middle" in str(made)


def test_layers_are_kept_from_the_top_where_their_memory_is_soonest_free():
    made = plan(Work.of("llama-3.1-8b", batch=1, length=16384), Budget.of("H200", gb=24, ram_gb=400))
    held = [len(policy.device) for policy in made.policies]
    assert held == sorted(held) and held[0] < held[-1]


def test_more_memory_never_makes_a_plan_slower():
    work = Work.of("qwen3-14b", batch=4, length=4096)
    times = [plan(work, Budget.of("H200", gb=gb, ram_gb=200)).seconds for gb in (16, 20, 24, 32, 48, 96)]
    assert times == sorted(times, reverse=True)


def test_without_ram_nothing_is_offloaded():
    made = plan(Work.of("llama-3.1-8b", batch=1, length=16384), Budget.of("H200", gb=20, ram_gb=0))
    assert not any(policy.host for policy in made.policies) and made.estimate.host == 0


def test_the_refusal_offers_three_changes_that_fit():
    work = Work.of("llama-3.1-8b", batch=1, length=65536)
    budget = Budget.of("H200", gb=8, ram_gb=200)
    with pytest.raises(HardwareError) as caught:
        plan(work, budget)
    said = str(caught.value)
    assert "1. " in said and "2. " in said and "3. " in said
    assert "cut sequences to" in said


def test_a_step_takes_longer_with_less_kept_and_more_tokens():
    card = catalog.gpu("A100")
    work = Work.of("llama-3.1-8b", length=8192)
    keep, recompute, lean = (step_seconds(work.but(policy=p), card) for p in ("keep", "recompute", "lean"))
    assert keep < recompute < lean
    assert step_seconds(work.but(length=16384), card) > 2 * recompute


def test_a_plan_says_what_it_decided():
    made = plan(Work.of("llama-3.1-8b", batch=8), Budget.of("RTX 4090", ram_gb=64))
    assert "tokens at a time" in str(made) and "RTX 4090" in str(made)


def test_embeddings_go_to_host_memory_where_that_leaves_more_activations():
    work = Work.of("llama-3.1-8b", batch=1, length=8192)
    budget = Budget.of("H200", gb=16, ram_gb=64)
    stays, moved = plan(work, budget, embeddings=False), plan(work, budget)
    assert not stays.work.embedding_offload and "embeddings" not in stays.summary()
    assert moved.work.embedding_offload and "embeddings in host memory" in moved.summary()
    assert moved.seconds < stays.seconds
    assert moved.estimate.host >= 2 * work.model.shape.embedding_parameters


@pytest.mark.parametrize(
    ("name", "options", "gpu", "ram"),
    [
        ("llama-3.2-1b", {}, "T4", 64),  # tied to the head, which has to be on the card
        ("llama-3.1-8b", {"method": "full"}, "H200", 64),
        ("llama-3.1-8b", {"engine": "hf"}, "H200", 64),
        ("llama-3.1-8b", {}, "H200", 0),
        ("llama-3.1-8b", {"length": 512}, "H200", 64),  # everything is kept anyway
    ],
)
def test_embeddings_stay_where_moving_them_is_impossible_or_gains_nothing(name, options, gpu, ram):
    work = Work.of(name, **{"batch": 1, "length": 16384, **options})
    assert not plan(work, Budget.of(gpu, gb=100, ram_gb=ram)).work.embedding_offload


def test_copies_that_nothing_hides_cost_time_and_no_more():
    card = catalog.gpu("H200")
    work = Work.of("llama-3.1-8b", batch=1, length=8192, graphs=False)
    slow = replace(card, host_gbps=card.host_gbps / 8)
    for policy in ("offload", "offload-wide", "offload-all", "sloth"):
        assert step_seconds(work.but(policy=policy), slow) > step_seconds(work.but(policy=policy), card)
    assert step_seconds(work, slow) == step_seconds(work, card)
    # One layer's copies leave while the next computes: moving all of it everywhere takes longer than the link alone.
    everything = estimate_work(work.but(policy="offload-all"), card).host
    assert step_seconds(work.but(policy="offload-all"), card) > 2 * everything / (card.host_gbps * 1e9)


def test_a_plan_refused_for_ram_offers_what_needs_none_and_contradicts_itself_in_nothing():
    work = Work.of("llama-3.2-3b-instruct", method="full", optimiser="paged_adamw_8bit")
    with pytest.raises(HardwareError) as caught:
        plan(work, Budget.of("L4", ram_gb=8))
    said = str(caught.value)
    assert "of which 4.0 GB may be used" in said and "smallest card" not in said
    assert "1. keep the optimiser's states on the card (optim='adamw_8bit')" in said


@pytest.mark.parametrize("amount", [float("nan"), float("inf"), -3, True, "8"])
def test_an_amount_of_memory_that_can_not_be_is_refused_in_a_sentence(amount):
    for name, what in (("ram_gb", "the RAM"), ("gb", "the card's memory")):
        with pytest.raises(HardwareError, match=f"{what}; it must be a number of at least 0"):
            Budget.of("T4", **{name: amount})
