"""The memory of a loss's logits on a CPU: one buffer from step to step, never shared by two at once."""

import pytest
import torch

from sloth_nb.engine.held_logits import HeldLogits
from sloth_nb.models.install import install

LIKE = torch.empty(1)


def test_each_step_gets_the_buffer_of_the_one_before():
    logits = HeldLogits()
    with logits.lent(LIKE, 8) as first:
        assert not logits.held
    with logits.lent(LIKE, 6) as second:
        assert second is first and first.numel() == 8


def test_two_at_once_get_two_and_one_of_them_is_kept():
    logits = HeldLogits()
    with logits.lent(LIKE, 8) as first, logits.lent(LIKE, 8) as second:
        assert first.data_ptr() != second.data_ptr()
    with logits.lent(LIKE, 8) as third, logits.lent(LIKE, 8) as fourth:
        assert third is second and fourth is not first


@pytest.mark.parametrize(("dtype", "elements"), [(torch.bfloat16, 8), (torch.float32, 9)])
def test_one_that_does_not_fit_is_replaced(dtype, elements):
    logits = HeldLogits()
    with logits.lent(LIKE, 8):
        pass
    with logits.lent(LIKE.to(dtype), elements) as buffer:
        assert buffer.dtype is dtype and buffer.numel() == elements
    with logits.lent(LIKE.to(dtype), elements) as again:
        assert again is buffer


def test_a_loss_that_fails_leaves_none_behind():
    logits = HeldLogits()
    with pytest.raises(RuntimeError), logits.lent(LIKE, 8):
        raise RuntimeError
    assert not logits.held


def test_an_engine_holds_it_from_its_first_training_pass_until_it_is_undone(tiny_llama):
    model, ids = tiny_llama, torch.arange(8)[None]
    report = install(model, "sloth")
    with torch.no_grad():
        model(input_ids=ids, labels=ids)
    assert not report.engine.held_logits.held and "never held" in str(report)
    losses = []
    for _ in range(2):
        losses.append(model(input_ids=ids, labels=ids).loss)
        losses[-1].backward()
    assert torch.equal(*losses)
    assert report.engine.held_logits.held and "kept for the next step" in str(report)
    report.undo()
    assert not report.engine.held_logits.held


def test_the_logits_of_one_pass_do_not_change_what_another_computed(tiny_llama):
    model = tiny_llama
    ids, others = torch.arange(8)[None], torch.arange(20, 36)[None]
    parameter = model.model.layers[0].mlp.down_proj.weight

    def gradient(*before_backward):
        loss = model(input_ids=ids, labels=ids).loss
        for more in before_backward:
            model(input_ids=more, labels=more)
        return torch.autograd.grad(loss, parameter)[0]

    install(model, "sloth")
    assert torch.equal(gradient(others, others), gradient())
