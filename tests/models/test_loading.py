"""Loading a model, and what comes back."""

import gc
import subprocess
import sys
import warnings
import weakref

import pytest
import torch

from sloth_nb import FastLanguageModel, FastModel
from sloth_nb.errors import HardwareError, ModelError, SlothWarning
from sloth_nb.models import loading
from sloth_nb.models.devices import best_device
from sloth_nb.models.precision import choose_dtype


def load(path, **arguments):
    return FastLanguageModel.from_pretrained(str(path), **{"load_in_4bit": False, **arguments})


def logits(model, tokenizer, text="The quick brown fox"):
    model.eval()
    with torch.no_grad():
        return model(**tokenizer(text, return_tensors="pt")).logits


def test_the_default_model_loads_and_knows_its_context_and_padding():
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlothWarning)
        model, tokenizer = FastLanguageModel.from_pretrained(load_in_4bit=False)
    assert model.config.num_hidden_layers == 30
    assert model.dtype == choose_dtype(None, best_device())
    assert model.max_seq_length == 2048
    assert tokenizer.pad_token == "<|endoftext|>" != tokenizer.eos_token
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.padding_side == "right"
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_loaded_model_computes_what_transformers_computes(tiny_llama_path, tiny_llama):
    model, tokenizer = load(tiny_llama_path, dtype=torch.float32)
    assert torch.equal(logits(model, tokenizer), logits(tiny_llama, tokenizer))


def test_a_text_model_loads_without_the_modules_for_pictures(tiny_llama_path):
    body = (
        "import sys\nfrom sloth_nb import FastLanguageModel\n"
        f"FastLanguageModel.from_pretrained({str(tiny_llama_path)!r}, load_in_4bit=False)\n"
        "assert 'transformers.models.llama.modeling_llama' in sys.modules\n"
        "assert not [name for name in sys.modules if 'image_processing' in name]"
    )
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_positional_arguments_beyond_the_named_are_refused(tiny_llama_path):
    import inspect

    defaults = [p.default for p in inspect.signature(FastModel.from_pretrained).parameters.values()]
    with pytest.raises(ModelError, match="Name them"):
        FastModel.from_pretrained(str(tiny_llama_path), *defaults[1:-2], "one too many")


def test_attributes_of_the_config_can_be_given_by_name(tiny_llama_path):
    model, _ = load(tiny_llama_path, attention_dropout=0.25, attn_implementation="eager")
    assert model.config.attention_dropout == 0.25
    assert model.config._attn_implementation == "eager"


def test_a_misspelt_argument_is_refused_with_the_nearest_right_one(tiny_llama_path):
    with pytest.raises(ModelError, match=r"no argument 'max_seq_lenght'\. Did you mean 'max_seq_length'\?"):
        load(tiny_llama_path, max_seq_lenght=512)


def test_weights_that_the_checkpoint_lacks_are_named(tiny_llama_path):
    from transformers import AutoModelForSequenceClassification

    with pytest.warns(SlothWarning, match=r"1 weights are not in .*tiny-llama.*: score\.weight"):
        one, _ = FastModel.from_pretrained(
            str(tiny_llama_path),
            auto_model=AutoModelForSequenceClassification,
            load_in_4bit=False,
            dtype="float32",
        )
    before = torch.random.get_rng_state()
    with pytest.warns(SlothWarning):
        two, _ = FastModel.from_pretrained(
            str(tiny_llama_path),
            auto_model=AutoModelForSequenceClassification,
            load_in_4bit=False,
            dtype="float32",
        )
    assert torch.equal(one.score.weight, two.score.weight), "random_state decides them"
    assert torch.equal(before, torch.random.get_rng_state()), "the caller's random numbers were disturbed"


def test_a_device_that_is_not_there_is_refused(tiny_llama_path):
    if torch.cuda.device_count() < 9:
        with pytest.raises(HardwareError, match=r"this machine has .* cuda device"):
            load(tiny_llama_path, device_map="cuda:8")
    with pytest.raises(HardwareError, match="neither a device nor a placement"):
        load(tiny_llama_path, device_map="everywhere")


def test_damaged_weights_are_a_model_error(tiny_llama_path):
    (tiny_llama_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="tiny-llama can't be loaded"):
        load(tiny_llama_path)


def test_an_interrupt_while_loading_leaves_torch_and_the_next_load_intact(tiny_llama_path, monkeypatch):
    from transformers import LlamaForCausalLM

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as during:
        during.setattr(LlamaForCausalLM, "_load_pretrained_model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(tiny_llama_path)
    assert torch.get_default_dtype() == torch.float32
    assert torch.zeros(1).device.type == "cpu"
    model, tokenizer = load(tiny_llama_path)
    assert torch.isfinite(logits(model, tokenizer)).all()


def test_a_dropped_model_is_gone_before_the_next_is_loaded(tiny_llama_path, monkeypatch):
    model = FastLanguageModel.get_peft_model(load(tiny_llama_path)[0])
    dropped, there = weakref.ref(model), []
    load_weights = loading.load_weights
    monkeypatch.setattr(
        loading,
        "load_weights",
        lambda *a, **k: (there.append(dropped() is not None), load_weights(*a, **k))[1],
    )
    gc.disable()
    try:
        del model
        assert dropped() is not None  # its parts hold each other
        load(tiny_llama_path)
    finally:
        gc.enable()
    assert there == [False]


def test_a_mistyped_checkpointing_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(loading, "find_source", None)  # which would be asked first
    with pytest.raises(ModelError, match="use_gradient_checkpointing='unsloht' is not known"):
        load("nowhere", use_gradient_checkpointing="unsloht")


def test_full_finetuning_trains_every_weight(tiny_llama_path):
    model, _ = load(tiny_llama_path, full_finetuning=True)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.dtype == choose_dtype(None, best_device())
    with pytest.warns(SlothWarning, match="every weight is trained, so no adapters"):
        assert FastLanguageModel.get_peft_model(model) is model


def test_full_finetuning_in_8_bit_says_what_it_means(tiny_llama_path):
    with pytest.warns(SlothWarning, match="a quantised weight can't be trained: .* loaded unquantised"):
        model, _ = load(tiny_llama_path, full_finetuning=True, load_in_8bit=True)
    assert not getattr(model, "is_quantized", False)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_float32_mixed_precision_keeps_the_weights_in_float32(tiny_llama_path):
    model, _ = load(tiny_llama_path, full_finetuning=True, float32_mixed_precision=True)
    assert model.dtype == torch.float32
