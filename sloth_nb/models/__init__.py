"""Loading models, putting adapters on them, and saving both."""

from sloth_nb.models.fast import FastLanguageModel, FastModel
from sloth_nb.models.precision import is_bf16_supported, is_bfloat16_supported

__all__ = ["FastLanguageModel", "FastModel", "is_bf16_supported", "is_bfloat16_supported"]
