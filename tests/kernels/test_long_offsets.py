"""Offsets beyond 2^31 elements, on a GPU with room: the last rows of a huge buffer equal the same rows alone."""

from types import SimpleNamespace

import pytest
import sloth_nb_kernels as K
import torch

pytestmark = pytest.mark.gpu
BEYOND = 2**31 + 2**24
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def room():
    if torch.cuda.mem_get_info()[0] < 40 << 30:
        pytest.skip("needs 40 GiB of free GPU memory")
    yield
    torch.cuda.empty_cache()


def huge(columns):
    """Rows enough to pass 2^31 elements; zeros but for the last three rows."""
    x = torch.zeros(-(-BEYOND // columns), columns, dtype=BF16, device="cuda")
    x[-3:].normal_()
    return x


def test_norms():
    x, w = huge(4096), torch.randn(4096, dtype=BF16, device="cuda")
    end = x[-3:].clone()
    y, rstd = K.rms_norm_forward(x, w, 1e-5)
    alone, alone_rstd = K.rms_norm_forward(end, w, 1e-5)
    assert torch.equal(y[-3:], alone)
    dx, _ = K.rms_norm_backward(y, x, w, rstd, out=y)
    assert torch.equal(dx[-3:], K.rms_norm_backward(alone, end, w, alone_rstd)[0])
    del y, dx
    y, mean, rstd = K.layer_norm_forward(x, w, w, 1e-5)
    alone, alone_mean, alone_rstd = K.layer_norm_forward(end, w, w, 1e-5)
    assert torch.equal(y[-3:], alone)
    dx, _, _ = K.layer_norm_backward(y, x, w, mean, rstd, out=y)
    assert torch.equal(dx[-3:], K.layer_norm_backward(alone, end, w, alone_mean, alone_rstd)[0])


def test_gates():
    gate_up = huge(2 * 14336)
    gate, up = K.split_gate_up(gate_up)
    ends = gate[-3:].clone(), up[-3:].clone()
    h = K.glu_forward(gate, up)
    assert torch.equal(h[-3:], K.glu_forward(*ends))
    want = K.glu_backward(h[-3:].clone(), *ends)
    K.glu_backward(h, gate, up, dgate=gate, dup=up)
    assert torch.equal(gate[-3:], want[0]) and torch.equal(up[-3:], want[1])


def test_rotations():
    qkv = huge(48 * 128)
    tokens = qkv.shape[0]
    q, k = qkv[:, : 32 * 128].view(tokens, 32, 128), qkv[:, 32 * 128 : 40 * 128].view(tokens, 8, 128)
    cos, sin = (torch.randn(64, 64, device="cuda") for _ in range(2))
    w, positions = torch.randn(128, dtype=BF16, device="cuda"), torch.arange(tokens, device="cuda") % 64
    end = q[-3:].clone(), k[-3:].clone()
    normed = K.qk_norm_rope_forward(*end, w, w, 1e-6, cos, sin, positions[-3:])
    turned = K.rope_forward(*end, cos, sin, positions[-3:])
    grads = K.qk_norm_rope_backward(*turned, *end, w, w, 1e-6, cos, sin, positions[-3:])
    got = K.qk_norm_rope_forward(q, k, w, w, 1e-6, cos, sin, positions)
    assert all(torch.equal(a[-3:], b) for a, b in zip(got, normed, strict=True))
    got = K.rope_forward(q, k, cos, sin, positions, q_out=got[0], k_out=got[1])
    assert all(torch.equal(a[-3:], b) for a, b in zip(got, turned, strict=True))
    got = K.qk_norm_rope_backward(*got, q, k, w, w, 1e-6, cos, sin, positions, dq_out=got[0], dk_out=got[1])
    assert all(torch.equal(a[-3:], b) for a, b in zip(got[:2], grads[:2], strict=True))


def test_heads_that_lie_far_apart():
    buffer = torch.zeros(9, BEYOND // 8, dtype=BF16, device="cuda")
    heads = buffer[:, : 2 * 64].view(9, 2, 64).transpose(0, 1)  # (2 tokens, 9 heads, 64), heads 2^28 apart
    heads.normal_()
    cos, sin = (torch.randn(2, 32, device="cuda") for _ in range(2))
    assert torch.equal(
        K.rope_forward(heads, None, cos, sin)[0], K.rope_forward(heads.contiguous(), None, cos, sin)[0]
    )


def test_losses():
    logits = huge(128256)
    targets = torch.zeros(logits.shape[0], dtype=torch.long, device="cuda")
    end = logits[-3:].clone()
    want = K.cross_entropy_forward(end, targets[-3:], grad_out=end)
    got = K.cross_entropy_forward(logits, targets, grad_out=logits)
    assert torch.equal(got.loss[-3:], want.loss) and torch.equal(logits[-3:], end)


def test_quantised_weights():
    rows, columns = -(-BEYOND // 4096), 4096
    blocks = rows * columns // 64
    f32 = {"dtype": torch.float32, "device": "cuda"}
    packed = torch.randint(0, 256, (blocks * 32,), dtype=torch.uint8, device="cuda")
    nested = SimpleNamespace(
        absmax=torch.rand(-(-blocks // 256), **f32), code=torch.rand(256, **f32), blocksize=256
    )
    state = SimpleNamespace(
        absmax=torch.randint(0, 256, (blocks,), dtype=torch.uint8, device="cuda"), code=torch.randn(16, **f32),
        blocksize=64, dtype=BF16, shape=torch.Size((rows, columns)), offset=torch.rand((), **f32), state2=nested,
    )  # fmt: skip
    got = K.dequantize_nf4(packed, state)
    # The last 256 blocks by hand, from the nested block that they end in.
    first = (blocks - 256) // 256 * 256
    absmax = (
        nested.code[state.absmax[first:].int()]
        * nested.absmax[first // 256 :].repeat_interleave(256)[: blocks - first]
    )
    absmax += state.offset
    both = torch.stack([packed[first * 32 :] >> 4, packed[first * 32 :] & 15], 1).flatten()
    want = (state.code[both.int()].view(-1, 64) * absmax[:, None]).to(BF16)
    assert torch.equal(got.view(-1, 64)[first:], want)
    a, b = torch.randn(8, columns, **f32), torch.randn(rows, 8, **f32)
    out = torch.empty(rows + 8, columns + 64, dtype=BF16, device="cuda")
    K.adapted_weight([K.Projection(packed[:, None], state, a=a, b=b, scale=0.5)], out)
    assert torch.equal(out[rows - 4096 : rows, :columns], got[-4096:])
    assert torch.equal(out[rows - 3 : rows, columns : columns + 8], (0.5 * b[-3:]).to(BF16))
    assert torch.equal(out[rows:, :columns], a.to(BF16))
    del out
    int8 = packed.view(torch.int8).repeat(2)[: rows * columns].view(rows, columns)
    scale = torch.rand(rows, **f32)
    assert torch.equal(
        K.dequantize_int8(int8, scale, dtype=BF16)[-3:], K.dequantize_int8(int8[-3:], scale[-3:], dtype=BF16)
    )
