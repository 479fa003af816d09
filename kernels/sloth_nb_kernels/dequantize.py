"""Weights of bitsandbytes back in floating point: NF4 (nested absmax included) and int8, one launch each.

NF4 (Dettmers et al. 2023, arXiv:2305.14314): 16 levels, one absmax for a block of 64 values; nested, the
absmax are 8-bit themselves, with one fp32 absmax for 256 of them and their mean as an offset. Two values lie
in a byte, the first in its high half. The arithmetic is bitsandbytes' own (fp32, one rounding), so that
results are equal bit for bit; bitsandbytes takes two launches and an addition for what one does here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .launch import launch, runs_triton, tl, triton

__all__ = [
    "dequantize_int8",
    "dequantize_int8_reference",
    "dequantize_nf4",
    "dequantize_nf4_reference",
]

_PER_INT8 = 1.0 / 127.0


def dequantize_nf4_reference(packed: Tensor, state: Any, *, dtype: torch.dtype | None = None) -> Tensor:
    """Plain torch, any device: the truth, equal to bitsandbytes bit for bit. Arguments as in
    ``dequantize_nf4``."""
    absmax = state.absmax
    if state.state2 is not None:
        nested = state.state2
        scale = nested.absmax.repeat_interleave(nested.blocksize)[: absmax.numel()]
        absmax = nested.code[absmax.int()] * scale + state.offset
    count = state.shape.numel()
    packed = packed.contiguous().view(torch.uint8).flatten()
    pairs = torch.stack([state.code.repeat_interleave(16), state.code.repeat(16)], 1)  # what each byte says
    values = torch.nn.functional.embedding(packed.int(), pairs).flatten()[:count]
    full = count - count % state.blocksize
    out = torch.empty(count, dtype=dtype or state.dtype, device=packed.device)
    blocks = full // state.blocksize
    whole = blocks, state.blocksize
    torch.mul(values[:full].view(whole), absmax[:blocks, None], out=out[:full].view(whole))
    torch.mul(values[full:], absmax[blocks:], out=out[full:])
    return out.view(state.shape)


@triton.jit
def nf4_part(
    PACKED, ABSMAX, CODE, NESTED_CODE, NESTED_ABSMAX, OFFSET, OUT, program, row_words, o_row,
    NESTED: tl.constexpr, SPAN_WORDS: tl.constexpr, NESTED_SPAN: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """A program's part of one row of a weight, whose rows are whole words and ``o_row`` values apart in the result.

    Other kernels call it, too, with the programs and WORDS that ``nf4_grid`` says.
    """
    # No program has words of two rows: dividing for each of them took a twelfth of the time.
    parts = tl.cdiv(row_words, WORDS)
    row = program // parts
    # A thread takes four bytes and writes their eight values, 16 bytes of a 16-bit dtype: both coalesce.
    place = program % parts * WORDS + tl.arange(0, WORDS)
    known, word = place < row_words, row * row_words + place
    packed = tl.load(PACKED + word, mask=known, other=0)
    span = word // SPAN_WORDS
    absmax = tl.load(ABSMAX + span, mask=known, other=0)
    if NESTED:
        absmax = tl.load(NESTED_CODE + absmax.to(tl.int32))
        absmax *= tl.load(NESTED_ABSMAX + span // NESTED_SPAN, mask=known, other=0.0)
        absmax += tl.load(OFFSET)
    value = tl.arange(0, 8)
    shift = value // 2 * 8 + 4 - value % 2 * 4  # of each byte the high half first
    level = (packed[:, None] >> shift[None, :]) & 15
    values = (tl.load(CODE + level) * absmax[:, None]).to(OUT.dtype.element_ty)
    at = OUT + row.to(tl.int64) * o_row + place[:, None].to(tl.int64) * 8 + value[None, :]
    tl.store(at, values, mask=known[:, None])


@triton.jit
def _nf4_kernel(
    PACKED, ABSMAX, CODE, NESTED_CODE, NESTED_ABSMAX, OFFSET, OUT, row_words, o_row,
    NESTED: tl.constexpr, SPAN_WORDS: tl.constexpr, NESTED_SPAN: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    nf4_part(
        PACKED, ABSMAX, CODE, NESTED_CODE, NESTED_ABSMAX, OFFSET, OUT, tl.program_id(0), row_words, o_row,
        NESTED, SPAN_WORDS, NESTED_SPAN, WORDS,
    )  # fmt: skip


# Words that a program takes at most.
_WORDS = 256


def nf4_grid(rows: int, row_words: int) -> tuple[int, int]:
    """(programs, words that each takes) for so many rows."""
    words = min(_WORDS, triton.next_power_of_2(row_words))
    return rows * triton.cdiv(row_words, words), words


def dequantize_nf4(
    packed: Tensor, state: Any, *, dtype: torch.dtype | None = None, out: Tensor | None = None
) -> Tensor:
    """A 4-bit weight of bitsandbytes in floating point.

    Args:
        packed: the weight's bytes, two values each, of any storage dtype.
        state: its ``quant_state`` (or anything with its fields: absmax, code, blocksize, shape, dtype, offset
            and state2 with absmax, code, blocksize when nested).
        dtype: of the result, fp32 | fp16 | bf16; the state's own by default.
        out: a buffer of the weight's shape with contiguous rows (they may lie apart: columns of a wider buffer),
            or any contiguous one of its size; sets the dtype.
    Returns:
        The weight, of the state's shape.
    Raises:
        ValueError: the bytes were repacked for the CPU's 4-bit products by bitsandbytes (an ``eval()``
            forward on the CPU does that), or ``out`` does not fit.
    """
    if getattr(state, "packing_format_for_cpu", False):
        raise ValueError(
            "this 4-bit weight was repacked by bitsandbytes for inference on the CPU and can't be trained "
            "through: load the model again and train before any evaluation (or set "
            "support_avx512bf16_for_cpu = False on its layers)"
        )
    shape, span, nested = torch.Size(state.shape), state.blocksize, state.state2
    if out is None:
        out = torch.empty(shape, dtype=dtype or state.dtype, device=packed.device)
    elif out.numel() != shape.numel() or not (
        out.is_contiguous() or (out.shape == shape and out.stride(-1) == 1)
    ):
        raise ValueError(
            f"out must be {tuple(shape)} with contiguous rows, got {tuple(out.shape)}, {out.stride()}"
        )
    elif out.is_contiguous():
        out = out.view(shape)
    apart = not out.is_contiguous()
    words = shape.numel() // 8
    whole = shape.numel() % 8 == 0 and span % 8 == 0 and words < 2**31
    if not runs_triton(packed) or not whole or (apart and (out.dim() != 2 or shape[1] % 8)):
        return out.copy_(dequantize_nf4_reference(packed, state, dtype=out.dtype))
    if nested is None:
        deeper = state.code, state.absmax, state.absmax
    else:
        deeper = nested.code, nested.absmax, state.offset
    rows, row_words = (shape[0], shape[1] // 8) if apart else (1, words)
    programs, part = nf4_grid(rows, row_words)
    launch(
        _nf4_kernel, (programs,),
        packed.view(torch.uint8).flatten().view(torch.int32), state.absmax, state.code,
        *deeper, out, row_words, out.stride(0),
        NESTED=nested is not None, SPAN_WORDS=span // 8,
        NESTED_SPAN=1 if nested is None else nested.blocksize, WORDS=part, num_warps=4,
        enable_fp_fusion=False,  # a fused multiply-add would round absmax once less than bitsandbytes
    )  # fmt: skip
    return out


def dequantize_int8_reference(
    quantised: Tensor, scale: Tensor, *, dtype: torch.dtype = torch.float16
) -> Tensor:
    """Plain torch, any device: the truth. Arguments as in ``dequantize_int8``."""
    return (quantised * (scale.float() * _PER_INT8)[:, None]).to(dtype)


@triton.jit
def _int8_kernel(
    QUANTISED, SCALE, OUT, q_row, o_row, rows, columns, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    col = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask = (row < rows)[:, None] & (col < columns)
    scale = tl.load(SCALE + row, mask=row < rows, other=0.0).to(tl.float32) * (1.0 / 127.0)
    q = tl.load(QUANTISED + row[:, None] * q_row + col, mask=mask, other=0).to(tl.float32)
    tl.store(OUT + row[:, None] * o_row + col, (q * scale[:, None]).to(OUT.dtype.element_ty), mask=mask)


def dequantize_int8(
    quantised: Tensor, scale: Tensor, *, dtype: torch.dtype = torch.float16, out: Tensor | None = None
) -> Tensor:
    """An LLM.int8() weight (Dettmers et al. 2022, arXiv:2208.07339) in floating point: CB * SCB / 127, by
    row.

    Args:
        quantised: (out, in) int8, ``CB``. scale: (out,) fp32, ``SCB``.
        dtype: of the result; ``out`` (of the same shape, contiguous rows) sets it.
    Raises:
        ValueError: shapes that do not fit each other.
    """
    if quantised.dim() != 2 or scale.shape != quantised.shape[:1]:
        raise ValueError(
            f"needs int8 (out, in) and scale (out,), got {tuple(quantised.shape)}, {tuple(scale.shape)}"
        )
    if out is not None and (out.shape != quantised.shape or out.stride(-1) != 1):
        raise ValueError(f"out must be {tuple(quantised.shape)} with contiguous rows, got {tuple(out.shape)}")
    if not runs_triton(quantised):
        made = dequantize_int8_reference(quantised, scale, dtype=dtype if out is None else out.dtype)
        return made if out is None else out.copy_(made)
    out = torch.empty(quantised.shape, dtype=dtype, device=quantised.device) if out is None else out
    quantised = quantised if quantised.stride(-1) == 1 else quantised.contiguous()
    rows, columns = quantised.shape
    launch(
        _int8_kernel, (triton.cdiv(rows, 4), triton.cdiv(columns, 1024)),
        quantised, scale.contiguous(), out, quantised.stride(0), out.stride(0), rows, columns,
        ROWS=4, BLOCK=1024, num_warps=4,
    )  # fmt: skip
    return out
