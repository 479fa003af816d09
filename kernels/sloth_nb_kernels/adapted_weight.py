"""The dequantised weight of one input's projections (q, k, v; gate, up) with their LoRA factors around it:

    W (out, in)  | scale * B (out, rank)     one projection's rows under another's, each B in its own rows and
    A (rank, in) |                           columns, zeros beside them

so that one product computes base and adapters: [x, x A^T] times the upper rows is x W^T + scale * (x A^T) B^T, and
[dy, dt] times the left columns is dy W + dt A, where dt = dy (scale * B). NF4 weights and their factors take one
launch; the arithmetic is dequantize.py's, and a factor is scaled in fp32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from .dequantize import dequantize_int8_reference, dequantize_nf4_reference, nf4_grid, nf4_part
from .launch import launch, runs_triton, tl, triton
from .lora import Projection

__all__ = ["adapted_weight", "adapted_weight_reference"]

# So many projections fit into one launch.
_MOST = 3
# What a program does: a part of a row of NF4 values; or rows of B; or columns of one row of A.
_ROWS, _COLUMNS = 16, 1024


def adapted_weight_reference(projections: Sequence[Projection], dtype: torch.dtype) -> Tensor:
    """Plain torch, any device: the truth, (out + rank, in + rank), zeros in the corner that nobody reads."""
    adapted = [p for p in projections if p.a is not None]
    weight = torch.cat([_dense_reference(p, dtype) for p in projections])
    beside = torch.block_diag(
        *(weight.new_zeros(p.out_features, 0) if p.b is None else p.b.detach().float() * p.scale
          for p in projections)
    ).to(dtype)  # fmt: skip
    beneath = torch.cat([p.a.detach().to(dtype) for p in adapted])
    corner = weight.new_zeros(len(beneath), len(beneath))
    return torch.cat([torch.cat([weight, beside], 1), torch.cat([beneath, corner], 1)])


def _dense_reference(p: Projection, dtype: torch.dtype) -> Tensor:
    if p.quantised is None:
        return p.weight.detach().to(dtype)
    reference = dequantize_int8_reference if p.int8 else dequantize_nf4_reference
    return reference(p.weight.detach(), p.quantised, dtype=dtype)


@triton.jit
def _beside(B, scale, row, column, start, rows, first, rank):
    # One projection's part of a tile of scale * B; zeros outside.
    r, c = row - start, column - first
    inside = (r >= 0) & (r < rows) & (c >= 0) & (c < rank)
    return tl.load(B + r * rank + c, mask=inside, other=0.0).to(tl.float32) * scale


@triton.jit
def _adapted_kernel(
    PACKED0, ABSMAX0, CODE0, NESTED_CODE0, NESTED_ABSMAX0, OFFSET0, A0, B0,
    PACKED1, ABSMAX1, CODE1, NESTED_CODE1, NESTED_ABSMAX1, OFFSET1, A1, B1,
    PACKED2, ABSMAX2, CODE2, NESTED_CODE2, NESTED_ABSMAX2, OFFSET2, A2, B2,
    OUT, o_row, columns, rows0, rows1, rows2, rank0, rank1, rank2, scale0, scale1, scale2,
    PARTS: tl.constexpr, NESTED: tl.constexpr, SPAN_WORDS: tl.constexpr, NESTED_SPAN: tl.constexpr,
    WORDS: tl.constexpr, ROWS: tl.constexpr, RANKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row_words = columns // 8
    parts = tl.cdiv(row_words, WORDS)
    after0 = rows0 * parts
    after1 = after0 + rows1 * parts
    after2 = after1 + rows2 * parts
    rows, rank = rows0 + rows1 + rows2, rank0 + rank1 + rank2
    pid = tl.program_id(0)
    if pid < after0:
        nf4_part(
            PACKED0, ABSMAX0, CODE0, NESTED_CODE0, NESTED_ABSMAX0, OFFSET0, OUT, pid, row_words, o_row,
            NESTED, SPAN_WORDS, NESTED_SPAN, WORDS,
        )  # fmt: skip
    elif pid < after1:
        if PARTS > 1:
            nf4_part(
                PACKED1, ABSMAX1, CODE1, NESTED_CODE1, NESTED_ABSMAX1, OFFSET1,
                OUT + o_row.to(tl.int64) * rows0, pid - after0, row_words, o_row,
                NESTED, SPAN_WORDS, NESTED_SPAN, WORDS,
            )  # fmt: skip
    elif pid < after2:
        if PARTS > 2:
            nf4_part(
                PACKED2, ABSMAX2, CODE2, NESTED_CODE2, NESTED_ABSMAX2, OFFSET2,
                OUT + o_row.to(tl.int64) * (rows0 + rows1), pid - after1, row_words, o_row,
                NESTED, SPAN_WORDS, NESTED_SPAN, WORDS,
            )  # fmt: skip
    elif pid < after2 + tl.cdiv(rows, ROWS):
        row = (pid - after2) * ROWS + tl.arange(0, ROWS)[:, None]
        column = tl.arange(0, RANKS)[None, :]
        b = _beside(B0, scale0, row, column, 0, rows0, 0, rank0)
        if PARTS > 1:
            b += _beside(B1, scale1, row, column, rows0, rows1, rank0, rank1)
        if PARTS > 2:
            b += _beside(B2, scale2, row, column, rows0 + rows1, rows2, rank0 + rank1, rank2)
        tl.store(
            OUT + row.to(tl.int64) * o_row + columns + column, b.to(OUT.dtype.element_ty),
            mask=(row < rows) & (column < rank),
        )  # fmt: skip
    else:
        place = pid - after2 - tl.cdiv(rows, ROWS)
        pieces = tl.cdiv(columns, COLUMNS)
        k = place // pieces  # of all ranks the row, and of its projection's
        k1, k2 = k - rank0, k - rank0 - rank1
        here = place % pieces * COLUMNS + tl.arange(0, COLUMNS)
        known = here < columns
        a = tl.load(A0 + k * columns + here, mask=known & (k < rank0), other=0.0).to(tl.float32)
        if PARTS > 1:
            there = known & (k1 >= 0) & (k1 < rank1)
            a += tl.load(A1 + k1 * columns + here, mask=there, other=0.0).to(tl.float32)
        if PARTS > 2:
            a += tl.load(A2 + k2 * columns + here, mask=known & (k2 >= 0), other=0.0).to(tl.float32)
        tl.store(OUT + o_row.to(tl.int64) * (rows + k) + here, a.to(OUT.dtype.element_ty), mask=known)


def adapted_weight(projections: Sequence[Projection], out: Tensor) -> Tensor:
    """Fills ``out`` with the projections' weights, scale * B beside them and A beneath.

    Args:
        projections: of one input, in the order of their rows; at least one has an adapter. Biases and dropout are
            not looked at.
        out: (sum of out + sum of ranks, in + sum of ranks or more), fp32 | fp16 | bf16, rows contiguous. What lies
            beyond the ranks' columns, and beside A, is left as it is.
    Returns:
        ``out``.
    Raises:
        ValueError: it is too small, or its rows are not contiguous.
    """
    rank = sum(p.a.shape[0] for p in projections if p.a is not None)
    rows, columns = sum(p.out_features for p in projections), _width(projections)
    if out.dim() != 2 or out.stride(1) != 1 or out.shape[0] != rows + rank or out.shape[1] < columns + rank:
        raise ValueError(
            f"out must be ({rows + rank}, {columns + rank} or more) with contiguous rows, got {tuple(out.shape)}, "
            f"{out.stride()}"
        )
    if not _in_one_launch(projections, out, columns):
        return _one_by_one(projections, out, columns)
    sizes = _padded([p.out_features for p in projections], 0)
    ranks = _padded([0 if p.a is None else p.a.shape[0] for p in projections], 0)
    scales = _padded([float(p.scale) for p in projections], 0.0)
    operands = [_operands(p, out) for p in projections]
    tensors = chain.from_iterable(_padded(operands, operands[0]))
    state = projections[0].quantised
    nested = state.state2
    programs, words = nf4_grid(rows, columns // 8)
    programs += triton.cdiv(rows, _ROWS) + rank * triton.cdiv(columns, _COLUMNS)
    launch(
        _adapted_kernel, (programs,), *tensors, out, out.stride(0), columns, *sizes, *ranks, *scales,
        PARTS=len(projections), NESTED=nested is not None, SPAN_WORDS=state.blocksize // 8,
        NESTED_SPAN=1 if nested is None else nested.blocksize,
        WORDS=words, ROWS=_ROWS, RANKS=max(16, triton.next_power_of_2(rank)), COLUMNS=_COLUMNS, num_warps=4,
        enable_fp_fusion=False,  # as in dequantize.py
    )  # fmt: skip
    return out


def _padded(values: list[Any], nothing: Any) -> list[Any]:
    """As many as the kernel takes: of projections that aren't there it reads nothing."""
    return values + [nothing] * (_MOST - len(values))


def _width(projections: Sequence[Projection]) -> int:
    first = projections[0]
    return first.weight.shape[1] if first.quantised is None or first.int8 else first.quantised.shape[1]


def _in_one_launch(projections: Sequence[Projection], out: Tensor, columns: int) -> bool:
    """Whether all are NF4 of one kind, whose rows are whole words, and few enough."""
    if not runs_triton(out) or len(projections) > _MOST or columns % 8 or columns * out.shape[0] >= 2**34:
        return False
    if any(p.quantised is None or p.int8 for p in projections):
        return False
    if any(getattr(p.quantised, "packing_format_for_cpu", False) for p in projections):
        return False  # dequantize_nf4 says why that can't be
    kinds = {
        (p.quantised.blocksize, None if p.quantised.state2 is None else p.quantised.state2.blocksize)
        for p in projections
    }
    return len(kinds) == 1 and projections[0].quantised.blocksize % 8 == 0


def _operands(p: Projection, out: Tensor) -> list[Tensor]:
    """A projection's tensors as the kernel takes them; where it has no adapter nothing is read of the last two."""
    state = p.quantised
    nested = state.state2
    packed = p.weight.detach().view(torch.uint8).flatten().view(torch.int32)
    if nested is None:
        deeper = [state.code, state.absmax, state.absmax]
    else:
        deeper = [nested.code, nested.absmax, state.offset]
    adapter = [out, out] if p.a is None else [p.a.detach().contiguous(), p.b.detach().contiguous()]
    return [packed, state.absmax, state.code, *deeper, *adapter]


def _one_by_one(projections: Sequence[Projection], out: Tensor, columns: int) -> Tensor:
    rows = sum(p.out_features for p in projections)
    beside = out[:rows, columns : columns + len(out) - rows]
    if len(projections) > 1:
        beside.zero_()
    row = rank = 0
    for p in projections:
        mine = slice(row, row + p.out_features)
        p.dense(out.dtype, out[mine, :columns])
        if p.a is not None:
            ranks = slice(rank, rank + p.a.shape[0])
            torch.mul(p.b.detach().float(), p.scale, out=beside[mine, ranks])
            out[rows:][ranks, :columns].copy_(p.a.detach())
            rank = ranks.stop
        row = mine.stop
    return out
