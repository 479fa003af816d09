"""q/k-norm and RoPE in one launch, against float64 composed of the two: forward, all gradients, layouts."""

import pytest
import torch
from sloth_nb_kernels import (
    qk_norm_rope,
    qk_norm_rope_backward,
    qk_norm_rope_forward,
    qk_norm_rope_reference,
    rms_norm_forward,
    rope_forward,
)

EPS = 1e-6
CASES = [  # tokens, query heads, key heads, head_dim, half the rotary width
    (1, 1, 1, 64, 32), (3, 16, 8, 128, 64), (31, 4, 1, 256, 128), (5, 3, 2, 96, 48), (5, 6, 2, 80, 20),
    (2, 70, 4, 128, 64), (0, 4, 2, 64, 32),
]  # fmt: skip


def table(length, half, device):
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    return angles.cos().to(device), angles.sin().to(device)


def inputs(randn, case, dtype, device):
    tokens, q_heads, k_heads, dim, half = case
    q, dq = randn(tokens, q_heads, dim, dtype=dtype), randn(tokens, q_heads, dim, dtype=dtype)
    k, dk = randn(tokens, k_heads, dim, dtype=dtype), randn(tokens, k_heads, dim, dtype=dtype)
    positions = (torch.arange(tokens, device=device) * 7) % 50
    return q, k, randn(dim, dtype=dtype), randn(dim, dtype=dtype), dq, dk, *table(50, half, device), positions


def exact(q, k, qw, kw, dq, dk, cos, sin, positions, zero_centred):
    """Values by float64 autograd; scales by the largest sum of absolute terms a row can have."""
    leaves = [t.double().cpu().requires_grad_() for t in (q, k, qw, kw)]
    cos, sin, positions = cos.double().cpu(), sin.double().cpu(), positions.cpu()
    out = qk_norm_rope_reference(*leaves, EPS, cos, sin, positions, zero_centred=zero_centred)
    grads = torch.autograd.grad(out, leaves, (dq.double().cpu(), dk.double().cpu()))
    scales = []
    half = cos.shape[-1]
    for x, w, dy in zip((q, k), (qw, kw), (dq, dk), strict=True):
        x, w, dy = x.double().cpu(), w.double().cpu(), dy.double().cpu()
        rstd = (x.square().mean(-1, keepdim=True) + EPS).rsqrt()
        normed, size = (x * rstd).abs(), w.abs() + (1 if zero_centred else 0)
        c, s = cos[positions].abs()[:, None], sin[positions].abs()[:, None]

        def turn(t, c=c, s=s):
            a, b = t[..., :half], t[..., half : 2 * half]
            return torch.cat([a * c + b * s, b * c + a * s, t[..., 2 * half :]], -1)

        back = turn(dy.abs())
        g = back * size
        along = (g * normed).sum(-1, keepdim=True) / x.shape[-1]
        scales.append((turn(normed * size), rstd * (g + normed * along), (back * normed).sum((0, 1))))
    (yq, dxq, dwq), (yk, dxk, dwk) = scales
    return list(zip((*out, *grads), (yq, yk, dxq, dxk, dwq, dwk), strict=True))


@pytest.mark.parametrize("zero_centred", [False, True], ids=["qwen3", "gemma3"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "x".join(map(str, c)))
def test_forward_and_backward_match_float64(randn, assert_close, device, dtype, case, zero_centred):
    q, k, qw, kw, dq, dk, cos, sin, positions = inputs(randn, case, dtype, device)
    out = qk_norm_rope_forward(q, k, qw, kw, EPS, cos, sin, positions, zero_centred=zero_centred)
    grads = qk_norm_rope_backward(
        dq, dk, q, k, qw, kw, EPS, cos, sin, positions, zero_centred=zero_centred, weight_grad=True
    )
    want = exact(q, k, qw, kw, dq, dk, cos, sin, positions, zero_centred)
    # x / rms, the norm, and the rotation's result are rounded (torch's path: each); so are dy turned back and
    # dx.
    for got, (value, scale) in zip((*out, *grads), want, strict=True):
        assert_close(got.cpu(), value.detach(), scale, roundings=3, slack=24)


def test_it_is_the_two_operations_one_after_the_other(randn, device):
    q, k, qw, kw, _, _, cos, sin, positions = inputs(randn, (9, 4, 2, 64, 32), torch.float32, device)
    fused = qk_norm_rope_forward(q, k, qw, kw, EPS, cos, sin, positions)
    apart = rope_forward(
        rms_norm_forward(q, qw, EPS)[0], rms_norm_forward(k, kw, EPS)[0], cos, sin, positions
    )
    for a, b in zip(fused, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_views_of_one_buffer_and_in_place_results(randn, device, dtype):
    qkv, d_qkv = randn(6, 8 * 32, dtype=dtype), randn(6, 8 * 32, dtype=dtype)
    w = randn(32, dtype=dtype)
    cos, sin = table(6, 16, device)

    def heads(buffer):
        return buffer[:, : 4 * 32].view(6, 4, 32), buffer[:, 4 * 32 : 6 * 32].view(6, 2, 32)

    want = qk_norm_rope_forward(*heads(qkv), w, w, EPS, cos, sin)
    want_grads = qk_norm_rope_backward(*heads(d_qkv), *heads(qkv), w, w, EPS, cos, sin)
    assert want_grads[2] is None and want_grads[3] is None
    dq, dk = heads(d_qkv)
    tail = d_qkv[:, 6 * 32 :].clone()
    qk_norm_rope_backward(dq, dk, *heads(qkv), w, w, EPS, cos, sin, dq_out=dq, dk_out=dk)
    assert torch.equal(dq, want_grads[0]) and torch.equal(dk, want_grads[1])
    assert torch.equal(d_qkv[:, 6 * 32 :], tail)
    q, k = heads(qkv)
    qk_norm_rope_forward(q, k, w, w, EPS, cos, sin, q_out=q, k_out=k)
    assert torch.equal(q, want[0]) and torch.equal(k, want[1])


def test_autograd_matches_the_reference(randn, device):
    q, k, qw, kw, dq, dk, cos, sin, positions = inputs(randn, (5, 4, 2, 80, 20), torch.float32, device)
    grads = []
    for fn in (qk_norm_rope, qk_norm_rope_reference):
        leaves = [t.clone().requires_grad_() for t in (q, k, qw, kw)]
        out = fn(*leaves, EPS, cos, sin, positions, zero_centred=True)
        grads.append(torch.autograd.grad(out, leaves, (dq, dk)))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_weight_that_is_not_a_heads_width_is_refused():
    q, cos = torch.ones(4, 2, 32), torch.ones(4, 16)
    with pytest.raises(ValueError, match=r"k_weight must have shape \(32,\), got \(16,\)"):
        qk_norm_rope(q, q, torch.ones(32), torch.ones(16), EPS, cos, cos)


def test_a_planted_fault_is_found(randn, assert_close, device, dtype):
    """Rotating before norming, with a weight that is not symmetric in the halves, is far outside the
    bound."""
    q, k, qw, kw, dq, dk, cos, sin, positions = inputs(randn, (3, 2, 2, 64, 32), dtype, device)
    turned, _ = rope_forward(q, None, cos, sin, positions)
    wrong, _ = rms_norm_forward(turned, qw, EPS)
    value, scale = exact(q, k, qw, kw, dq, dk, cos, sin, positions, False)[0]
    with pytest.raises(AssertionError):
        assert_close(wrong.cpu(), value.detach(), scale, roundings=3, slack=24)


def test_weights_may_lie_in_any_strides(randn, device):
    q, k, cos, sin = randn(5, 4, 16), randn(5, 2, 16), randn(5, 8), randn(5, 8)
    apart = randn(32)[::2], randn(32)[1::2]
    got = qk_norm_rope_forward(q, k, *apart, 1e-5, cos, sin)
    wanted = qk_norm_rope_forward(q, k, *(w.contiguous() for w in apart), 1e-5, cos, sin)
    assert all(a.equal(b) for a, b in zip(got, wanted, strict=True))
