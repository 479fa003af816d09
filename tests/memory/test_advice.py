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
    first = changes_to_fit(work, card)[0]
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
    said = [change.say for change in changes_to_fit(work, catalog.gpu("A100"), budget)]
    assert any("offload_embedding=True" in one for one in said)
    assert not any(
        "embedding" in c.say for c in changes_to_fit(work, catalog.gpu("A100"), budget, offload=False)
    )
    tied = Work.of("llama-3.2-1b", batch=1, length=8192)
    budget = estimate_work(tied, catalog.gpu("A100")).total - (400 << 20)
    assert not any("embedding" in change.say for change in changes_to_fit(tied, catalog.gpu("A100"), budget))
