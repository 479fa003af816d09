"""Every argument of the two calls that published notebooks make: its default, and what asking for it does.

``DEFAULTS`` holds the names and defaults that the field's notebooks rely on. ``EFFECTS`` holds one row an
argument: a value that isn't the default, and what must then be true. A missing row fails the test.
"""

import importlib.util
import inspect
import warnings

import pytest
import torch

from sloth_nb import FastLanguageModel, FastModel
from sloth_nb.errors import ModelError, SlothWarning
from sloth_nb.models.devices import best_device
from sloth_nb.models.precision import choose_dtype
from sloth_nb.models.settings import settings_of

LOADING_DEFAULTS = {
    "model_name": "smollm2-135m-instruct",
    "max_seq_length": 2048,
    "dtype": None,
    "load_in_4bit": None,  # True, or what an adapter was trained on
    "load_in_8bit": False,
    "load_in_16bit": False,
    "full_finetuning": False,
    "token": None,
    "device_map": "sequential",
    "rope_scaling": None,
    "fix_tokenizer": True,
    "trust_remote_code": False,
    "use_gradient_checkpointing": "unsloth",
    "resize_model_vocab": None,
    "revision": None,
    "use_exact_model_name": False,
    "offload_embedding": False,
    "float32_mixed_precision": None,
    "fast_inference": False,
    "gpu_memory_utilization": 0.5,
    "float8_kv_cache": False,
    "random_state": 3407,
    "max_lora_rank": 64,
    "disable_log_stats": True,
    "qat_scheme": None,
    "load_in_fp8": False,
    "unsloth_tiled_mlp": False,
    "text_only": False,
    "return_logits": False,
    "fullgraph": True,
    "auto_model": None,
    "whisper_language": None,
    "whisper_task": None,
    "unsloth_force_compile": False,
    "target_parameters": None,
    "plan": None,  # ours
}

PEFT_DEFAULTS = {
    "r": 16,
    "target_modules": None,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "bias": "none",
    "layers_to_transform": None,
    "layers_pattern": None,
    "finetune_last_n_layers": None,
    "use_gradient_checkpointing": "unsloth",
    "random_state": 3407,
    "max_seq_length": 2048,
    "use_rslora": False,
    "modules_to_save": None,
    "init_lora_weights": True,
    "loftq_config": None,
    "temporary_location": "_unsloth_temporary_saved_buffers",
    "qat_scheme": None,
    "target_parameters": None,
    "ensure_weight_tying": False,
    "finetune_vision_layers": True,
    "finetune_language_layers": True,
    "finetune_attention_modules": True,
    "finetune_mlp_modules": True,
    "finetune_audio_layers": False,
    "task_type": "CAUSAL_LM",
}


def named_defaults(function):
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: p.default for p in parameters if p.kind not in kinds}


def test_from_pretrained_has_just_these_arguments_and_defaults():
    assert named_defaults(FastModel.from_pretrained) == LOADING_DEFAULTS
    assert named_defaults(FastLanguageModel.from_pretrained) == LOADING_DEFAULTS


def test_get_peft_model_has_just_these_arguments_and_defaults():
    found = named_defaults(FastModel.get_peft_model)
    assert found.pop("model") is inspect.Parameter.empty
    assert found == PEFT_DEFAULTS


def test_the_text_models_adapters_go_to_the_seven_projections_by_default(tiny_llama):
    model = FastLanguageModel.get_peft_model(tiny_llama)
    seven = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert model.peft_config["default"].target_modules == seven


# --- what each argument of from_pretrained does: (value, further arguments, a check of the result | an error
# | a warning)


def is_16_bit(model, tokenizer, path):
    assert model.dtype == choose_dtype(None, best_device()) and not getattr(model, "is_quantized", False)


def warns(text):
    return ("warns", text)


def refuses(text):
    return ("refuses", text)


def checkpointing(model):
    layers = [getattr(m, "gradient_checkpointing", False) for m in model.modules()]
    return any(layers)


def has_llama_class(model, *_):
    assert type(model).__name__ == "LlamaForSequenceClassification"


def settled(name, value):
    def check(model, *_):
        assert getattr(settings_of(model), name) == value

    return check


def classification():
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification


LOADING_EFFECTS = {
    "model_name": ("somewhere/else", {}, refuses("is not on this machine")),
    "max_seq_length": (4096, {}, warns("scaled by 2")),
    "dtype": ("float32", {}, lambda model, *_: is_dtype(model, torch.float32)),
    "load_in_4bit": (False, {}, is_16_bit),
    "load_in_8bit": (True, {}, lambda model, *_: is_layer(model, "Linear8bitLt")),
    "load_in_16bit": (True, {"load_in_4bit": True}, is_16_bit),
    "full_finetuning": (True, {}, lambda model, *_: all_trainable(model)),
    "token": ("hf_secret", {}, is_16_bit),
    "device_map": ("cpu", {}, lambda model, *_: is_device(model, "cpu")),
    "rope_scaling": (
        {"rope_type": "yarn", "factor": 2.0},
        {},
        lambda model, *_: has_rope(model, "yarn"),
    ),
    "fix_tokenizer": (False, {}, lambda model, tokenizer, path: has_pad(tokenizer, "<|im_end|>")),
    "trust_remote_code": (True, {}, is_16_bit),
    "use_gradient_checkpointing": (
        False,
        {"full_finetuning": True},
        lambda model, *_: has_checkpointing(model, False),
    ),
    "resize_model_vocab": (49280, {}, lambda model, *_: has_rows(model, 49280)),
    "revision": ("main", {}, is_16_bit),
    "use_exact_model_name": (True, {}, is_16_bit),
    "offload_embedding": (True, {}, warns("the embedding stays where it is, because it is the output head")),
    "float32_mixed_precision": (
        True,
        {"full_finetuning": True},
        lambda model, *_: is_dtype(model, torch.float32),
    ),
    "fast_inference": (True, {}, warns("fast_inference=True .generation runs in transformers")),
    "gpu_memory_utilization": (0.7, {}, warns("gpu_memory_utilization=0.7")),
    "float8_kv_cache": (True, {}, warns("float8_kv_cache=True")),
    "random_state": (1, {"auto_model": classification}, lambda model, *_: has_other_head(model)),
    "max_lora_rank": (32, {}, warns("max_lora_rank=32")),
    "disable_log_stats": (False, {}, warns("disable_log_stats=False")),
    "qat_scheme": ("int4", {}, refuses("quantisation-aware training isn't offered")),
    "load_in_fp8": (True, {}, refuses("fp8 weights can't be trained through")),
    "unsloth_tiled_mlp": (True, {}, warns("unsloth_tiled_mlp=True")),
    "text_only": (True, {}, is_16_bit),
    "return_logits": (True, {}, lambda model, tokenizer, path: gives_logits(model, tokenizer)),
    "fullgraph": (False, {}, is_16_bit),
    "auto_model": (classification, {}, has_llama_class),
    "whisper_language": ("English", {}, refuses("this is a llama model")),
    "whisper_task": ("transcribe", {}, refuses("this is a llama model")),
    "unsloth_force_compile": (True, {}, warns("nothing is compiled")),
    "target_parameters": (["experts.w"], {}, settled("target_parameters", ["experts.w"])),
    "plan": ("auto", {}, settled("plan", "auto")),
}


def is_dtype(model, dtype):
    assert model.dtype == dtype


def is_layer(model, name):
    assert type(model.model.layers[0].mlp.up_proj).__name__ == name


def is_device(model, kind):
    assert {parameter.device.type for parameter in model.parameters()} == {kind}


def all_trainable(model):
    assert all(parameter.requires_grad for parameter in model.parameters())


def has_rope(model, kind):
    assert model.config.rope_parameters["rope_type"] == kind
    assert model.model.rotary_emb.rope_type == kind


def has_pad(tokenizer, token):
    assert tokenizer.pad_token == token


def has_checkpointing(model, on):
    assert checkpointing(model) is on


def has_rows(model, rows):
    assert model.get_input_embeddings().weight.shape[0] == rows


def has_other_head(model):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3407)
        usual = torch.randn(1)
        torch.manual_seed(1)
        assert usual != torch.randn(1)
    assert model.score.weight.abs().sum() > 0


def gives_logits(model, tokenizer):
    assert model(**tokenizer("a", return_tensors="pt")).logits.shape[-1] == len(tokenizer)


def test_every_loading_argument_has_a_row():
    assert set(LOADING_EFFECTS) == set(LOADING_DEFAULTS)


@pytest.mark.parametrize("name", LOADING_EFFECTS)
@pytest.mark.filterwarnings("ignore:1 weights are not in")
def test_a_loading_argument_is_honoured_or_refused_with_a_reason(name, tiny_llama_path):
    value, more, effect = LOADING_EFFECTS[name]
    if name in ("load_in_8bit",):
        pytest.importorskip("bitsandbytes")
    arguments = {"model_name": str(tiny_llama_path), "load_in_4bit": False, **more, name: value}
    arguments = {key: each() if each is classification else each for key, each in arguments.items()}
    kind, text = effect if isinstance(effect, tuple) else ("honours", "")
    if kind == "refuses":
        with pytest.raises(ModelError, match=text):
            FastModel.from_pretrained(**arguments)
    elif kind == "warns":
        with pytest.warns(SlothWarning, match=text):
            FastModel.from_pretrained(**arguments)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SlothWarning)
            warnings.filterwarnings("ignore", message="1 weights are not in")
            effect(*FastModel.from_pretrained(**arguments), tiny_llama_path)


def test_all_arguments_about_vllm_together_make_one_warning(tiny_llama_path):
    with pytest.warns(SlothWarning) as caught:
        FastLanguageModel.from_pretrained(
            str(tiny_llama_path),
            load_in_4bit=False,
            fast_inference=True,
            gpu_memory_utilization=0.6,
            max_lora_rank=32,
        )
    assert len([w for w in caught if w.category is SlothWarning]) == 1
    assert __file__ == caught[0].filename, "the warning points at the caller's line"


def test_a_token_is_in_no_message(tiny_llama_path):
    with pytest.raises(ModelError) as caught:
        FastModel.from_pretrained("somewhere/else", token="hf_secret")
    assert "hf_secret" not in str(caught.value)


def test_a_classic_notebooks_loading_call_runs_without_a_word(tiny_llama_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlothWarning)
        FastModel.from_pretrained(
            model_name=str(tiny_llama_path),
            max_seq_length=2048,
            load_in_4bit=False,
            load_in_8bit=False,
            full_finetuning=False,
        )


# --- get_peft_model: the fields of the LoRA config that each argument must reach, or the reason why not

PEFT_EFFECTS = {
    "r": (4, {"r": 4}),
    "target_modules": (["q_proj"], {"target_modules": {"q_proj"}}),
    "lora_alpha": (32, {"lora_alpha": 32}),
    "lora_dropout": (0.1, {"lora_dropout": 0.1}),
    "bias": ("lora_only", {"bias": "lora_only"}),
    "layers_to_transform": ([0], {"layers_to_transform": [0]}),
    "layers_pattern": ("layers", {"layers_pattern": "layers"}, {"layers_to_transform": [0]}),
    "finetune_last_n_layers": (1, {"layers_to_transform": [1]}),
    "use_gradient_checkpointing": (False, lambda model: has_checkpointing(model, False)),
    "random_state": (1, lambda model: has_other_adapter(model)),
    "max_seq_length": (4096, warns("max_seq_length=4,096 was not applied")),
    "use_rslora": (True, {"use_rslora": True}),
    "modules_to_save": (["lm_head"], {"modules_to_save": ["lm_head"]}),
    "init_lora_weights": ("gaussian", {"init_lora_weights": "gaussian"}),
    "loftq_config": ({"loftq_bits": 4}, refuses("needs init_lora_weights='loftq'")),
    "temporary_location": ("elsewhere", warns("temporary_location='elsewhere'")),
    "qat_scheme": ("int4", refuses("quantisation-aware training isn't offered")),
    "target_parameters": (
        ["mlp.gate_proj.weight"],
        {"target_parameters": ["mlp.gate_proj.weight"]},
        {"target_modules": ["q_proj"]},
    ),
    "ensure_weight_tying": (True, {"ensure_weight_tying": True}),
    "finetune_vision_layers": (False, lambda model: adapts(model, attention=True, mlp=True)),
    "finetune_language_layers": (False, refuses("Every part is switched off")),
    "finetune_attention_modules": (False, lambda model: adapts(model, attention=False, mlp=True)),
    "finetune_mlp_modules": (False, lambda model: adapts(model, attention=True, mlp=False)),
    "finetune_audio_layers": (True, lambda model: adapts(model, attention=True, mlp=True)),
    "task_type": (None, {"task_type": None}),
}


def has_other_adapter(model):
    weight = model.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3407)
        usual = torch.nn.init.kaiming_uniform_(torch.empty_like(weight), a=5**0.5)
    assert not torch.equal(weight, usual)


def adapts(model, *, attention, mlp):
    layer = model.base_model.model.model.layers[1]
    assert hasattr(layer.self_attn.q_proj, "lora_A") is attention
    assert hasattr(layer.mlp.up_proj, "lora_A") is mlp
    assert not hasattr(model.base_model.model.lm_head, "lora_A")


def test_every_adapter_argument_has_a_row():
    assert set(PEFT_EFFECTS) == set(PEFT_DEFAULTS)


@pytest.mark.parametrize("name", PEFT_EFFECTS)
def test_an_adapter_argument_is_honoured_or_refused_with_a_reason(name, tiny_llama_path):
    value, effect, *more = PEFT_EFFECTS[name]
    arguments = {name: value} | (more[0] if more else {})
    model, _ = FastModel.from_pretrained(str(tiny_llama_path), load_in_4bit=False)
    if isinstance(effect, tuple) and effect[0] == "refuses":
        with pytest.raises(ModelError, match=effect[1]):
            FastModel.get_peft_model(model, **arguments)
    elif isinstance(effect, tuple):
        with pytest.warns(SlothWarning, match=effect[1]):
            FastModel.get_peft_model(model, **arguments)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error", SlothWarning)
            adapted = FastModel.get_peft_model(model, **arguments)
        if callable(effect):
            effect(adapted)
        else:
            config = adapted.peft_config["default"].to_dict()
            assert {field: config[field] for field in effect} == effect


def test_a_field_of_peft_can_be_given_and_a_misspelt_one_is_refused(tiny_llama, tiny_model):
    adapted = FastLanguageModel.get_peft_model(tiny_llama, rank_pattern={"q_proj": 2})
    assert adapted.base_model.model.model.layers[0].self_attn.q_proj.r["default"] == 2
    with pytest.raises(ModelError, match=r"no argument 'rank_patern'\. Did you mean 'rank_pattern'\?"):
        FastLanguageModel.get_peft_model(tiny_model(), rank_patern={})


def test_a_loftq_config_reaches_peft(tiny_llama_path):
    model, _ = FastLanguageModel.from_pretrained(str(tiny_llama_path), load_in_4bit=False, dtype="float32")
    arguments = {
        "target_modules": ["q_proj"],
        "init_lora_weights": "loftq",
        "loftq_config": {"loftq_bits": 4},
    }
    if importlib.util.find_spec("scipy") is None:  # peft's LoftQ needs it
        with pytest.raises(ModelError, match="scipy"):
            FastLanguageModel.get_peft_model(model, **arguments)
        return
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    FastLanguageModel.get_peft_model(model, **arguments)
    assert not torch.equal(before, model.model.layers[0].self_attn.q_proj.base_layer.weight)


def test_a_classic_notebooks_adapter_call_runs_without_a_word(tiny_llama_path):
    model, _ = FastLanguageModel.from_pretrained(str(tiny_llama_path), load_in_4bit=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlothWarning)
        model = FastLanguageModel.get_peft_model(
            model,
            r=16,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            lora_alpha=16,
            lora_dropout=0,
            bias="none",
            use_gradient_checkpointing="unsloth",
            random_state=3407,
            max_seq_length=2048,
            use_rslora=False,
            loftq_config=None,
        )
    assert checkpointing(model)
