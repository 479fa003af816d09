"""The head and its loss in one against float64: chunks, frozen and trained heads, kept rows, divisors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sloth_nb_kernels import (
    linear_cross_entropy,
    linear_cross_entropy_forward,
    linear_cross_entropy_reference,
    trained_rows,
)
from sloth_nb_kernels.linear_cross_entropy import chunk_rows


def head(randn, rows, width, vocab, dtype, device):
    hidden, weight = randn(rows, width, dtype=dtype), randn(vocab, width, dtype=dtype, scale=width**-0.5)
    targets = ((torch.arange(rows) * 31 + 1) % vocab).to(device)
    targets[1::4] = -100
    return hidden, weight, randn(vocab, dtype=dtype, scale=0.1), targets


def exact(hidden, weight, bias, targets, **options):
    leaves = [t.double().cpu().requires_grad_() for t in (hidden, weight, bias)]
    loss = linear_cross_entropy_reference(
        leaves[0], leaves[1], targets.cpu(), bias=leaves[2], **options
    ).sum()
    return loss.detach(), torch.autograd.grad(loss, leaves)


def assert_near(got, want, dtype, ulps):
    """A gradient that went through bf16 logits: relative to its largest element, ulps of the dtype."""
    error = (got.double().cpu() - want).abs().max() / want.abs().max()
    assert error <= ulps * max(torch.finfo(dtype).eps, 2.0**-22), error.item()


@pytest.mark.parametrize("shape", [(1, 64, 2), (3, 100, 32_003), (127, 64, 301), (2049, 16, 33)], ids=str)
def test_odd_shapes_match_float64(randn, device, dtype, shape):
    hidden, weight, bias, targets = head(randn, *shape, dtype, device)
    loss64, grads64 = exact(hidden, weight, bias, targets)
    got = linear_cross_entropy_forward(
        hidden, weight, targets, bias=bias, weight_grad=True, bias_grad=True, chunk_bytes=100_000
    )
    assert_near(got.loss, loss64, dtype, 4)
    several = max(1.0, (shape[2] / 300) ** 0.5)  # a sum's roundings grow with the root of its terms
    for grad, want in zip(got[1:4], grads64, strict=True):
        assert_near(grad, want, dtype, 8 * several)


@pytest.mark.parametrize("chunk_bytes", [1, 40_000, 1 << 28], ids=["row-by-row", "chunks", "whole"])
@pytest.mark.parametrize("softcap", [None, 20.0], ids=["plain", "softcap"])
def test_loss_and_every_gradient_match_float64(randn, device, dtype, chunk_bytes, softcap):
    hidden, weight, bias, targets = head(randn, 21, 64, 301, dtype, device)
    loss64, grads64 = exact(hidden, weight, bias, targets, softcap=softcap)
    got = linear_cross_entropy_forward(
        hidden, weight, targets, bias=bias, softcap=softcap,
        weight_grad=True, bias_grad=True, chunk_bytes=chunk_bytes,
    )  # fmt: skip
    # Logits of about 4 round to the dtype once (2 ulp of 1), their gradient once; products sum in fp32.
    assert_near(got.loss, loss64, dtype, 4)
    for grad, want in zip(got[1:4], grads64, strict=True):
        assert_near(grad, want, dtype, 8)
    assert got.hidden_grad.dtype == dtype and got.hidden_grad[targets == -100].eq(0).all()


def test_kept_rows_give_the_same_and_leave_the_others_at_zero(randn, device):
    hidden, weight, _, targets = head(randn, 40, 32, 101, torch.float32, device)
    whole = linear_cross_entropy_forward(hidden, weight, targets, keep=torch.arange(40, device=device))
    kept = linear_cross_entropy_forward(
        hidden, weight, targets, keep=trained_rows(targets), weight_grad=True, chunk_bytes=3000
    )
    torch.testing.assert_close(kept.loss, whole.loss)
    torch.testing.assert_close(kept.hidden_grad, whole.hidden_grad)
    assert kept.hidden_grad[1::4].eq(0).all()


def test_the_hidden_gradient_may_overwrite_hidden(randn, device):
    hidden, weight, _, targets = head(randn, 12, 32, 101, torch.float32, device)
    targets[targets == -100] = 5
    want = linear_cross_entropy_forward(hidden, weight, targets, chunk_bytes=2000)
    got = linear_cross_entropy_forward(hidden, weight, targets, chunk_bytes=2000, out=hidden)
    assert got.hidden_grad is hidden and torch.equal(hidden, want.hidden_grad)
    with pytest.raises(ValueError, match="only when every row is computed"):
        linear_cross_entropy_forward(hidden, weight, targets, keep=trained_rows(targets)[:3], out=hidden)


def test_a_buffer_for_the_logits_may_be_given_and_hold_anything(randn, device):
    hidden, weight, _, targets = head(randn, 12, 32, 101, torch.float32, device)
    want = linear_cross_entropy_forward(hidden, weight, targets, weight_grad=True, chunk_bytes=2000)
    buffer = torch.full((600,), float("nan"), device=device)
    got = linear_cross_entropy_forward(
        hidden, weight, targets, weight_grad=True, chunk_bytes=2000, logits=buffer
    )
    for mine, theirs in zip(got[:3], want[:3], strict=True):
        assert torch.equal(mine, theirs)
    assert not buffer[:101].isnan().any()


def test_statistics_are_sums_over_the_trained_rows(randn, device):
    hidden, weight, _, targets = head(randn, 12, 32, 101, torch.float32, device)
    got = linear_cross_entropy_forward(
        hidden, weight, targets, statistics=True, hidden_grad=False, chunk_bytes=2000
    )
    z, trained = (hidden @ weight.t()).double(), targets != -100
    p = torch.softmax(z, -1)
    torch.testing.assert_close(got.entropy.double(), -(p * p.log()).sum(-1)[trained].sum(), rtol=1e-5, atol=0)
    assert got.correct.item() == ((z.argmax(-1) == targets) & trained).sum().item()
    assert got.hidden_grad is None


@pytest.mark.parametrize("items", [None, 100, torch.tensor(100)], ids=["own", "int", "tensor"])
def test_autograd_divides_by_the_items_and_takes_the_loss_scale(randn, device, items):
    hidden, weight, bias, targets = head(randn, 21, 32, 101, torch.float32, device)
    grads = []
    for fused in (True, False):
        leaves = [t.clone().requires_grad_() for t in (hidden, weight, bias)]
        count = (targets != -100).sum() if items is None else 100
        if fused:
            given = items.to(device) if isinstance(items, torch.Tensor) else items
            loss = linear_cross_entropy(
                *leaves[:2], targets, bias=leaves[2], num_items=given, chunk_bytes=4000
            )
        else:
            loss = linear_cross_entropy_reference(*leaves[:2], targets, bias=leaves[2]).sum() / count
        grads.append([loss, *torch.autograd.grad(loss * 1024, leaves)])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_fp16_gradients_survive_a_mean_over_many_items(randn, device):
    """Divided in the logits, 1/60000 of a probability would underflow; kept unscaled, nothing is lost."""
    hidden, weight, _, targets = head(randn, 8, 32, 501, torch.float16, device)
    leaf = hidden.clone().requires_grad_()
    loss = linear_cross_entropy(leaf, weight, targets, num_items=60000)
    (grad,) = torch.autograd.grad(loss * 60000, leaf)  # a loss scaler's factor
    _, (want, _, _) = exact(hidden, weight, torch.zeros(501), targets)
    assert_near(grad, want, torch.float16, 8)


def test_nothing_trained_and_nothing_given_cost_nothing(randn, device):
    hidden, weight, _, targets = head(randn, 8, 32, 101, torch.float32, device)
    for x, t in ((hidden, torch.full_like(targets, -100)), (hidden[:0], targets[:0])):
        got = linear_cross_entropy_forward(x, weight, t, weight_grad=True, bias_grad=True)
        assert got.loss == 0 and all(grad.eq(0).all() for grad in got[1:4])


def test_without_gradients_only_the_loss_is_made(randn, device):
    hidden, weight, _, targets = head(randn, 8, 32, 101, torch.float32, device)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden.requires_grad_(), weight, targets)
    assert not loss.requires_grad


@given(rows=st.integers(0, 10**6), vocab=st.integers(2, 300_000), budget=st.integers(1, 2**32))
def test_chunks_fit_the_budget_and_cover_every_row(rows, vocab, budget):
    step = chunk_rows(rows, vocab, 2, budget)
    assert step >= 1
    assert step == 1 or step * vocab * 2 <= budget
    fewest = -(-rows // max(1, budget // (vocab * 2)))
    assert -(-rows // step) <= max(1, 2 * fewest)


def test_heads_that_do_not_fit_are_refused():
    hidden, weight, targets = torch.ones(3, 4), torch.ones(7, 4), torch.zeros(3, dtype=torch.long)
    for bad, message in (
        (lambda: linear_cross_entropy(hidden, torch.ones(7, 5), targets), r"\(3, 4\) and \(7, 5\)"),
        (lambda: linear_cross_entropy(hidden, weight, targets[:2]), r"targets must be \(3,\)"),
        (lambda: linear_cross_entropy(hidden, weight, targets, bias=torch.ones(3)), r"bias must be \(7,\)"),
        (lambda: linear_cross_entropy(hidden, weight.half(), targets), "hidden's dtype torch.float32"),
        (lambda: linear_cross_entropy(hidden, weight, targets, reduction="none"), "mean or sum, got 'none'"),
        (
            lambda: linear_cross_entropy(hidden, weight, targets, logits=torch.ones(20)),
            r"21 or more torch.float32 on cpu, got \(20,\)",
        ),
        (lambda: linear_cross_entropy(hidden, weight, targets, logits=torch.ones(3, 7)), r"flat .* \(3, 7\)"),
    ):
        with pytest.raises(ValueError, match=message):
            bad()


def test_a_planted_fault_is_found(randn, device, dtype):
    """Targets that are not shifted with their rows, and a chunk that is left out, are far outside of it."""
    hidden, weight, bias, targets = head(randn, 21, 64, 301, dtype, device)
    loss64, (hidden64, *_) = exact(hidden, weight, bias, targets)
    rolled = linear_cross_entropy_forward(hidden, weight, targets.roll(1), bias=bias)
    missing = linear_cross_entropy_forward(hidden[:-4], weight, targets[:-4], bias=bias)
    for value, want in ((rolled.hidden_grad, hidden64), (missing.loss, loss64)):
        with pytest.raises(AssertionError):
            assert_near(value, want, dtype, 8)
