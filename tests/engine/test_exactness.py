"""The engine against transformers + peft, in fp32: loss within 1e-6, every gradient within 1e-5, for every family."""

import pytest
import torch
from families import CONFIGS, adapted_model, batch, plain_model, step, worst

from sloth_nb.engine.policy import KEEP, NAMES, LayerPolicy
from sloth_nb.models.install import install
from sloth_nb.models.report import engine_of

FAMILIES = sorted(CONFIGS)
LOSS, GRAD = 1e-6, 1e-5


def assert_same(got, wanted):
    (loss, grads), (true_loss, true_grads) = got, wanted
    assert abs(float(loss - true_loss)) <= LOSS * max(1.0, abs(float(true_loss)))
    assert worst(grads, true_grads) <= GRAD


@pytest.mark.parametrize("policy", ["keep", "recompute", "lean", "offload", True, False, "sloth", "unsloth"])
@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_get_the_same_loss_and_gradients(family, policy):
    model, inputs = adapted_model(family), batch()
    wanted = step(model, **inputs)
    report = install(model, policy)
    assert report.installed, report.left
    assert_same(step(model, **inputs), wanted)
    assert not engine_of(model).left_to_model


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_weights_get_the_same_loss_and_gradients(family):
    model, inputs = plain_model(family), batch()
    wanted = step(model, **inputs)
    install(model, True)
    assert_same(step(model, **inputs), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_tiles_of_the_mlp_change_nothing(family):
    model, inputs = adapted_model(family), batch()
    wanted = step(model, **inputs)
    install(model, True, mlp_tile=7, loss_chunk_bytes=97 * 4 * 5)
    assert_same(step(model, **inputs), wanted)


def test_every_set_of_kept_activations_gives_the_same_gradients():
    model, inputs = adapted_model("qwen3"), batch()
    wanted = step(model, **inputs)
    optional = [n for n in NAMES if n != "input"]
    for bits in range(2 ** len(optional)):
        kept = frozenset(n for i, n in enumerate(optional) if bits >> i & 1) | {"input"}
        install(model, LayerPolicy(kept))
        assert_same(step(model, **inputs), wanted)


def test_each_layer_may_have_its_own_policy():
    model, inputs = adapted_model("llama"), batch()
    wanted = step(model, **inputs)
    install(model, ["keep", "lean", KEEP])
    assert_same(step(model, **inputs), wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_sequences_are_as_if_each_came_alone(family):
    model = adapted_model(family)
    rows = [batch(1, n, seed=n)["input_ids"] for n in (9, 1, 14, 11)]
    model.zero_grad()
    for ids in rows:
        if ids.shape[1] > 1:
            (model(input_ids=ids, labels=ids).loss * (ids.shape[1] - 1) / 31).backward()
    alone = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    install(model, True)
    ids = torch.cat(rows, 1)
    lengths = [r.shape[1] for r in rows]
    labels = torch.cat([torch.cat([torch.full((1, 1), -100), r[:, 1:]], 1) for r in rows], 1)
    position_ids = torch.cat([torch.arange(n) for n in lengths])[None]
    cu = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    told = {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": 14, "max_length_k": 14}
    for extra in (told, {}):
        _, grads = step(model, input_ids=ids, labels=labels, position_ids=position_ids, **extra)
        assert worst(grads, alone) <= GRAD
    assert not engine_of(model).left_to_model


@pytest.mark.parametrize("family", FAMILIES)
def test_right_padding_changes_nothing_for_real_tokens(family):
    model, inputs = adapted_model(family), batch(3, 17)
    mask = torch.ones_like(inputs["input_ids"])
    for row, length in enumerate((17, 4, 11)):
        mask[row, length:] = 0
    inputs["labels"][mask == 0] = -100
    wanted = step(model, **inputs, attention_mask=mask)
    install(model)
    assert_same(step(model, **inputs, attention_mask=mask), wanted)
    assert not engine_of(model).left_to_model


def test_left_padding_is_left_to_the_model_and_counted():
    model, inputs = adapted_model("llama"), batch(2, 9)
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, :3] = 0
    inputs["labels"][mask == 0] = -100
    wanted = step(model, **inputs, attention_mask=mask)
    report = install(model)
    assert_same(step(model, **inputs, attention_mask=mask), wanted)
    assert "padded on the left" in str(report)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_two_forwards_before_one_backward(family):
    model, one, two = adapted_model(family), batch(seed=1), batch(seed=2, length=11)

    def both():
        model.zero_grad()
        loss = model(**one).loss + 2 * model(**two).loss
        loss.backward()
        return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    wanted = both()
    install(model)
    assert_same(both(), wanted)


def test_gradients_accumulate_over_micro_batches_with_evaluation_between():
    model, one, two = adapted_model("qwen3"), batch(seed=1), batch(seed=2)

    def accumulate():
        model.zero_grad()
        model(**one, num_items_in_batch=torch.tensor(60)).loss.backward()
        model.eval()
        with torch.no_grad():
            evaluated = model(**two).loss
        model.train()
        model(**two, num_items_in_batch=60).loss.backward()
        return evaluated, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    wanted = accumulate()
    install(model)
    assert_same(accumulate(), wanted)


def test_a_loss_at_chosen_positions_only():
    model, ids = adapted_model("llama"), batch()["input_ids"]
    chosen = torch.tensor([2, 7, 11])
    inputs = {"input_ids": ids, "logits_to_keep": chosen, "labels": ids, "shift_labels": ids[:, chosen + 1]}
    wanted = step(model, **inputs)
    install(model)
    assert_same(step(model, **inputs), wanted)
    assert not engine_of(model).left_to_model


def test_a_second_backward_through_one_forward_is_refused_by_name():
    model = adapted_model("llama")
    install(model)
    loss = model(**batch()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=r"second time|forward again"):
        loss.backward()


def test_a_wrong_backward_would_be_seen(monkeypatch):
    from sloth_nb.engine import norm

    model, inputs = adapted_model("llama"), batch()
    _, wanted = step(model, **inputs)
    install(model)
    right = norm.rms_norm_backward
    monkeypatch.setattr(norm, "rms_norm_backward", lambda *a, **k: right(a[0] * (1 + 1e-4), *a[1:], **k))
    _, grads = step(model, **inputs)
    assert worst(grads, wanted) > GRAD
