"""Adapters over bitsandbytes' bases on the CPU: the same loss and gradients as peft, for NF4 and int8."""

import copy

import pytest
import torch
from families import CONFIGS, adapted_model, batch, step, worst
from quantised import bnb, quantised_model

from sloth_nb.engine import linear
from sloth_nb.models.install import install
from sloth_nb.models.report import engine_of


def in_float64(model: torch.nn.Module) -> torch.nn.Module:
    """The same model, its base as plain weights that say what the quantised ones do."""
    truth = copy.deepcopy(model)
    for module in truth.modules():
        if hasattr(module, "lora_A"):
            base = module.base_layer
            plain = torch.nn.Linear(base.in_features, base.out_features, bias=base.bias is not None)
            if isinstance(base, bnb.nn.Linear4bit):
                weight = bnb.functional.dequantize_4bit(base.weight.data, base.weight.quant_state)
            else:
                weight = base.weight.data * (base.weight.SCB[:, None] / 127)
            plain.weight, plain.bias = torch.nn.Parameter(weight.float(), requires_grad=False), base.bias
            module.base_layer = plain
    return truth.double()


@pytest.fixture
def whole_blocks(monkeypatch):
    # bitsandbytes' CPU dequantisation is wrong for rows that are no multiple of its block of 64 (0.50.2).
    monkeypatch.setattr(CONFIGS["llama"], "intermediate_size", 128)


@pytest.mark.usefixtures("whole_blocks")
@pytest.mark.parametrize("policy", ["keep", "lean"])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_adapters_over_a_quantised_base_are_as_near_to_float64_as_peft_is(kind, policy):
    model, inputs = quantised_model(kind), batch()
    exact_loss, exact = step(in_float64(model), **inputs)
    loss, grads = step(model, **inputs)
    report = install(model, policy)
    assert f"LoRA over {kind}" in str(report)
    got_loss, got = step(model, **inputs)
    assert abs(float(got_loss - exact_loss)) < 2e-6
    # Of int8 weights peft's own products round the inputs to 8 bits, too.
    assert worst(got, exact) < (2 * worst(grads, exact) if kind == "nf4" else 2e-5)
    assert abs(float(got_loss - loss)) < (1e-5 if kind == "nf4" else 1)


@pytest.mark.parametrize("policy", ["keep", "recompute", "lean"])
@pytest.mark.parametrize(("kind", "family"), [
    ("nf4", "llama"), ("int8", "llama"), ("nf4", "gemma3"), ("nf4", "qwen3"), ("nf4", "phi3"),
])  # fmt: skip
def test_adapters_around_the_weights_as_on_a_gpu_are_as_near_to_float64(kind, family, policy, monkeypatch):
    monkeypatch.setattr(CONFIGS[family], "intermediate_size", 128)
    if family == "qwen3":
        monkeypatch.setattr(CONFIGS[family], "head_dim", 16)
    model, inputs = quantised_model(kind, rank=8, family=family, alpha=13), batch()
    exact_loss, exact = step(in_float64(model), **inputs)
    monkeypatch.setattr(linear, "on_gpu", lambda x: True)
    install(model, policy, mlp_tile=16)
    assert all(group.room for layer in engine_of(model).layers() for group in layer.groups)
    loss, grads = step(model, **inputs)
    assert abs(float(loss - exact_loss)) < 4e-6 and worst(grads, exact) < 2e-5


@pytest.mark.usefixtures("whole_blocks")
def test_no_memory_that_nobody_wrote_to_is_computed_with():
    model, inputs = quantised_model("nf4", rank=8).bfloat16(), batch()
    install(model, "lean")
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        loss, grads = step(model, **inputs)
    finally:
        torch.use_deterministic_algorithms(False)
    assert loss.isfinite() and all(grad.isfinite().all() for grad in grads.values())


def test_a_base_without_adapters_on_some_projections_is_fine():
    model, inputs = adapted_model("llama", target_modules=["q_proj", "down_proj"]), batch()
    loss, grads = step(model, **inputs)
    install(model, True)
    got_loss, got = step(model, **inputs)
    assert abs(float(got_loss - loss)) < 1e-6 and worst(got, grads) < 1e-5
