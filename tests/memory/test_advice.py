"""Limits and changes: each fits, one more doesn't, and the first is the cheapest."""

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
        if limit < 65536:
            assert estimate_work(work.but(**{at: limit + step}), card).total > memory * GIB


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


def test_a_model_too_large_for_a_card_names_the_card_that_takes_it():
    answer = estimate("qwen3-32b", gpu="T4")
    assert answer.changes() == []
    assert smallest_card(answer.work).name in answer._repr_mimebundle_()["text/html"]


def test_the_html_escapes_a_models_name():
    config = dict(catalog.find("qwen3-0.6b").config)
    info = catalog.from_config(config, name="<script>alert(1)</script>")
    html = estimate(info, gpu="T4")._repr_mimebundle_()["text/html"]
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_the_bar_says_in_words_what_it_draws():
    html = estimate("qwen3-0.6b", gpu="T4")._repr_mimebundle_()["text/html"]
    assert "role='img'" in html and "GB on T4" in html
    assert html.count("<tr>") == len(estimate("qwen3-0.6b", gpu="T4").kinds)


@pytest.mark.parametrize("name", ["cpu", None])
def test_without_a_card_the_machine_itself_is_meant(name):
    assert estimate("smollm2-135m-instruct", gpu=name).total > 0
