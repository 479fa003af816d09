"""LayerNorm against float64: forward and all gradients, with and without weight and bias, layouts, a planted
fault."""

import pytest
import torch
from sloth_nb_kernels import layer_norm, layer_norm_backward, layer_norm_forward, layer_norm_reference

EPS = 1e-5
SHAPES = [(1, 64), (3, 577), (127, 32), (2049, 16), (1, 16384), (0, 64)]


def exact(x, w, b, dy):
    """Each result and the sum of its terms' absolute values, in float64."""
    x, w, b, dy = (t.double().cpu() for t in (x, w, b, dy))
    n = x.shape[-1]
    mean = x.mean(-1, keepdim=True)
    rstd = ((x - mean).square().mean(-1, keepdim=True) + EPS).rsqrt()
    normed, size, g = (x - mean) * rstd, (x.abs() + mean.abs()) * rstd, dy * w
    dx = rstd * (g - g.mean(-1, keepdim=True) - normed * (g * normed).sum(-1, keepdim=True) / n)
    along = (g.abs() * size).sum(-1, keepdim=True) / n
    dx_scale = rstd * (g.abs() + g.abs().mean(-1, keepdim=True) + size * along)
    return {
        "y": (normed * w + b, size * w.abs() + b.abs()),
        "dx": (dx, dx_scale),
        "dw": ((dy * normed).sum(0), (dy.abs() * size).sum(0)),
        "db": (dy.sum(0), dy.abs().sum(0)),
    }


@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_forward_and_backward_match_float64(randn, assert_close, device, dtype, shape):
    x, dy = randn(*shape, dtype=dtype) + 1, randn(*shape, dtype=dtype)
    w, b = randn(shape[-1], dtype=dtype), randn(shape[-1], dtype=dtype)
    y, mean, rstd = layer_norm_forward(x, w, b, EPS)
    dx, dw, db = layer_norm_backward(dy, x, w, mean, rstd, weight_grad=True)
    want = exact(x, w, b, dy)
    for name, got in (("y", y), ("dx", dx), ("dw", dw), ("db", db)):
        assert got.dtype == dtype
        assert_close(got.cpu(), *want[name], roundings=2, slack=24)


@pytest.mark.parametrize("has_w", [True, False])
@pytest.mark.parametrize("has_b", [True, False])
def test_autograd_matches_the_reference_whatever_is_there(randn, device, has_w, has_b):
    x, dy = randn(2, 5, 96), randn(2, 5, 96)
    w, b = randn(96) if has_w else None, randn(96) if has_b else None
    grads = []
    for fn in (layer_norm, layer_norm_reference):
        given = [None if t is None else t.clone().requires_grad_() for t in (x, w, b)]
        leaves = [t for t in given if t is not None]
        grads.append(torch.autograd.grad(fn(*given, EPS), leaves, dy))
    for a, c in zip(*grads, strict=True):
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-5)


def test_gradients_of_missing_weights_are_still_to_be_had(randn, device):
    x, dy = randn(5, 96), randn(5, 96)
    _, mean, rstd = layer_norm_forward(x, None, None, EPS)
    _, dw, db = layer_norm_backward(dy, x, None, mean, rstd, weight_grad=True)
    want = exact(x, torch.ones(96), torch.zeros(96), dy)
    torch.testing.assert_close(dw.cpu().double(), want["dw"][0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(db.cpu().double(), want["db"][0], rtol=1e-5, atol=1e-5)


def test_strides_buffers_and_the_residuals_gradient(randn, device, dtype):
    wide_x, w, b, dy = (
        randn(7, 300, dtype=dtype),
        randn(100, dtype=dtype),
        randn(100, dtype=dtype),
        randn(7, 100),
    )
    x, dy = wide_x[:, 100:200], dy.to(dtype)
    y, mean, rstd = layer_norm_forward(x.contiguous(), w, b, EPS)
    buffer = torch.zeros_like(wide_x)
    layer_norm_forward(x, w, b, EPS, out=buffer[:, :100])
    assert torch.equal(buffer[:, :100], y) and buffer[:, 100:].eq(0).all()
    dx, dw, db = layer_norm_backward(dy, x, w, mean, rstd)
    assert dw is None and db is None
    residual = torch.ones(7, 100, dtype=torch.float32, device=device)
    summed, _, _ = layer_norm_backward(dy, x, w, mean, rstd, residual_grad=residual)
    assert summed is residual
    torch.testing.assert_close(residual - 1, dx.float(), rtol=2 * torch.finfo(dtype).eps, atol=1e-5)
    assert layer_norm_backward(dy, x, w, mean, rstd, out=dy)[0] is dy
    assert torch.equal(dy, dx)


def test_weights_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"bias must have shape \(64,\).*\(32,\)"):
        layer_norm(torch.ones(3, 64), torch.ones(64), torch.ones(32), EPS)


def test_a_planted_fault_is_found(randn, assert_close, device, dtype):
    """A variance over n - 1 in a short row, or a gradient without the mean's term, is outside the bound."""
    x, dy, w, b = (randn(*s, dtype=dtype) for s in ((3, 16), (3, 16), (16,), (16,)))
    want = exact(x, w, b, dy)
    y, mean, rstd = layer_norm_forward(x, w, b, EPS)
    with pytest.raises(AssertionError):
        assert_close(((y - b) * (15 / 16) ** 0.5 + b).cpu(), *want["y"], roundings=2, slack=24)
    wrong, _, _ = layer_norm_backward(dy - dy.mean(-1, keepdim=True), x, w, mean, rstd)
    with pytest.raises(AssertionError):
        assert_close(wrong.cpu(), *want["dx"], roundings=2, slack=24)


def test_weights_may_lie_in_any_strides(randn, device):
    x, dy, w, b = randn(5, 48), randn(5, 48), randn(96)[::2], randn(96)[1::2]
    y, mean, rstd = layer_norm_forward(x, w, b, 1e-5)
    assert y.equal(layer_norm_forward(x, w.contiguous(), b.contiguous(), 1e-5)[0])
    got = layer_norm_backward(dy, x, w, mean, rstd, weight_grad=True)
    wanted = layer_norm_backward(dy, x, w.contiguous(), mean, rstd, weight_grad=True)
    assert all(a.equal(b) for a, b in zip(got, wanted, strict=True))
