"""Limits and changes: each fits, one more doesn't, and the first is the cheapest."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloth_nb import catalog
from sloth_nb.memory import Work, changes_to_fit, estimate, estimate_work, largest_batch, longest_context
from sloth_nb.memory.advice import smallest_card

GIB = 2**30


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["smollm2-135m-instruct", "llama-3.1-8b", "gemma-3-4b-it", "phi-4"]),
    policy=st.sampled_from(["keep", "recompute", "lean", "offload"]),
    memory=st.integers(4, 100),
)
def test_the_limits_fit_and_one_step_more_does_not(name, policy, memory):
    card = catalog.gpu("A100")
    work = Work.of(name, policy=policy, batch=1)
    longest = longest_context(work, card, memory * GIB)
    batch = largest_batch(work, card, memory * GIB)
    for limit, step, at in ((longest, 64, "length"), (batch, 1, "batch")):
        if limit:
            assert estimate_work(work.but(**{at: limit}), card).total <= memory * GIB
        if limit < 65536:  # evened-out chunks of logits are a little smaller where a second one begins
            assert estimate_work(work.but(**{at: limit + step}), card).total > memory * GIB - work.loss_chunk


@settings(max_examples=30, deadline=None)
@given(
    length=st.sampled_from([2048, 8192, 65536]),
    batch=st.integers(1, 9),
    policy=st.sampled_from(["keep", "recompute"]),
    method=st.sampled_from(["qlora", "lora", "full"]),
)
def test_every_change_offered_fits_and_the_cheapest_comes_first(length, batch, policy, method):
    card = catalog.gpu("RTX 4090")
    work = Work.of(
        "llama-3.1-8b", length=length, batch=batch, policy=policy, method=method, optimiser="adamw_torch"
    )
    changes = changes_to_fit(work, card)
    assert len(changes) <= 3
    assert bool(changes) == (not estimate_work(work, card).fits)
    for change in changes:
        assert change.estimate.total <= card.memory
        assert estimate_work(work.but(**change.options), card).total == change.estimate.total


def test_what_leaves_the_result_alone_is_offered_before_what_does_not():
    work = Work.of("llama-3.1-8b", policy="keep", length=8192)
    changes = changes_to_fit(work, catalog.gpu("RTX 4090"))
    assert len(changes) == 3
    assert all("same result" in change.cost for change in changes)


def test_what_is_enough_by_itself_is_offered_by_itself():
    work = Work.of("qwen3-14b", batch=8, length=4096)
    first = changes_to_fit(work, catalog.gpu("T4"))[0]
    assert first.options == {"batch": 1, "accumulation": 8}


def test_steps_that_only_help_together_are_found_and_none_of_them_is_idle():
    """Before anything that changes the result."""
    card = catalog.gpu("T4")
    work = Work.of("qwen3-14b", batch=20, length=4096)
    first = changes_to_fit(work, card, host=16 * GIB)[0]
    assert "same result" in first.cost
    assert first.options == {"batch": 5, "accumulation": 4, "policy": "offload"}
    for idle in ({"policy": work.policy}, {"batch": 10, "accumulation": 2}, {"batch": 20, "accumulation": 1}):
        assert not estimate_work(work.but(**first.options | idle), card).fits


def test_a_model_too_large_for_a_card_leaves_a_smaller_one_or_a_larger_card():
    answer = estimate("qwen3-32b", gpu="T4")
    assert [change.options["model"].name for change in answer.changes()] == ["qwen3-14b"]
    assert smallest_card(answer.work).memory_gib > 20
    assert estimate("smollm2-135m-instruct", gpu=replace(catalog.gpu("T4"), memory_gib=0.1)).changes() == []


@pytest.mark.parametrize("name", ["cpu", None])
def test_without_a_card_the_machine_itself_is_meant(name):
    assert estimate("smollm2-135m-instruct", gpu=name).total > 0


def test_embeddings_in_host_memory_are_offered_where_they_may_be_there():
    work = Work.of("llama-3.1-8b", batch=1, length=8192)
    budget = estimate_work(work, catalog.gpu("A100")).total - (400 << 20)
    said = [change.say for change in changes_to_fit(work, catalog.gpu("A100"), budget, host=16 * GIB)]
    assert any("offload_embedding=True" in one for one in said)
    assert not any("embedding" in c.say for c in changes_to_fit(work, catalog.gpu("A100"), budget, host=0))
    tied = Work.of("llama-3.2-1b", batch=1, length=8192)
    budget = estimate_work(tied, catalog.gpu("A100")).total - (400 << 20)
    assert not any("embedding" in change.say for change in changes_to_fit(tied, catalog.gpu("A100"), budget))


@settings(max_examples=30, deadline=None)
@given(
    length=st.sampled_from([2048, 8192, 32768]),
    batch=st.integers(1, 8),
    policy=st.sampled_from(["keep", "recompute", "offload", "sloth"]),
    method=st.sampled_from(["qlora", "full"]),
    optimiser=st.sampled_from(["adamw_torch", "paged_adamw_8bit"]),
    ram=st.integers(0, 24),
)
def test_no_change_takes_more_ram_than_there_is_and_each_says_how_much(
    length, batch, policy, method, optimiser, ram
):
    card = catalog.gpu("RTX 4090")
    work = Work.of(
        "llama-3.2-3b", length=length, batch=batch, policy=policy, method=method, optimiser=optimiser
    )
    for change in changes_to_fit(work, card, host=ram * GIB):
        assert change.estimate.host <= ram * GIB
        assert change.estimate.total <= card.memory
        if change.options.get("policy") == "offload":
            assert f"takes {change.estimate.host / GIB:.1f} GB of RAM" in change.cost


def test_on_a_t4_of_colab_a_long_sequence_is_not_to_be_moved_to_ram_that_it_has_not():
    work = Work.of("mistral-7b-instruct-v0.3", length=32768)
    rich, poor = (changes_to_fit(work, catalog.gpu("T4"), host=int(gib * GIB / 2)) for gib in (128, 12.7))
    assert rich[0].estimate.host > 12.7 * GIB / 2
    assert poor and all(change.estimate.host <= 12.7 * GIB / 2 for change in poor)


def test_what_is_in_ram_that_there_is_not_goes_back_to_the_card_where_it_has_room():
    work = Work.of("llama-3.2-3b-instruct", method="full", optimiser="paged_adamw_8bit")
    (change,) = changes_to_fit(work, catalog.gpu("L4"), host=4 * GIB)
    assert change.options == {"optimiser": "adamw_8bit"} and change.estimate.host == 0
    assert changes_to_fit(work, catalog.gpu("L4"), host=8 * GIB) == []


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(["llama-3.1-8b", "qwen3-4b", "gemma-3-4b-it"]),
    policy=st.sampled_from(["offload", "sloth", "keep"]),
    length=st.sampled_from([2048, 8192]),
    ram=st.integers(0, 6),
)
def test_no_change_contradicts_itself_or_asks_for_what_is_so_already(name, policy, length, ram):
    work = Work.of(name, method="lora", policy=policy, length=length, batch=1)
    for change in changes_to_fit(work, catalog.gpu("T4"), host=ram * GIB):
        assert change.say.count("policy=") <= 1 and f"policy='{policy}'" not in change.say
        assert all(getattr(work, option) != value for option, value in change.options.items())


def test_policies_named_layer_by_layer_give_way_where_another_model_has_other_layers():
    work = Work.of("qwen3-14b", policy=["keep"] * 40, batch=4, length=8192)
    assert changes_to_fit(work, catalog.gpu("T4"))
    smaller = work.but(model=catalog.find("qwen3-4b-instruct-2507"))
    assert smaller.policy == "recompute" and work.but(batch=1).policy == work.policy
