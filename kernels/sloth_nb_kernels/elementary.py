"""Elementary functions inside kernels, in fp32, built from exp and erf alone.

Triton's own ``tl.sigmoid`` and libdevice's tanh are missing in its interpreter or on some targets.
"""

from __future__ import annotations

from .launch import tl, triton

__all__ = ["gelu", "gelu_slope", "gelu_tanh", "gelu_tanh_slope", "sigmoid", "silu", "silu_slope", "tanh"]


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    # Near zero 1 - exp(-2|x|) cancels; there the odd series is exact to fp32 (next term 62 x^9 / 2835).
    x2 = x * x
    series = x * (1.0 + x2 * (-1.0 / 3.0 + x2 * (2.0 / 15.0 - x2 * (17.0 / 315.0))))
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    return tl.where(x2 < 0.01, series, tl.where(x < 0, -far, far))


@triton.jit
def silu(x):
    return x * sigmoid(x)


@triton.jit
def silu_slope(x):
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def gelu(x):  # 0.7071… = 1 / sqrt(2)
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_slope(x):  # 0.3989… = 1 / sqrt(2 pi)
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def gelu_tanh(x):
    # 0.5 (1 + tanh z) = sigmoid(2 z), and z = sqrt(2 / pi) (x + 0.044715 x^3)
    return x * sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))


@triton.jit
def gelu_tanh_slope(x):
    s = sigmoid(1.5957691216057308 * x * (1.0 + 0.044715 * x * x))
    return s + x * s * (1.0 - s) * 1.5957691216057308 * (1.0 + 3.0 * 0.044715 * x * x)
