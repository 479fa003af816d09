"""NF4 and int8 weights back in floating point: bit for bit bitsandbytes' own, nested or not, any shape."""

from types import SimpleNamespace

import pytest
import torch
from sloth_nb_kernels import dequantize_int8, dequantize_nf4, dequantize_nf4_reference

SHAPES = [(64, 64), (576, 192), (1, 64), (3, 50), (2, 10), (130, 96), (256, 320)]


def quantised(shape, nested, device, kind="nf4", dtype=torch.float32):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype).to(device)
    return functional.quantize_4bit(weight, quant_type=kind, compress_statistics=nested)


def same(got, want, device):
    """Bit for bit; the interpreter truncates where it should round to bf16, so there the neighbour will
    do."""
    if got.dtype is torch.bfloat16 and device == "cpu":
        return (got.view(torch.int16).int() - want.view(torch.int16).int()).abs().max() <= 1
    return torch.equal(got, want)


@pytest.mark.parametrize("nested", [True, False], ids=["nested", "plain"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "x".join(map(str, s)))
def test_nf4_equals_bitsandbytes(device, dtype, shape, nested):
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = quantised(shape, nested, device)
    got = dequantize_nf4(packed, state, dtype=dtype)
    # As one row: bitsandbytes' CPU kernel (0.50.2) is wrong where a block runs over the end of a row.
    state.dtype, state.shape = dtype, torch.Size((1, shape[0] * shape[1]))
    want = functional.dequantize_4bit(packed, state).view(shape)
    assert got.dtype == dtype and got.shape == shape
    assert same(got, want, device)
    if device == "cpu":
        assert torch.equal(dequantize_nf4_reference(packed, state, dtype=dtype).view(shape), want)


def test_a_buffer_is_filled_and_sets_the_dtype(device):
    packed, state = quantised((130, 96), True, device)
    both = torch.zeros(2 * 130, 96, device=device, dtype=torch.float16)
    got = dequantize_nf4(packed, state, out=both[130:])
    assert torch.equal(got, dequantize_nf4(packed, state, dtype=torch.float16))
    assert torch.equal(both[130:], got) and both[:130].eq(0).all()
    flat = torch.empty(130 * 96, device=device)
    assert torch.equal(dequantize_nf4(packed, state, out=flat), dequantize_nf4(packed, state))


@pytest.mark.parametrize("shape", [(33, 128), (5, 50)], ids=["whole blocks a row", "blocks across rows"])
def test_rows_may_lie_apart_in_a_wider_buffer(device, shape):
    packed, state = quantised(shape, True, device)
    buffer = torch.zeros(shape[0], shape[1] + 16, device=device)
    got = dequantize_nf4(packed, state, out=buffer[:, : shape[1]])
    assert torch.equal(got, dequantize_nf4(packed, state)) and got.data_ptr() == buffer.data_ptr()
    assert buffer[:, shape[1] :].eq(0).all()


def test_other_block_sizes_and_fp4_go_by_their_own_table(device):
    functional = pytest.importorskip("bitsandbytes.functional")
    weight = torch.randn(40, 128, device=device)
    for kind, blocksize in (("nf4", 128), ("fp4", 64)):
        packed, state = functional.quantize_4bit(weight, quant_type=kind, blocksize=blocksize)
        torch.testing.assert_close(
            dequantize_nf4(packed, state), functional.dequantize_4bit(packed, state), rtol=2e-7, atol=0
        )


def test_bytes_stored_under_another_dtype_are_read_as_bytes(device):
    packed, state = quantised((64, 64), True, device)
    assert torch.equal(
        dequantize_nf4(packed.flatten().view(torch.bfloat16)[:, None], state), dequantize_nf4(packed, state)
    )


def test_int8_rows_are_scaled_as_bitsandbytes_does(device, dtype, randn):
    functional = pytest.importorskip("bitsandbytes.functional")
    quantised, scale = (
        torch.randint(-127, 128, (37, 1100), dtype=torch.int8, device=device),
        randn(37).abs() + 0.1,
    )
    got = dequantize_int8(quantised, scale, dtype=dtype)
    want = (quantised.double() * scale.double()[:, None] / 127).cpu()
    # Two fp32 products and one rounding to the dtype (truncation under the interpreter).
    bound = (torch.finfo(dtype).eps + 2 * 2.0**-23) * want.abs()
    assert ((got.cpu().double() - want).abs() <= bound).all()
    if dtype is torch.float32:
        torch.testing.assert_close(
            got, functional.int8_vectorwise_dequant(quantised, scale), rtol=3e-7, atol=0
        )
    buffer = torch.zeros(37, 1200, dtype=dtype, device=device)
    dequantize_int8(quantised, scale, out=buffer[:, :1100])
    assert torch.equal(buffer[:, :1100], got) and buffer[:, 1100:].eq(0).all()


def test_a_weight_repacked_for_the_cpu_is_refused_with_the_way_out():
    state = SimpleNamespace(packing_format_for_cpu=True)
    with pytest.raises(ValueError, match="train before any evaluation"):
        dequantize_nf4(torch.zeros(8, 1, dtype=torch.uint8), state)


def test_buffers_that_do_not_fit_are_refused():
    packed, state = quantised((64, 64), True, "cpu")
    with pytest.raises(ValueError, match=r"out must be \(64, 64\) with contiguous rows, got \(64, 63\)"):
        dequantize_nf4(packed, state, out=torch.empty(64, 63))
    with pytest.raises(ValueError, match=r"\(4, 8\), \(5,\)"):
        dequantize_int8(torch.zeros(4, 8, dtype=torch.int8), torch.ones(5))


def test_a_planted_fault_is_found(device, dtype):
    """The two values of a byte exchanged, or the offset of nested absmax left out, are seen at once."""
    functional = pytest.importorskip("bitsandbytes.functional")
    packed, state = quantised((64, 64), True, device)
    state.dtype = dtype
    want = functional.dequantize_4bit(packed, state)
    swapped = ((packed.int() & 15) * 16 + packed.int() // 16).to(torch.uint8)
    assert not same(dequantize_nf4(swapped, state, dtype=dtype), want, device)
    state.offset = state.offset * 0
    assert not same(dequantize_nf4(packed, state, dtype=dtype), want, device)


def test_the_scales_of_int8_rows_may_lie_in_any_strides(device):
    quantised = torch.arange(-60, 60, dtype=torch.int8, device=device).view(6, 20)
    scale = torch.arange(1.0, 13.0, device=device)[::2]
    wanted = dequantize_int8(quantised, scale.contiguous(), dtype=torch.float32)
    assert dequantize_int8(quantised, scale, dtype=torch.float32).equal(wanted)
