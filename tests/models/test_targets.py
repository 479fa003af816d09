"""Which layers get adapters, and what is said of names that mean none."""

import pytest

from sloth_nb import FastLanguageModel, FastModel
from sloth_nb.errors import ModelError, SlothWarning


def adapted_layers(model):
    return {name.rpartition(".")[2] for name, layer in model.named_modules() if hasattr(layer, "lora_A")}


def test_none_means_every_linear_layer_but_the_head_by_its_short_name(tiny_model):
    model = FastModel.get_peft_model(tiny_model("phi3"))
    assert adapted_layers(model) == {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}
    assert model.peft_config["default"].target_modules == adapted_layers(model)


def test_names_that_mean_no_layer_are_pointed_out_with_those_that_would(tiny_model):
    with pytest.warns(SlothWarning, match=r"q_proj, k_proj, .* name no layer .* qkv_proj"):
        model = FastLanguageModel.get_peft_model(tiny_model("phi3"))
    assert adapted_layers(model) == {"o_proj", "down_proj"}
    with pytest.raises(ModelError, match=r"names no layer of this model\. Its linear layers: .*c_attn"):
        FastLanguageModel.get_peft_model(tiny_model("gpt2"))


def test_experts_that_are_parameters_are_named(tiny_model):
    with pytest.warns(
        SlothWarning, match=r"target_parameters=\['mlp.experts.down_proj', 'mlp.experts.gate_up_proj'\]"
    ):
        FastLanguageModel.get_peft_model(tiny_model("gpt_oss", num_local_experts=2))


def test_a_pattern_or_all_linear_is_pefts_own_matter(tiny_model, recwarn):
    model = FastLanguageModel.get_peft_model(tiny_model(), target_modules="all-linear")
    assert len(adapted_layers(model)) == 7
    model = FastLanguageModel.get_peft_model(tiny_model(), target_modules=r".*layers\.1\..*q_proj")
    assert adapted_layers(model) == {"q_proj"}
    assert not [w for w in recwarn if w.category is SlothWarning]


def test_the_last_layers_alone(tiny_model):
    model = FastLanguageModel.get_peft_model(tiny_model(num_hidden_layers=3), finetune_last_n_layers=2)
    layers = {name.split(".")[4] for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    assert layers == {"1", "2"}
    with pytest.raises(ModelError, match="exclude each other"):
        FastLanguageModel.get_peft_model(tiny_model(), finetune_last_n_layers=1, layers_to_transform=[0])
    with pytest.raises(ModelError, match="the model has 2 layers"):
        FastLanguageModel.get_peft_model(tiny_model(), finetune_last_n_layers=3)


def test_settings_that_peft_refuses_are_a_model_error(tiny_model):
    with pytest.raises(ModelError, match="can't be"):
        FastLanguageModel.get_peft_model(tiny_model(), r=0)
