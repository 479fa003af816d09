"""RMSNorm against float64: forward, both gradients, the fused residual add, layouts, and a planted fault."""

import pytest
import torch
from sloth_nb_kernels import (
    add_rms_norm,
    add_rms_norm_forward,
    rms_norm,
    rms_norm_backward,
    rms_norm_forward,
    rms_norm_reference,
)

EPS = 1e-5
SHAPES = [(1, 64), (3, 576), (127, 100), (2049, 64), (2, 5120), (1, 16384), (0, 64)]


def exact(x, w, dy, zero_centred):
    """y, dx, dw and the sums of their terms' absolute values, in float64."""
    x, w, dy = x.double().cpu(), w.double().cpu(), dy.double().cpu()
    n = x.shape[-1]
    rstd = (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
    scale = 1 + w if zero_centred else w
    normed, g = x * rstd, dy * scale
    y, dx = normed * scale, rstd * (g - normed * (g * normed).sum(-1, keepdim=True) / n)
    y_scale = normed.abs() * (1 + w.abs()) if zero_centred else y.abs()
    dx_scale = rstd * (g.abs() + normed.abs() * (g * normed).abs().sum(-1, keepdim=True) / n)
    if zero_centred:
        dx_scale = dx_scale * 2  # 1 + w may cancel
    return (y, y_scale), (dx, dx_scale), ((dy * normed).sum(0), (dy * normed).abs().sum(0))


@pytest.mark.parametrize("zero_centred", [False, True], ids=["llama", "gemma"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_forward_and_backward_match_float64(randn, assert_close, device, dtype, shape, zero_centred):
    x, w, dy = randn(*shape, dtype=dtype), randn(shape[-1], dtype=dtype), randn(*shape, dtype=dtype)
    y, rstd = rms_norm_forward(x, w, EPS, zero_centred=zero_centred)
    dx, dw = rms_norm_backward(dy, x, w, rstd, zero_centred=zero_centred, weight_grad=True)
    (y64, y_scale), (dx64, dx_scale), (dw64, dw_scale) = exact(x, w, dy, zero_centred)
    # Llama rounds x / rms before it multiplies: two roundings in y, and one in every term of dw besides its
    # own.
    assert_close(y.cpu(), y64, y_scale, roundings=1 if zero_centred else 2)
    assert_close(dx.cpu(), dx64, dx_scale, slack=16)
    assert_close(dw.cpu(), dw64, dw_scale, roundings=2, slack=16)
    assert y.dtype == dx.dtype == dw.dtype == dtype


def test_autograd_matches_the_reference(randn, device):
    x, w, dy = randn(2, 5, 96), randn(96), randn(2, 5, 96)
    for zero_centred in (False, True):
        got, want = [], []
        for fn, into in ((rms_norm, got), (rms_norm_reference, want)):
            leaves = x.clone().requires_grad_(), w.clone().requires_grad_()
            y = fn(*leaves, EPS, zero_centred=zero_centred)
            into += [y, *torch.autograd.grad(y, leaves, dy)]
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_residual_is_added_in_the_same_pass(randn, assert_close, device, dtype):
    x, residual, w = randn(7, 320, dtype=dtype), randn(7, 320, dtype=dtype), randn(320, dtype=dtype)
    y, rstd, total = add_rms_norm_forward(x, residual, w, EPS)
    assert_close(
        total.cpu(),
        (x.double() + residual.double()).cpu(),
        (x.double().abs() + residual.double().abs()).cpu(),
    )
    alone, alone_rstd = rms_norm_forward(total, w, EPS)
    # Another specialisation may contract products differently: a unit in the last place.
    torch.testing.assert_close(y, alone, rtol=2 * torch.finfo(dtype).eps, atol=0)
    torch.testing.assert_close(rstd, alone_rstd, rtol=2**-22, atol=0)
    in_place, _, kept = add_rms_norm_forward(x, residual, w, EPS, out=x, total_out=residual)
    assert in_place is x and kept is residual
    assert torch.equal(in_place, y) and torch.equal(kept, total)


@pytest.mark.parametrize("zero_centred", [False, True])
def test_the_norm_is_added_to_something_in_the_same_pass(randn, device, dtype, zero_centred):
    x, plus, w = randn(7, 320, dtype=dtype), randn(7, 320, dtype=dtype), randn(320, dtype=dtype)
    norm, rstd = rms_norm_forward(x, w, EPS, zero_centred=zero_centred)
    got, got_rstd = rms_norm_forward(x, w, EPS, zero_centred=zero_centred, plus=plus)
    ulp = 2 * torch.finfo(dtype).eps  # one rounding of the sum; under the interpreter a truncation
    torch.testing.assert_close(got, norm + plus, rtol=ulp, atol=ulp)
    torch.testing.assert_close(got_rstd, rstd, rtol=2**-22, atol=0)
    assert rms_norm_forward(x, w, EPS, zero_centred=zero_centred, plus=plus, out=plus)[0] is plus
    assert torch.equal(plus, got)


def test_autograd_through_the_sum_matches_separate_operations(randn, device):
    leaves = [t.requires_grad_() for t in (randn(6, 64), randn(6, 64), randn(64))]
    dy, dtotal = randn(6, 64), randn(6, 64)
    got = torch.autograd.grad(add_rms_norm(*leaves, EPS), leaves, (dy, dtotal))
    total = leaves[0] + leaves[1]
    want = torch.autograd.grad((rms_norm_reference(total, leaves[2], EPS), total), leaves, (dy, dtotal))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_gradient_is_added_into_the_residuals_in_place(randn, device, dtype):
    x, w, dy, residual_grad = (randn(*s, dtype=dtype) for s in ((9, 96), (96,), (9, 96), (9, 96)))
    _, rstd = rms_norm_forward(x, w, EPS)
    alone, _ = rms_norm_backward(dy, x, w, rstd)
    wide = residual_grad.to(torch.float32, copy=True)
    want = wide + alone.float()
    rms_norm_backward(dy, x, w, rstd, residual_grad=wide)  # the residual's gradient may be kept in fp32
    torch.testing.assert_close(wide, want, rtol=0, atol=4 * torch.finfo(dtype).eps * alone.abs().max().item())
    summed, dw = rms_norm_backward(dy, x, w, rstd, residual_grad=residual_grad)
    assert summed is residual_grad and dw is None
    torch.testing.assert_close(
        summed.float(), want, rtol=2 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps
    )


def test_rows_with_strides_and_buffers_given_are_used_as_they_are(randn, device):
    wide, w = randn(11, 300), randn(100)
    x = wide[:, 100:200]
    want, _ = rms_norm_forward(x.contiguous(), w, EPS)
    buffer = torch.zeros_like(wide)
    got, rstd = rms_norm_forward(x, w, EPS, out=buffer[:, 200:])
    assert torch.equal(got, want) and buffer[:, :200].eq(0).all()
    transposed, _ = rms_norm_forward(x.t().contiguous().t(), w, EPS)
    assert torch.equal(transposed, want)
    dy = randn(11, 100)
    want, _ = rms_norm_backward(dy, x, w, rstd)
    got, _ = rms_norm_backward(dy, x, w, rstd, out=dy)
    assert got is dy and torch.equal(got, want)


def test_fp32_weights_over_bf16_rows_give_bf16(randn, device):
    x, w = randn(4, 64, dtype=torch.bfloat16), randn(64)
    y, _ = rms_norm_forward(x, w, EPS)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), rms_norm_reference(x, w, EPS).float(), rtol=2**-6, atol=0)


def test_float64_stays_float64_and_gradients_are_exact(device):
    x, w = (
        torch.randn(3, 8, dtype=torch.float64, device=device),
        torch.randn(8, dtype=torch.float64, device=device),
    )
    assert torch.autograd.gradcheck(
        lambda x, w: rms_norm(x, w, EPS), (x.requires_grad_(), w.requires_grad_())
    )


def test_a_weight_of_another_width_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(64,\).*\(3, 64\).*\(32,\)"):
        rms_norm(torch.ones(3, 64), torch.ones(32), EPS)


def test_a_planted_fault_is_found(randn, assert_close, device, dtype):
    """A backward that forgets the mean's term, or a norm that forgets eps' place, is far outside the
    bound."""
    x, w, dy = randn(3, 576, dtype=dtype), randn(576, dtype=dtype), randn(3, 576, dtype=dtype)
    y, rstd = rms_norm_forward(x, w, EPS)
    (y64, y_scale), (dx64, dx_scale), _ = exact(x, w, dy, False)
    with pytest.raises(AssertionError):
        assert_close((y * 1.02).cpu(), y64, y_scale, roundings=2)
    with pytest.raises(AssertionError):
        assert_close((dy * w * rstd[:, None]).to(dtype).cpu(), dx64, dx_scale, slack=16)


@pytest.mark.parametrize("zero_centred", [False, True])
def test_no_rows_have_no_gradient_whether_the_weight_is_trained_or_not(randn, device, zero_centred):
    x, w = randn(0, 64), randn(64)
    _, rstd = rms_norm_forward(x, w, EPS, zero_centred=zero_centred)
    dx, dw = rms_norm_backward(randn(0, 64), x, w, rstd, zero_centred=zero_centred)
    assert dx.shape == (0, 64) and dw is None


def test_a_weight_may_lie_in_any_strides(randn, device):
    x, dy = randn(5, 48), randn(5, 48)
    for w in (randn(96)[::2], torch.tensor([2.5], device=device).expand(48)):
        (y, rstd), (want, want_rstd) = (rms_norm_forward(x, one, EPS) for one in (w, w.contiguous()))
        assert y.equal(want)
        apart = torch.stack([rstd, rstd], 1)[:, 0]
        got = rms_norm_backward(dy, x, w, apart, weight_grad=True)
        wanted = rms_norm_backward(dy, x, w.contiguous(), want_rstd, weight_grad=True)
        assert all(a.equal(b) for a, b in zip(got, wanted, strict=True))


def test_a_second_derivative_is_refused_rather_than_left_out(randn, device):
    x = randn(3, 48).requires_grad_()
    with pytest.raises(RuntimeError, match="can't be differentiated again"):
        torch.autograd.grad(rms_norm(x, randn(48), EPS).sum(), x, create_graph=True)
