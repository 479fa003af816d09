"""RoPE against float64: packed positions, partial widths, strided views, in place, and its inverse."""

import pytest
import torch
from sloth_nb_kernels import rope, rope_backward, rope_forward, rope_reference


def table(length, half, device):
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(half) / half)
    return (1.2 * angles.cos()).to(device), (1.2 * angles.sin()).to(
        device
    )  # 1.2: an attention factor, as YaRN's


def exact(x, cos, sin, sign=1.0):
    x, cos, sin = x.double().cpu(), cos.double().cpu()[:, None], sign * sin.double().cpu()[:, None]
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    value = torch.cat([a * cos - b * sin, b * cos + a * sin, rest], -1)
    a, b, cos, sin = a.abs(), b.abs(), cos.abs(), sin.abs()
    return value, torch.cat([a * cos + b * sin, b * cos + a * sin, rest.abs()], -1)


CASES = [  # tokens, query heads, key heads, head_dim, half the rotary width
    (1, 1, 1, 2, 1), (3, 4, 1, 64, 32), (31, 9, 3, 64, 32),
    (5, 32, 8, 128, 64), (5, 6, 6, 96, 48), (5, 3, 2, 80, 16), (2, 70, 1, 256, 128), (0, 4, 2, 64, 32),
]  # fmt: skip


@pytest.mark.parametrize("inverse", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "x".join(map(str, c)))
def test_rotation_matches_float64(randn, assert_close, device, dtype, case, inverse):
    check(randn, assert_close, device, dtype, case, inverse)


def test_many_tokens_match_float64(randn, assert_close, device):
    check(randn, assert_close, device, torch.float32, (127, 2, 1, 16, 8), False)
    q, (cos, sin) = randn(2049, 1, 8), table(2049, 4, device)
    assert_close(rope_forward(q, None, cos, sin)[0].cpu(), *exact(q, cos, sin), slack=3)


def check(randn, assert_close, device, dtype, case, inverse):
    tokens, q_heads, k_heads, dim, half = case
    q, k = randn(tokens, q_heads, dim, dtype=dtype), randn(tokens, k_heads, dim, dtype=dtype)
    cos, sin = table(50, half, device)
    positions = (torch.arange(tokens, device=device) * 7) % 50
    got = (rope_backward if inverse else rope_forward)(q, k, cos, sin, positions)
    for x, y in zip((q, k), got, strict=True):
        assert_close(y.cpu(), *exact(x, cos[positions], sin[positions], -1.0 if inverse else 1.0), slack=3)


def test_one_launch_turns_q_and_k_inside_a_fused_buffer_in_place(randn, device, dtype):
    qkv = randn(6, (4 + 2 + 2) * 32, dtype=dtype)
    before = qkv.clone()
    q, k = qkv[:, : 4 * 32].view(6, 4, 32), qkv[:, 4 * 32 : 6 * 32].view(6, 2, 32)
    cos, sin = table(6, 16, device)
    want = rope_forward(q, k, cos, sin)
    got = rope_forward(q, k, cos, sin, q_out=q, k_out=k)
    assert got[0] is q and got[1] is k
    assert torch.equal(q, want[0]) and torch.equal(k, want[1])
    assert torch.equal(qkv[:, 6 * 32 :], before[:, 6 * 32 :])


def test_partial_widths_pass_the_rest_through_in_and_out_of_place(randn, device):
    q = randn(5, 3, 80)
    cos, sin = table(5, 16, device)
    out, none = rope_forward(q, None, cos, sin)
    assert none is None
    assert torch.equal(out[..., 32:], q[..., 32:])
    rope_forward(q, None, cos, sin, q_out=q)
    assert torch.equal(out, q)


def test_packed_positions_equal_separate_sequences(randn, device):
    q, k = randn(9, 2, 32), randn(9, 1, 32)
    cos, sin = table(6, 16, device)
    packed = rope_forward(q, k, cos, sin, torch.tensor([0, 1, 2, 3, 4, 5, 0, 1, 2], device=device))
    first, second = rope_forward(q[:6], k[:6], cos, sin), rope_forward(q[6:], k[6:], cos[:3], sin[:3])
    for whole, a, b in zip(packed, first, second, strict=True):
        assert torch.equal(whole, torch.cat([a, b]))


def test_a_table_of_one_row_serves_every_batch_row(randn, device):
    q = randn(2, 5, 3, 32)
    cos, sin = table(5, 16, device)
    both, _ = rope_forward(q.flatten(0, 1), None, cos, sin)
    for row in range(2):
        assert torch.equal(both.view_as(q)[row], rope_forward(q[row], None, cos, sin)[0])


def test_columns_of_transformers_doubled_tables_are_taken_as_views(randn, device):
    q = randn(4, 2, 32)
    cos, sin = table(4, 16, device)
    doubled = [torch.cat([t, t], -1)[:, :16] for t in (cos, sin)]
    assert torch.equal(rope_forward(q, None, *doubled)[0], rope_forward(q, None, cos, sin)[0])


def test_autograd_matches_the_reference(randn, device):
    q, k, dq, dk = randn(7, 4, 32), randn(7, 2, 32), randn(7, 4, 32), randn(7, 2, 32)
    cos, sin = table(7, 12, device)
    grads = []
    for fn in (rope, rope_reference):
        leaves = q.clone().requires_grad_(), k.clone().requires_grad_()
        grads.append(torch.autograd.grad(fn(*leaves, cos, sin), leaves, (dq, dk)))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_shapes_that_do_not_fit_are_refused():
    q, cos = torch.ones(4, 2, 32), torch.ones(4, 16)
    for bad, message in (
        (lambda: rope_forward(q, q[:3], cos, cos), "same tokens"),
        (lambda: rope_forward(q, None, torch.ones(4, 32), torch.ones(4, 32)), "rotary <= head_dim 32"),
        (lambda: rope_forward(q, None, cos[:3], cos[:3]), "multiple of the 3 rows"),
        (
            lambda: rope_forward(q, None, cos, cos, torch.zeros(3, dtype=torch.long)),
            r"positions must be \(4,\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            bad()


def test_a_planted_fault_is_found(randn, assert_close, device, dtype):
    """Turning the wrong way, or by the neighbour's angle, is far outside the bound."""
    q = randn(5, 4, 64, dtype=dtype)
    cos, sin = table(6, 32, device)
    for wrong in (rope_backward(q, None, cos[:5], sin[:5])[0], rope_forward(q, None, cos[1:], sin[1:])[0]):
        with pytest.raises(AssertionError):
            assert_close(wrong.cpu(), *exact(q, cos[:5], sin[:5]), slack=3)
