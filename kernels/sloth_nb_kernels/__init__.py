"""sloth_nb's kernels: one file an operation, with its plain-torch reference, Triton kernel and hand-written
backward.

Each operation has an autograd face (``rms_norm``) and raw halves that record no graph (``rms_norm_forward``,
``rms_norm_backward``) for an engine that does its own backward. All of them run on any device; Triton is
optional.
"""

from .glu import glu, glu_backward, glu_forward, glu_reference, split_gate_up
from .launch import HAS_TRITON, INTERPRETED, runs_triton
from .qk_norm_rope import (
    qk_norm_rope,
    qk_norm_rope_backward,
    qk_norm_rope_forward,
    qk_norm_rope_reference,
)
from .rms_norm import (
    add_rms_norm,
    add_rms_norm_forward,
    rms_norm,
    rms_norm_backward,
    rms_norm_forward,
    rms_norm_reference,
)
from .rope import rope, rope_backward, rope_forward, rope_reference

__all__ = [
    "HAS_TRITON",
    "INTERPRETED",
    "add_rms_norm",
    "add_rms_norm_forward",
    "glu",
    "glu_backward",
    "glu_forward",
    "glu_reference",
    "qk_norm_rope",
    "qk_norm_rope_backward",
    "qk_norm_rope_forward",
    "qk_norm_rope_reference",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_forward",
    "rms_norm_reference",
    "rope",
    "rope_backward",
    "rope_forward",
    "rope_reference",
    "runs_triton",
    "split_gate_up",
]
