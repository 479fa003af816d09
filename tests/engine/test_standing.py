"""What is done to a model after the engine was installed on it is honoured, or the call is left to the model.

Each case is compared with transformers + peft, to which the same is done.
"""

import copy
import weakref

import pytest
import torch
from families import CONFIGS, TARGETS, adapted_model, batch, plain_model, step, worst
from peft import (
    LNTuningConfig,
    LoraConfig,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import AutoModelForCausalLM

from sloth_nb.models.install import install
from sloth_nb.models.report import engine_of


def adapters_drawn(model, seed=4):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.train()


def with_second(model, **options):
    model.add_adapter("b", LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS, **options))
    return adapters_drawn(model)


def layer(model, index=0):
    return (model.get_base_model() if hasattr(model, "get_base_model") else model).model.layers[index]


def adapt(model):
    return adapters_drawn(get_peft_model(model, LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS)))


def switch(model):
    model.set_adapter("b")


def switch_off(model):
    model.base_model.disable_adapter_layers()


def rescale(model):
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 4.0)


def scale_what_is_there(model):
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(3.0)


def load_other_adapters(model):
    told = {
        key: 1.5 * value for key, value in get_peft_model_state_dict(adapted_model("llama", seed=7)).items()
    }
    set_peft_model_state_dict(model, told, low_cpu_mem_usage=True)


def load_by_assignment(model):
    model.load_state_dict({key: 1.3 * value for key, value in model.state_dict().items()}, assign=True)


def swap_what_is_trained(model):
    layer(model).self_attn.q_proj.lora_A["default"].weight.requires_grad_(False)
    layer(model).input_layernorm.weight.requires_grad_(True)


def hook_a_layer(model):
    layer(model).register_forward_hook(lambda module, args, output: 1.5 * output)


def hook_a_projection(model):
    layer(model, 1).mlp.down_proj.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def hook_the_decoder(model):
    decoder = model.get_base_model().model
    decoder.register_forward_hook(
        lambda module, args, output: output.__class__(output.last_hidden_state * 1.1)
    )


def hook_the_head(model):
    model.get_base_model().lm_head.register_forward_hook(lambda module, args, output: 0.5 * output)


def own_forward(model):
    norm = layer(model).post_attention_layernorm
    norm.forward = lambda x: 0.9 * type(norm).forward(norm, x)


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def subclass(model):
    layer(model).mlp.down_proj.base_layer.__class__ = Doubled


def parametrise(model):
    base = parametrizations.weight_norm(layer(model).self_attn.o_proj.base_layer)
    base.parametrizations.weight.original0.data *= 1.5


def prune_some(model):
    prune.random_unstructured(layer(model).self_attn.o_proj.base_layer, "weight", 0.5)


def another_loss(model):
    model.get_base_model().loss_function = lambda logits, labels, **_: logits.float().pow(2).mean()


def fewer_layers(model):
    decoder = model.get_base_model().model
    decoder.layers = decoder.layers[:2]


CHANGES = [
    switch, switch_off, rescale, scale_what_is_there, load_other_adapters, load_by_assignment, swap_what_is_trained,
    hook_a_layer, hook_a_projection, hook_the_decoder, hook_the_head, own_forward, subclass, parametrise, prune_some,
    another_loss, fewer_layers,
]  # fmt: skip


def done_to(model, change, inputs):
    """(loss, gradients) before and after."""
    before = step(model, **inputs)
    torch.manual_seed(3)
    change(model)
    if change is switch_off:  # nothing is trained
        return before, (model(**inputs).loss.detach(), {})
    return before, step(model, **inputs)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_done_to_a_model_later_is_what_it_computes(change):
    model = with_second(adapted_model("llama"))
    same, inputs = copy.deepcopy(model), batch()
    wanted = done_to(same, change, inputs)
    assert install(model).installed
    got = done_to(model, change, inputs)
    assert float(wanted[0][0]) != float(wanted[1][0]) or change is swap_what_is_trained, "something changed"
    for (got_loss, got_grads), (loss, grads) in zip(got, wanted, strict=True):
        assert abs(float(got_loss - loss)) < 1e-6
        assert not grads or worst(got_grads, grads) < 1e-5


def test_adapters_that_come_after_the_engine_are_trained():
    plain, inputs = plain_model("llama"), batch()
    other = copy.deepcopy(plain)
    install(plain)
    step(plain, **inputs)
    ours, theirs = adapt(plain), adapt(other)
    for change in (lambda model: None, with_second, switch):
        change(ours), change(theirs)
        (got_loss, got), (loss, wanted) = step(ours, **inputs), step(theirs, **inputs)
        assert abs(float(got_loss - loss)) < 1e-6 and worst(got, wanted) < 1e-5
    assert not engine_of(ours).left_to_model


def test_changes_that_leave_nothing_of_the_adapters_are_seen():
    model, inputs = adapted_model("llama"), batch()
    install(model)
    step(model, **inputs)
    plain = model.unload()
    got = float(plain(**inputs).loss)
    engine_of(plain).model.__dict__["_sloth_report"].undo()
    assert abs(got - float(plain(**inputs).loss)) < 1e-6


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.5}])
def test_an_adapter_that_the_engine_cannot_run_is_left_to_the_model_and_said(options):
    model, inputs = with_second(adapted_model("llama"), **options), batch()
    report = install(model)
    model.set_adapter("b")
    assert torch.isfinite(model(**inputs).loss)
    assert "transformers' own modules" in str(report) and sum(engine_of(model).left_to_model.values()) == 1
    model.set_adapter("default")
    model(**inputs)
    assert sum(engine_of(model).left_to_model.values()) == 1


def test_dropout_drops_whatever_the_mode_was_when_the_engine_came():
    config = copy.deepcopy(CONFIGS["llama"])
    config.attention_dropout = 0.5
    model = AutoModelForCausalLM.from_config(config).eval()
    assert install(model).installed
    still = {float(model(**batch()).loss) for _ in range(2)}
    model.train()
    assert len(still) == 1 and len({float(model(**batch()).loss) for _ in range(3)}) == 3


def test_weights_that_were_replaced_are_not_kept(monkeypatch):
    model, inputs = adapted_model("llama"), batch()
    install(model)
    step(model, **inputs)
    projection = layer(model).mlp.up_proj.base_layer
    gone = weakref.ref(projection.weight)
    projection.weight = nn.Parameter(projection.weight.detach().clone(), requires_grad=False)
    assert gone() is None
    step(model, **inputs)


def test_a_tuned_norm_is_refused_with_the_reason():
    model = get_peft_model(plain_model("llama"), LNTuningConfig(target_modules=["input_layernorm"]))
    report = install(model)
    assert not report.installed and "LNTuningLayer" in report.left


def test_weights_that_are_elsewhere_are_refused_with_the_reason(monkeypatch):
    model = plain_model("llama")
    model.model.layers[1].to("meta")
    assert "not on a device" in install(model).left
    model = plain_model("llama")
    model.model.layers[0].mlp.down_proj = nn.Linear(96, 64, bias=False, device="meta")
    assert "not on a device" in install(model).left


def test_a_model_whose_code_came_with_it_is_left_alone():
    model = plain_model("llama")
    other = type("LlamaDecoderLayer", (type(model.model.layers[0]),), {"forward": lambda self, x, **_: x})
    for one in model.model.layers:
        one.__class__ = other
    assert "forward" in install(model).left


def test_rows_that_each_have_an_adapter_are_left_to_peft():
    model = with_second(adapted_model("llama")).eval()
    names, inputs = ["default", "b"], batch()
    with torch.no_grad():
        wanted = float(model(**inputs, adapter_names=names).loss)
        install(model)
        assert abs(float(model(**inputs, adapter_names=names).loss) - wanted) < 1e-6


def test_hidden_states_may_be_asked_for_between_two_steps():
    model, inputs = adapted_model("llama"), batch()
    install(model)
    step(model, **inputs)
    assert len(model(**inputs, output_hidden_states=True).hidden_states) == 4
    step(model, **inputs)
    assert dict(engine_of(model).left_to_model) == {"output_hidden_states is given": 1}
