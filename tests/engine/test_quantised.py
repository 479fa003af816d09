"""Adapters over bitsandbytes' bases on the CPU: the same loss and gradients as peft, for NF4 and int8."""

import pytest
import torch
from families import CONFIGS, TARGETS, adapted_model, batch, plain_model, step, worst
from peft import LoraConfig, get_peft_model

from sloth_nb.models.install import install

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


@pytest.mark.parametrize("policy", ["keep", "lean"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapters_over_a_quantised_base_match_peft(monkeypatch, kind, policy):
    # bitsandbytes' CPU dequantisation is wrong for rows that are no multiple of its block of 64 (0.50.2).
    monkeypatch.setattr(CONFIGS["llama"], "intermediate_size", 128)
    model = plain_model("llama")
    for name, module in list(model.model.layers.named_modules()):
        if isinstance(module, torch.nn.Linear):
            parent, _, leaf = name.rpartition(".")
            setattr(model.model.layers.get_submodule(parent), leaf, quantise(module, kind))
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = kind == "nf4", kind == "int8"
    model = get_peft_model(model, LoraConfig(r=4, target_modules=TARGETS)).train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    inputs = batch()
    loss, grads = step(model, **inputs)
    report = install(model, policy)
    assert f"LoRA over {kind}" in str(report)
    got_loss, got = step(model, **inputs)
    assert abs(float(got_loss - loss)) < 1e-5 and worst(got, grads) < 2e-5


def test_a_base_without_adapters_on_some_projections_is_fine():
    model, inputs = adapted_model("llama", target_modules=["q_proj", "down_proj"]), batch()
    loss, grads = step(model, **inputs)
    install(model, True)
    got_loss, got = step(model, **inputs)
    assert abs(float(got_loss - loss)) < 1e-6 and worst(got, grads) < 1e-5
