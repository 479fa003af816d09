"""SwiGLU and GEGLU against float64: forward, gradients, h again, in place, halves of one buffer."""

import math

import pytest
import torch
from sloth_nb_kernels import glu, glu_backward, glu_forward, glu_reference, split_gate_up

ACTIVATIONS = ["silu", "gelu", "gelu_tanh"]
SHAPES = [(1, 1), (3, 1536), (31, 100), (2, 14336), (0, 64)]


def exact(gate, up, dh, activation):
    gate, up, dh = (t.double().cpu() for t in (gate, up, dh))
    gate.requires_grad_()
    active = glu_reference(gate, torch.ones_like(gate), activation)
    (slope,) = torch.autograd.grad(active.sum(), gate)
    gate, active = gate.detach(), active.detach()
    # act and its slope are sums that cancel far left: their own errors are relative to |x| and 1 + |x|
    # density(x).
    act_scale, slope_scale = active.abs() + gate.abs() * 0.25, slope.abs() + 1.0
    return {
        "h": (active * up, act_scale * up.abs()),
        "dgate": (dh * up * slope, (dh * up).abs() * slope_scale),
        "dup": (dh * active, dh.abs() * act_scale),
    }


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_forward_and_backward_match_float64(randn, assert_close, device, dtype, shape, activation):
    check(randn, assert_close, dtype, shape, activation)


def test_many_rows_match_float64(randn, assert_close, device):
    check(randn, assert_close, torch.float32, (127, 8), "silu")
    gate, up = randn(2049, 3, scale=3), randn(2049, 3)
    want = exact(gate, up, up, "silu")
    assert_close(glu_forward(gate, up).cpu(), *want["h"], slack=12)


def check(randn, assert_close, dtype, shape, activation):
    gate, up, dh = randn(*shape, dtype=dtype, scale=3), randn(*shape, dtype=dtype), randn(*shape, dtype=dtype)
    h = glu_forward(gate, up, activation)
    again = torch.empty_like(h)
    dgate, dup = glu_backward(dh, gate, up, activation, h=again)
    want = exact(gate, up, dh, activation)
    # The torch path rounds the activation, the product with dh and the slope on the way; the kernels round
    # once.
    roundings = {"h": 2, "dgate": 3, "dup": 2}
    for name, got in (("h", h), ("h", again), ("dgate", dgate), ("dup", dup)):
        assert_close(got.cpu(), *want[name], roundings=roundings[name], slack=12)  # erf and exp: 2-3 ulp each
        assert got.dtype == dtype


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradients_overwrite_the_halves_of_one_buffer_and_h_overwrites_dh(
    randn, device, dtype, activation
):
    gate_up, dh = randn(5, 2 * 1100, dtype=dtype), randn(5, 1100, dtype=dtype)
    gate, up = split_gate_up(gate_up)
    want_h = torch.empty_like(dh)
    want = glu_backward(dh, gate, up, activation, h=want_h)
    got = glu_backward(dh, gate, up, activation, dgate=gate, dup=up, h=dh)
    assert got[0] is gate and got[1] is up
    assert torch.equal(gate_up, torch.cat(want, -1)) and torch.equal(dh, want_h)


def test_the_result_may_overwrite_its_input(randn, device):
    gate, up = randn(4, 70), randn(4, 70)
    want = glu_forward(gate, up)
    assert glu_forward(gate, up, out=gate) is gate
    assert torch.equal(gate, want)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_large_inputs_stay_finite_and_saturate(device, activation):
    gate = torch.tensor([[-1e4, -88.0, -30.0, 0.0, 30.0, 88.0, 1e4]], device=device)
    one = torch.ones_like(gate)
    h = glu_forward(gate, one, activation)
    dgate, _ = glu_backward(one, gate, one, activation)
    torch.testing.assert_close(h, gate.clamp(min=0), rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(
        dgate, torch.tensor([[0, 0, 0, 0.5, 1, 1, 1]], device=device), rtol=1e-6, atol=1e-10
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_autograd_matches_the_reference(randn, device, activation):
    gate, up, dh = randn(2, 3, 40), randn(2, 3, 40), randn(2, 3, 40)
    grads = []
    for fn in (glu, glu_reference):
        leaves = gate.clone().requires_grad_(), up.clone().requires_grad_()
        grads.append(torch.autograd.grad(fn(*leaves, activation), leaves, dh))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_unknown_activations_and_unequal_shapes_are_refused():
    with pytest.raises(ValueError, match="silu, gelu, gelu_tanh, got 'relu'"):
        glu(torch.ones(2, 2), torch.ones(2, 2), "relu")
    with pytest.raises(ValueError, match=r"\(2, 2\) and \(2, 3\)"):
        glu(torch.ones(2, 2), torch.ones(2, 3))
    with pytest.raises(ValueError, match="even last dimension"):
        split_gate_up(torch.ones(2, 3))


def test_a_planted_fault_is_found(randn, assert_close, device, dtype):
    """GELU's approximation in place of GELU (fp32 only tells them apart), or gate and up exchanged, fail."""
    gate, up, dh = randn(3, 500, dtype=dtype), randn(3, 500, dtype=dtype), randn(3, 500, dtype=dtype)
    want = exact(gate, up, dh, "gelu")
    with pytest.raises(AssertionError):
        assert_close(glu_forward(up, gate, "gelu").cpu(), *want["h"], roundings=2)
    if dtype is torch.float32:
        with pytest.raises(AssertionError):
            assert_close(glu_forward(gate, up, "gelu_tanh").cpu(), *want["h"], roundings=2)
    assert math.isfinite(want["h"][0].sum())
