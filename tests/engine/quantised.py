"""Tiny models over bitsandbytes' bases."""

import pytest
import torch
from families import PHI3_TARGETS, TARGETS, plain_model
from peft import LoraConfig, get_peft_model

bnb = pytest.importorskip("bitsandbytes")


def quantise(module: torch.nn.Linear, kind: str) -> torch.nn.Module:
    options = {"bias": module.bias is not None}
    if kind == "nf4":
        new = bnb.nn.Linear4bit(
            module.in_features, module.out_features, compute_dtype=torch.float32, quant_type="nf4", **options
        )
        new.weight = bnb.nn.Params4bit(module.weight.data.clone(), requires_grad=False, quant_type="nf4")
    else:
        new = bnb.nn.Linear8bitLt(module.in_features, module.out_features, has_fp16_weights=False, **options)
        new.weight = bnb.nn.Int8Params(
            module.weight.data.clone(), requires_grad=False, has_fp16_weights=False
        )
    new.bias = module.bias
    return new.to("cpu")


def quantised_model(kind: str, rank: int = 4, family: str = "llama", alpha: int = 8) -> torch.nn.Module:
    """With adapters over it, B not zero."""
    model = plain_model(family)
    for name, module in list(model.model.layers.named_modules()):
        if isinstance(module, torch.nn.Linear):
            parent, _, leaf = name.rpartition(".")
            setattr(model.model.layers.get_submodule(parent), leaf, quantise(module, kind))
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind == "nf4", kind == "int8"
    targets = PHI3_TARGETS if family == "phi3" else TARGETS
    model = get_peft_model(model, LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model
