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


@pytest.mark.parametrize(
    ("switches", "layers"),
    [
        ({"finetune_mlp_modules": False}, {"q_proj", "k_proj", "v_proj", "o_proj"}),
        ({"finetune_attention_modules": False}, {"gate_proj", "up_proj", "down_proj"}),
    ],
)
def test_a_part_switched_off_gets_none_of_the_text_models_default_adapters(tiny_model, switches, layers):
    model = FastLanguageModel.get_peft_model(tiny_model(), **switches)
    assert adapted_layers(model) == layers == model.peft_config["default"].target_modules
    with pytest.warns(SlothWarning, match="already has this adapter"):
        assert FastLanguageModel.get_peft_model(model, **switches) is model
    with pytest.raises(ModelError, match="Every part is switched off"):
        FastLanguageModel.get_peft_model(tiny_model(), finetune_language_layers=False)


@pytest.mark.parametrize("named", [["q_proj", "up_proj"], "all-linear"])
def test_a_switch_beside_names_is_pointed_out(tiny_model, named):
    with pytest.warns(
        SlothWarning, match="^finetune_mlp_modules=False: without effect beside target_modules"
    ):
        model = FastLanguageModel.get_peft_model(
            tiny_model(), target_modules=named, finetune_mlp_modules=False
        )
    assert "up_proj" in adapted_layers(model)


def test_an_embedding_that_gets_an_adapter_is_not_called_missing(tiny_model, recwarn):
    model = FastLanguageModel.get_peft_model(tiny_model(), target_modules=["q_proj", "embed_tokens"])
    assert hasattr(model.get_input_embeddings(), "lora_embedding_A")
    FastLanguageModel.get_peft_model(tiny_model(), target_modules=["embed_tokens"])
    assert not [w for w in recwarn if w.category is SlothWarning]


def test_the_layers_listed_are_the_models_own_also_those_with_adapters(tiny_model):
    with pytest.warns(SlothWarning) as caught:
        FastLanguageModel.get_peft_model(
            tiny_model(), target_modules=["q_proj", "x_proj"], modules_to_save=["lm_head"]
        )
    (said,) = [str(w.message) for w in caught if w.category is SlothWarning]
    assert said == (
        "target_modules x_proj name no layer of this model and got no adapter. "
        "Its linear layers: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj."
    )


@pytest.mark.parametrize("arguments", [{}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}])
def test_a_base_model_whose_adapters_are_held_elsewhere_is_told_so(tiny_model, arguments):
    base = tiny_model()
    FastLanguageModel.get_peft_model(base, **arguments)
    with pytest.raises(
        ModelError, match="already has an adapter: use the object that get_peft_model returned"
    ):
        FastLanguageModel.get_peft_model(base)


def test_a_model_whose_checkpointing_was_refused_takes_adapters_still(tiny_model):
    model = tiny_model("gpt2")
    with pytest.raises(ModelError, match="use_gradient_checkpointing='slot' is not known"):
        FastModel.get_peft_model(model, use_gradient_checkpointing="slot")
    model.supports_gradient_checkpointing = False
    with pytest.raises(ModelError, match="Pass use_gradient_checkpointing=False"):
        FastModel.get_peft_model(model, use_gradient_checkpointing=True)
    adapted = FastModel.get_peft_model(model, use_gradient_checkpointing=False)
    assert adapted_layers(adapted) == {"c_attn", "c_proj", "c_fc"}


def test_an_unknown_bias_is_refused_before_anything_is_changed(tiny_model):
    model = tiny_model()
    with pytest.raises(ModelError, match="bias='some' is not known; it is 'none', 'all', 'lora_only'"):
        FastLanguageModel.get_peft_model(model, bias="some")
    assert adapted_layers(FastLanguageModel.get_peft_model(model))


def test_adapters_that_fail_halfway_say_to_load_the_model_again(tiny_model):
    with pytest.raises(ModelError, match="may hold a part of them: load it again"):
        FastLanguageModel.get_peft_model(tiny_model(), rank_pattern={"up_proj": 0})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("qwen3-4b", r"got a str\. Load it first: .*from_pretrained\('qwen3-4b'\)"),
        ((1, 2), "got a tuple. from_pretrained returns two things"),
        (None, "got a NoneType. Pass the first of the two"),
    ],
)
def test_what_is_not_a_model_is_refused(given, said):
    with pytest.raises(ModelError, match=said):
        FastLanguageModel.get_peft_model(given)
    with pytest.raises(ModelError, match=said):
        FastModel.get_peft_model(given)


def test_a_tokenizer_is_not_a_model(shared_tokenizer):
    with pytest.raises(ModelError, match=r"takes a language model, and got a .*Pass the first"):
        FastLanguageModel.get_peft_model(shared_tokenizer)


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
