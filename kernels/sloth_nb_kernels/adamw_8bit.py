"""AdamW with block-wise 8-bit states, of any number of parameters in one launch.

Dettmers et al. 2022 (arXiv:2110.02861): the two moments are kept as 8-bit codes of a fixed table, with one fp32
absmax for a block of 256. States, tables and arithmetic are bitsandbytes' own, which launches once a parameter: with
adapters some hundred launches of a few microseconds each, for one that is bound by memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from .launch import launch, pretending, runs_triton, tl, triton

__all__ = ["BLOCK", "AdamW8bitStep", "Moments", "Rates", "adamw_8bit_reference"]

BLOCK = 256
_ROWS = 8  # blocks a program takes


class Moments(NamedTuple):
    """A parameter with its gradient (same shape, contiguous) and its two moments.

    ``first`` and ``second`` are uint8 of the parameter's size, the absmax fp32, one for each block of 256.
    """

    parameter: Tensor
    gradient: Tensor
    first: Tensor
    second: Tensor
    first_absmax: Tensor
    second_absmax: Tensor


class Rates(NamedTuple):
    """What an AdamW step is taken with; ``step`` counts from one."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    step: int

    def worked_out(self) -> tuple[float, float, float]:
        """(step size, eps, decay) with the moments' corrections for their start, in double precision."""
        correction = math.sqrt(1 - self.betas[1] ** self.step)
        step_size = -self.lr * correction / (1 - self.betas[0] ** self.step)
        return step_size, correction * self.eps, 1 - self.lr * self.weight_decay


def _midpoints(levels: Tensor) -> Tensor:
    """(256,) ascending levels → (255,) numbers half-way between: a value's nearest code is how many it exceeds."""
    return (levels[:-1] + levels[1:]) * 0.5


def adamw_8bit_reference(moments: Moments, tables: tuple[Tensor, Tensor], rates: Rates) -> None:
    """Plain torch, any device: the truth. Arguments as in ``AdamW8bitStep``, of one parameter."""
    p, g, *codes_and_scales = moments
    codes, scales = codes_and_scales[:2], codes_and_scales[2:]
    step_size, eps, decay = rates.worked_out()
    count, blocks = p.numel(), scales[0].numel()
    gradient = g.detach().flatten().float()
    known = gradient.isfinite()
    values = []
    for code, levels, scale, beta, new in zip(
        codes, tables, scales, rates.betas, (gradient, gradient.square()), strict=True
    ):
        old = levels[code.flatten().int()] * scale.repeat_interleave(BLOCK)[:count]
        value = torch.where(known, old * beta + (1 - beta) * new, 0)
        padded = torch.nn.functional.pad(value, (0, blocks * BLOCK - count)).view(blocks, BLOCK)
        torch.amax(padded.abs(), 1, out=scale)
        ratio = (padded / scale.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).flatten()[:count]
        nearest = torch.bucketize(ratio, _midpoints(levels))
        nearest -= ((ratio < 0) & (levels[nearest] >= 0)).long()  # a moment keeps its sign
        code.copy_(nearest.to(torch.uint8).view(code.shape))
        values.append(value)
    first, second = values
    old = p.detach().flatten().float()
    changed = (old + step_size * (first / (second.sqrt() + eps))) * decay
    p.detach().copy_(torch.where(known, changed, old).view(p.shape))


@triton.jit
def _nearest(ratio, MIDPOINTS):
    code = tl.zeros(ratio.shape, tl.int32)
    for i in tl.static_range(8):
        step = 128 >> i
        code += tl.where(ratio > tl.load(MIDPOINTS + code + (step - 1)), step, 0)
    return code


@triton.jit
def _adamw_8bit_kernel(
    OWNER, TABLE, FIRST_LEVELS, SECOND_LEVELS, FIRST_MIDPOINTS, SECOND_MIDPOINTS,
    beta1, beta2, rest1, rest2, step_size, eps, decay,
    P: tl.constexpr, G: tl.constexpr, ALIGNED: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # TABLE has eight numbers a parameter: six addresses, its size, the first program that works on it.
    row = TABLE + tl.load(OWNER + tl.program_id(0)).to(tl.int64) * 8
    parameter = tl.load(row).to(tl.pointer_type(P))
    gradient = tl.load(row + 1).to(tl.pointer_type(G))
    first = tl.load(row + 2).to(tl.pointer_type(tl.uint8))
    second = tl.load(row + 3).to(tl.pointer_type(tl.uint8))
    count = tl.load(row + 6)
    if ALIGNED:
        count = tl.multiple_of(count, 16)
        parameter = tl.multiple_of(parameter, 16)
        gradient = tl.multiple_of(gradient, 16)
        first = tl.multiple_of(first, 16)
        second = tl.multiple_of(second, 16)
    first_absmax = tl.load(row + 4).to(tl.pointer_type(tl.float32))
    second_absmax = tl.load(row + 5).to(tl.pointer_type(tl.float32))
    place = tl.program_id(0) - tl.load(row + 7)

    block = place * ROWS + tl.arange(0, ROWS).to(tl.int64)
    at = place * (ROWS * BLOCK) + tl.arange(0, ROWS)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    mask, there = at < count, block * BLOCK < count

    g = tl.load(gradient + at, mask=mask, other=0.0).to(tl.float32)
    known = tl.abs(g) < float("inf")
    m = tl.load(FIRST_LEVELS + tl.load(first + at, mask=mask, other=0).to(tl.int32))
    m *= tl.load(first_absmax + block, mask=there, other=0.0)[:, None]
    m = tl.where(mask & known, m * beta1 + rest1 * g, 0.0)
    v = tl.load(SECOND_LEVELS + tl.load(second + at, mask=mask, other=0).to(tl.int32))
    v *= tl.load(second_absmax + block, mask=there, other=0.0)[:, None]
    v = tl.where(mask & known, v * beta2 + rest2 * g * g, 0.0)

    p = tl.load(parameter + at, mask=mask, other=0.0).to(tl.float32)
    changed = (p + step_size * (m / (tl.sqrt(v) + eps))) * decay
    tl.store(parameter + at, tl.where(known, changed, p).to(P), mask=mask)

    m_absmax, v_absmax = tl.max(tl.abs(m), 1), tl.max(v, 1)
    tl.store(first_absmax + block, m_absmax, mask=there)
    tl.store(second_absmax + block, v_absmax, mask=there)
    m /= tl.maximum(m_absmax, 1.1754944e-38)[:, None]
    v /= tl.maximum(v_absmax, 1.1754944e-38)[:, None]
    code = _nearest(m, FIRST_MIDPOINTS)
    code -= ((m < 0) & (tl.load(FIRST_LEVELS + code) >= 0)).to(tl.int32)  # a moment keeps its sign
    tl.store(first + at, code.to(tl.uint8), mask=mask)
    tl.store(second + at, _nearest(v, SECOND_MIDPOINTS).to(tl.uint8), mask=mask)


_TRITON_TYPES = {torch.float32: "float32", torch.float16: "float16", torch.bfloat16: "bfloat16"}


class AdamW8bitStep:
    """One AdamW step, in place, of many parameters at once; keeps the table of their addresses for the next step."""

    def __init__(self) -> None:
        self._sizes: tuple[int, ...] = ()
        self._addresses: list[int] = []
        self._owner: Tensor | None = None
        self._table: Tensor | None = None
        self._lookups: tuple[Tensor, ...] = ()

    def __call__(self, moments: Sequence[Moments], tables: tuple[Tensor, Tensor], rates: Rates) -> None:
        """Updates parameters and moments.

        Where a gradient isn't finite the parameter stays and its moments become zero, as with bitsandbytes.

        Args:
            moments: parameters of one device and dtype (fp32 | fp16 | bf16), gradients of one dtype.
            tables: the (256,) fp32 levels of the first and the second moment, ascending, on that device.
        """
        moments = [each for each in moments if each.parameter.numel()]
        if not moments:
            return
        if not runs_triton(moments[0].parameter):
            for each in moments:
                adamw_8bit_reference(each, tables, rates)
            return
        self._list(moments, tables)
        beta1, beta2 = rates.betas
        parameter, gradient = moments[0][:2]
        launch(
            _adamw_8bit_kernel, (self._owner.numel(),), self._owner, self._table,
            *self._lookups, beta1, beta2, 1 - beta1, 1 - beta2, *rates.worked_out(),
            P=getattr(tl, _TRITON_TYPES[parameter.dtype]), G=getattr(tl, _TRITON_TYPES[gradient.dtype]),
            ALIGNED=all(number % 16 == 0 for number in (*self._addresses, *self._sizes)),
            ROWS=_ROWS, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip

    def _list(self, moments: Sequence[Moments], tables: tuple[Tensor, Tensor]) -> None:
        """Brings up to date what the kernel looks things up in; addresses most often stay as they were."""
        if not self._lookups or any(a is not b for a, b in zip(self._lookups, tables, strict=False)):
            self._lookups = (*tables, *map(_midpoints, tables))
        device, span = moments[0].parameter.device, _ROWS * BLOCK
        sizes = tuple(each.parameter.numel() for each in moments)
        # In a dry run there is no memory, and what is made is as aligned as allocations are.
        dry = pretending()
        addresses = [0 if dry else tensor.data_ptr() for each in moments for tensor in each]
        if self._owner is None or self._owner.device != device or sizes != self._sizes:
            self._sizes, self._addresses = sizes, []
            programs = [-(-size // span) for size in sizes]
            *self._firsts, total = accumulate(programs, initial=0)
            numbers = torch.arange(len(sizes), dtype=torch.int32)
            self._owner = numbers.repeat_interleave(torch.tensor(programs), output_size=total).to(device)
        if addresses != self._addresses:
            self._addresses = addresses
            rows = torch.tensor(addresses).view(len(sizes), 6)
            more = torch.tensor([sizes, self._firsts]).t()
            self._table = torch.cat([rows, more], 1).to(device)
