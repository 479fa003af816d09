"""Causal attention, forward and backward, by the fastest kernel that the device has.

All take tokens-major views: q (tokens, heads, head_dim), k and v (tokens, kv_heads, head_dim), of any stride, and
return the output (tokens, heads, head_dim), contiguous, with what their backward needs besides it.

- ``CuDNN``: Hopper and later, dense batches, no window (1.75 times the flash kernel at 16k tokens on an H200).
- ``Flash``: compute capability 8.0 and later; packed sequences and windows. Dao 2023, arXiv 2307.08691.
- ``Efficient``: any CUDA device (V100, T4) and fp32. Rabe & Staats 2021, arXiv 2112.05682.
- ``HostFlash``: CPU.
- ``Composite``: plain torch with what the others can't say (soft-capped scores), a few heads at a time.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from sloth_nb_kernels.launch import capability, on_gpu
from torch import Tensor

from .sequences import Sequences
from .spec import LayerSpec

__all__ = ["Attention", "choose_attention"]

aten = torch.ops.aten

# Before, torch's kernel for a CPU wants a key for each query.
_GROUPS_ON_HOST = torch.__version__ >= "2.11"


class Attention(Protocol):
    """One way to compute attention. ``extra`` is a tuple of small tensors (log-sum-exp, ...)."""

    name: str

    def forward(self, q: Tensor, k: Tensor, v: Tensor, seqs: Sequences) -> tuple[Tensor, tuple]: ...

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, extra: tuple, seqs: Sequences
    ) -> tuple[Tensor, Tensor, Tensor]: ...


def _dense(x: Tensor, seqs: Sequences) -> Tensor:
    """(tokens, heads, dim) → (batch, length, heads, dim), a view."""
    return x.unflatten(0, (seqs.batch, seqs.length))


def _repeat(x: Tensor, times: int) -> Tensor:
    """Each key/value head ``times`` times along dim -2, as grouped-query attention pairs them."""
    return x if times == 1 else x.repeat_interleave(times, dim=-2)


def _fold(x: Tensor, times: int) -> Tensor:
    """The transpose of ``_repeat``: sums the gradients of a head's copies."""
    return x if times == 1 else x.unflatten(-2, (-1, times)).sum(-2)


@dataclass
class CuDNN:
    scale: float
    name: str = "cuDNN"

    def forward(self, q: Tensor, k: Tensor, v: Tensor, seqs: Sequences) -> tuple[Tensor, tuple]:
        q, k, v = (_dense(x, seqs).transpose(1, 2) for x in (q, k, v))
        out, lse, cum_q, cum_k, max_q, max_k, seed, offset, _ = aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, True, False, scale=self.scale
        )
        return out.transpose(1, 2).flatten(0, 1), (lse, cum_q, cum_k, max_q, max_k, seed, offset)

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, extra: tuple, seqs: Sequences
    ) -> tuple[Tensor, Tensor, Tensor]:
        lse, cum_q, cum_k, max_q, max_k, seed, offset = extra
        dout, q, k, v, out = (_dense(x, seqs).transpose(1, 2) for x in (dout, q, k, v, out))
        grads = aten._scaled_dot_product_cudnn_attention_backward(
            dout, q, k, v, out, lse, seed, offset, None, cum_q, cum_k, max_q, max_k, 0.0, True,
            scale=self.scale,
        )  # fmt: skip
        return tuple(g.transpose(1, 2).flatten(0, 1) for g in grads)


@dataclass
class Flash:
    scale: float
    window: int | None = None
    name: str = "flash"

    def _arguments(self, seqs: Sequences) -> tuple[tuple, dict[str, Any]]:
        cu = seqs.cu_seqlens
        sides = {}
        if self.window is not None:
            sides = {"window_size_left": self.window - 1, "window_size_right": 0}
        return (cu, cu, seqs.length, seqs.length), {"scale": self.scale, **sides}

    def _shape(self, x: Tensor, seqs: Sequences) -> Tensor:
        return x if seqs.packed else _dense(x, seqs)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, seqs: Sequences) -> tuple[Tensor, tuple]:
        lengths, options = self._arguments(seqs)
        q, k, v = (self._shape(x, seqs) for x in (q, k, v))
        out, lse, rng, unused, _ = aten._flash_attention_forward(
            q, k, v, *lengths, 0.0, True, False, **options
        )
        return (out if seqs.packed else out.flatten(0, 1)), (lse, rng, unused)

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, extra: tuple, seqs: Sequences
    ) -> tuple[Tensor, Tensor, Tensor]:
        lengths, options = self._arguments(seqs)
        lse, rng, unused = extra
        dout, q, k, v, out = (self._shape(x, seqs) for x in (dout, q, k, v, out))
        grads = aten._flash_attention_backward(
            dout, q, k, v, out, lse, *lengths, 0.0, True, rng, unused, **options
        )
        return tuple(g if seqs.packed else g.flatten(0, 1) for g in grads)


@dataclass
class Efficient:
    scale: float
    groups: int
    window: int | None = None
    name: str = "memory-efficient"

    _CAUSAL = 1

    def _shapes(self, seqs: Sequences, q: Tensor, *others: Tensor) -> list[Tensor]:
        tensors = [q, *others]
        return [x.unsqueeze(0) if seqs.packed else _dense(x, seqs) for x in tensors]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, seqs: Sequences) -> tuple[Tensor, tuple]:
        q, k, v = self._shapes(seqs, q, _repeat(k, self.groups), _repeat(v, self.groups))
        cu, longest = seqs.cu_seqlens, seqs.length if seqs.packed else None
        out, lse, seed, offset, max_q, max_k = aten._efficient_attention_forward(
            q, k, v, None, cu, cu, longest, longest, 0.0, self._CAUSAL, True,
            scale=self.scale, window_size=self.window,
        )  # fmt: skip
        return out.flatten(0, 1), (lse, seed, offset, max_q, max_k)

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, extra: tuple, seqs: Sequences
    ) -> tuple[Tensor, Tensor, Tensor]:
        lse, seed, offset, max_q, max_k = extra
        tensors = (q, _repeat(k, self.groups), _repeat(v, self.groups), dout, out)
        q, k, v, dout, out = self._shapes(seqs, *tensors)
        cu = seqs.cu_seqlens
        dq, dk, dv, _ = aten._efficient_attention_backward(
            dout, q, k, v, None, out, cu, cu, max_q, max_k, lse, 0.0, seed, offset, self._CAUSAL, False,
            scale=self.scale, window_size=self.window,
        )  # fmt: skip
        dk, dv = _fold(dk, self.groups), _fold(dv, self.groups)
        return dq.flatten(0, 1), dk.flatten(0, 1), dv.flatten(0, 1)


@dataclass
class HostFlash:
    """The CPU's flash kernel; packed sequences one after the other, so that no mask is ever built for them.

    ``groups``: how often each key is laid out for the queries that share it.
    """

    scale: float
    groups: int
    window: int | None = None
    name: str = "CPU flash"

    def _mask(self, length: int, like: Tensor) -> Tensor | None:
        if self.window is None or self.window >= length:
            return None
        i = torch.arange(length, device=like.device)
        distance = i[:, None] - i[None, :]
        seen = (distance >= 0) & (distance < self.window)
        return torch.zeros(length, length, dtype=like.dtype).masked_fill_(~seen, -math.inf)

    def _pieces(self, seqs: Sequences, *tensors: Tensor) -> list[list[Tensor]]:
        """Each piece: the tensors as (batch, heads, length, dim)."""
        if not seqs.packed:
            return [[_dense(x, seqs).transpose(1, 2) for x in tensors]]
        return [[x[a:b].transpose(0, 1).unsqueeze(0) for x in tensors] for a, b in seqs.bounds]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, seqs: Sequences) -> tuple[Tensor, tuple]:
        outs, stats = [], []
        for piece in self._pieces(seqs, q, _repeat(k, self.groups), _repeat(v, self.groups)):
            mask = self._mask(piece[0].shape[2], piece[0])
            out, lse = aten._scaled_dot_product_flash_attention_for_cpu(
                *piece, 0.0, mask is None, attn_mask=mask, scale=self.scale
            )
            outs.append(out.transpose(1, 2).flatten(0, 1))
            stats.append(lse)
        return torch.cat(outs) if len(outs) > 1 else outs[0].contiguous(), tuple(stats)

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, extra: tuple, seqs: Sequences
    ) -> tuple[Tensor, Tensor, Tensor]:
        k, v = _repeat(k, self.groups), _repeat(v, self.groups)
        grads: list[tuple[Tensor, ...]] = []
        pieces = self._pieces(seqs, dout, q, k, v, out)
        for (dout_, q_, k_, v_, out_), lse in zip(pieces, extra, strict=True):
            mask = self._mask(q_.shape[2], q_)
            dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                dout_, q_, k_, v_, out_, lse, 0.0, mask is None, attn_mask=mask, scale=self.scale
            )
            grads.append(tuple(g.transpose(1, 2).flatten(0, 1) for g in (dq, dk, dv)))
        dq, dk, dv = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*grads, strict=True))
        return dq, _fold(dk, self.groups), _fold(dv, self.groups)


@dataclass
class Composite:
    """Scores in full, for a few heads at a time: soft-capped attention (Gemma 2), anywhere."""

    scale: float
    groups: int
    window: int | None = None
    softcap: float | None = None
    name: str = "composite"
    scores_bytes: int = 256 << 20

    def _visible(self, seqs: Sequences, device: torch.device) -> Tensor:
        """(length, length), or (tokens, tokens) across packed sequences: which key a query sees."""
        n = seqs.tokens if seqs.packed else seqs.length
        i = torch.arange(n, device=device)
        distance = i[:, None] - i[None, :]
        seen = distance >= 0
        if self.window is not None:
            seen &= distance < self.window
        if seqs.packed:
            owner = torch.bucketize(i, seqs.cu_seqlens[1:], right=True)
            seen &= owner[:, None] == owner[None, :]
        return seen

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
        scores = torch.matmul(q, k.transpose(-1, -2)) * self.scale
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
        return torch.matmul(torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype), v)

    def _chunks(self, q: Tensor, seqs: Sequences) -> list[slice]:
        """Ranges of key/value heads whose fp32 scores fit the byte budget."""
        n, batch = (seqs.tokens, 1) if seqs.packed else (seqs.length, seqs.batch)
        kv_heads = q.shape[1] // self.groups
        step = max(1, min(kv_heads, self.scores_bytes // max(1, 4 * batch * self.groups * n * n)))
        return [slice(i, min(i + step, kv_heads)) for i in range(0, kv_heads, step)]

    def _heads(self, x: Tensor, heads: slice, seqs: Sequences) -> Tensor:
        x = x[:, heads]
        return (x.unsqueeze(0) if seqs.packed else _dense(x, seqs)).transpose(1, 2)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, seqs: Sequences) -> tuple[Tensor, tuple]:
        seen = self._visible(seqs, q.device)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for kv in self._chunks(q, seqs):
            heads = slice(kv.start * self.groups, kv.stop * self.groups)
            part = self._attend(
                self._heads(q, heads, seqs),
                _repeat(self._heads(k, kv, seqs).transpose(1, 2), self.groups).transpose(1, 2),
                _repeat(self._heads(v, kv, seqs).transpose(1, 2), self.groups).transpose(1, 2),
                seen,
            )
            out[:, heads] = part.transpose(1, 2).flatten(0, 1)
        return out, ()

    def backward(
        self, dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, extra: tuple, seqs: Sequences
    ) -> tuple[Tensor, Tensor, Tensor]:
        seen = self._visible(seqs, q.device)
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        for kv in self._chunks(q, seqs):
            heads = slice(kv.start * self.groups, kv.stop * self.groups)
            with torch.enable_grad():
                leaves = [
                    self._heads(x, h, seqs).detach().requires_grad_()
                    for x, h in ((q, heads), (k, kv), (v, kv))
                ]
                k_, v_ = (_repeat(x.transpose(1, 2), self.groups).transpose(1, 2) for x in leaves[1:])
                part = self._attend(leaves[0], k_, v_, seen)
            grads = torch.autograd.grad(part, leaves, self._heads(dout, heads, seqs))
            for target, grad, h in zip((dq, dk, dv), grads, (heads, kv, kv), strict=True):
                target[:, h] = grad.transpose(1, 2).flatten(0, 1)
        return dq, dk, dv


@lru_cache(maxsize=64)
def _cudnn_runs(device: int, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether this device's cuDNN takes this head size, forward and backward: tried once on a few tokens."""
    if torch.cuda.get_device_capability(device) < (9, 0):
        return False
    seqs = Sequences(1, 64)
    q = torch.randn(64, 2, head_dim, device=f"cuda:{device}", dtype=dtype)
    k = torch.randn(64, 1, head_dim, device=f"cuda:{device}", dtype=dtype)
    try:
        kernel = CuDNN(1.0)
        out, extra = kernel.forward(q, k, k, seqs)
        kernel.backward(out, q, k, k, out, extra, seqs)
    except RuntimeError:
        return False
    return True


def _takes_cudnn(spec: LayerSpec, like: Tensor) -> bool:
    if not like.is_cuda:  # a pretended card, for a dry run: what cuDNN 9 takes, forward and backward
        return capability(like) >= (9, 0) and spec.head_dim <= 128
    device = like.device.index if like.device.index is not None else torch.cuda.current_device()
    return _cudnn_runs(device, like.dtype, spec.head_dim)


def choose_attention(spec: LayerSpec, seqs: Sequences, like: Tensor) -> Attention:
    """The fastest exact kernel for this layer on this batch and device."""
    groups = spec.heads // spec.kv_heads
    window = spec.window if spec.window is not None and spec.window < seqs.length else None
    if spec.softcap is not None:
        return Composite(spec.scale, groups, window, spec.softcap)
    if not on_gpu(like):
        return HostFlash(spec.scale, 1 if _GROUPS_ON_HOST else groups, window)
    half = like.dtype in (torch.float16, torch.bfloat16)
    if not half or capability(like) < (8, 0) or spec.head_dim > 256:
        return Efficient(spec.scale, groups, window)
    if window is None and not seqs.packed and _takes_cudnn(spec, like):
        return CuDNN(spec.scale)
    return Flash(spec.scale, window)
