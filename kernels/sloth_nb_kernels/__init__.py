"""sloth_nb's kernels: one file an operation, with its plain-torch reference, Triton kernel and hand-written
backward.

Each operation has an autograd face (``rms_norm``) and raw halves that record no graph (``rms_norm_forward``,
``rms_norm_backward``) for an engine that does its own backward. All of them run on any device; Triton is
optional.
"""

from .adamw_8bit import AdamW8bitStep, Moments, Rates, adamw_8bit_reference
from .adapted_weight import adapted_weight, adapted_weight_reference
from .cross_entropy import (
    RowStatistics,
    cross_entropy,
    cross_entropy_forward,
    cross_entropy_reference,
)
from .dequantize import (
    dequantize_int8,
    dequantize_int8_reference,
    dequantize_nf4,
    dequantize_nf4_reference,
)
from .dora import dora_linear
from .glu import glu, glu_backward, glu_forward, glu_reference, split_gate_up
from .host_rows import host_rows, host_rows_reference
from .launch import HAS_TRITON, INTERPRETED, runs_triton
from .layer_norm import layer_norm, layer_norm_backward, layer_norm_forward, layer_norm_reference
from .linear_cross_entropy import (
    LossAndGradients,
    linear_cross_entropy,
    linear_cross_entropy_forward,
    linear_cross_entropy_reference,
    trained_rows,
)
from .log_probs import (
    TokenLogProbs,
    linear_log_probs,
    linear_log_probs_backward,
    linear_log_probs_forward,
    linear_log_probs_reference,
)
from .lora import (
    LoraSaved,
    Projection,
    ProjectionGrads,
    lora_backward,
    lora_forward,
    lora_linear,
    lora_projections,
    lora_reference,
)
from .lora_mlp import lora_mlp, lora_mlp_reference
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
    "AdamW8bitStep",
    "LoraSaved",
    "LossAndGradients",
    "Moments",
    "Projection",
    "ProjectionGrads",
    "Rates",
    "RowStatistics",
    "TokenLogProbs",
    "adamw_8bit_reference",
    "adapted_weight",
    "adapted_weight_reference",
    "add_rms_norm",
    "add_rms_norm_forward",
    "cross_entropy",
    "cross_entropy_forward",
    "cross_entropy_reference",
    "dequantize_int8",
    "dequantize_int8_reference",
    "dequantize_nf4",
    "dequantize_nf4_reference",
    "dora_linear",
    "glu",
    "glu_backward",
    "glu_forward",
    "glu_reference",
    "host_rows",
    "host_rows_reference",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_forward",
    "layer_norm_reference",
    "linear_cross_entropy",
    "linear_cross_entropy_forward",
    "linear_cross_entropy_reference",
    "linear_log_probs",
    "linear_log_probs_backward",
    "linear_log_probs_forward",
    "linear_log_probs_reference",
    "lora_backward",
    "lora_forward",
    "lora_linear",
    "lora_mlp",
    "lora_mlp_reference",
    "lora_projections",
    "lora_reference",
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
    "trained_rows",
]
