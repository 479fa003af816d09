"""Token log-probabilities and entropies from hidden states, with any gradient coming back, against
float64."""

import pytest
import torch
from sloth_nb_kernels import linear_log_probs, linear_log_probs_forward, linear_log_probs_reference


def case(randn, dtype, device, rows=13, width=48, vocab=301):
    hidden, weight = randn(rows, width, dtype=dtype), randn(vocab, width, dtype=dtype, scale=width**-0.5)
    targets = ((torch.arange(rows) * 31 + 1) % vocab).to(device)
    return hidden, weight, randn(vocab, dtype=dtype, scale=0.1), targets


def near(got, want, dtype, ulps):
    error = (got.double().cpu() - want).abs().max() / want.abs().max()
    return bool(error <= ulps * max(torch.finfo(dtype).eps, 2.0**-22))


@pytest.mark.parametrize("chunk_bytes", [1500, 1 << 28], ids=["chunks", "whole"])
@pytest.mark.parametrize(
    "options", [{}, {"scale": 1 / 0.7}, {"softcap": 10.0}], ids=["plain", "temperature", "softcap"]
)
def test_values_and_every_gradient_match_float64(randn, device, dtype, options, chunk_bytes):
    hidden, weight, bias, targets = case(randn, dtype, device)
    dlogp, dentropy = randn(13), randn(13)
    wide = [t.double().cpu().requires_grad_() for t in (hidden, weight, bias)]
    want = linear_log_probs_reference(*wide[:2], targets.cpu(), bias=wide[2], **options)
    want_grads = torch.autograd.grad(want, wide, (dlogp.double().cpu(), dentropy.double().cpu()))
    leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
    got = linear_log_probs(
        *leaves[:2], targets, bias=leaves[2], entropy=True, chunk_bytes=chunk_bytes, **options
    )
    grads = torch.autograd.grad(got, leaves, (dlogp, dentropy))
    # Logits of about 4 round to the dtype (2 ulp of 1) both ways, the gradients of logits and results once
    # more.
    for value, exact in zip((*got, *grads), (*want, *want_grads), strict=True):
        assert near(value.detach(), exact.detach(), dtype, 12)
    assert got[0].dtype == got[1].dtype == torch.float32


def test_without_entropy_only_log_probabilities_come_back(randn, device):
    hidden, weight, _, targets = case(randn, torch.float32, device)
    logp, entropy = linear_log_probs(hidden.requires_grad_(), weight, targets)
    assert entropy is None
    dlogp = randn(13)
    (grad,) = torch.autograd.grad(logp, hidden, dlogp)
    want = linear_log_probs_reference(hidden, weight, targets)[0]
    torch.testing.assert_close(grad, torch.autograd.grad(want, hidden, dlogp)[0], rtol=1e-4, atol=1e-6)


def test_a_gradient_of_the_entropy_alone_is_right(randn, device):
    hidden, weight, _, targets = case(randn, torch.float32, device)
    dentropy = randn(13)
    entropy = linear_log_probs(hidden.requires_grad_(), weight, targets, entropy=True)[1]
    (grad,) = torch.autograd.grad(entropy, hidden, dentropy)
    want = linear_log_probs_reference(hidden, weight, targets)[1]
    torch.testing.assert_close(grad, torch.autograd.grad(want, hidden, dentropy)[0], rtol=1e-4, atol=1e-6)


def test_a_wide_vocabulary_is_folded_block_by_block(randn, device):
    hidden, weight, _, targets = case(randn, torch.float32, device, rows=2, width=8, vocab=32003)
    got = linear_log_probs_forward(hidden, weight, targets, entropy=True)
    want = linear_log_probs_reference(hidden.double(), weight.double(), targets)
    assert near(got.log_probs, want[0].cpu(), torch.float32, 8)
    assert near(got.entropy, want[1].cpu(), torch.float32, 8)


def test_no_rows_give_no_values(randn, device):
    hidden, weight, _, targets = case(randn, torch.float32, device)
    leaf = hidden[:0].clone().requires_grad_()
    logp, _ = linear_log_probs(leaf, weight.requires_grad_(), targets[:0])
    grads = torch.autograd.grad(logp.sum(), (leaf, weight))
    assert logp.shape == (0,) and grads[0].shape == (0, 48) and grads[1].eq(0).all()


def test_a_planted_fault_is_found(randn, device, dtype):
    """A gradient at the wrong temperature is far outside the bound."""
    hidden, weight, _, targets = case(randn, dtype, device)
    want = linear_log_probs_reference(hidden.double().cpu(), weight.double().cpu(), targets.cpu(), scale=1.5)
    assert not near(linear_log_probs_forward(hidden, weight, targets).log_probs, want[0], dtype, 12)
