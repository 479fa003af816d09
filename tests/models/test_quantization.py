"""NF4 and int8 on the CPU: loaded, trained, evaluated in between, merged; and without bitsandbytes."""

import sys

import pytest
import torch

from sloth_nb import FastLanguageModel, generate
from sloth_nb.errors import ExportError, ModelError, SlothWarning
from sloth_nb.models.devices import best_device
from sloth_nb.models.precision import choose_dtype
from sloth_nb.models.quantization import keep_trainable


@pytest.fixture
def bitsandbytes():
    return pytest.importorskip("bitsandbytes")


def gradients(model, tokenizer):
    """The gradient of every adapter weight for one step."""
    ids = tokenizer("The sloth crosses the road, slowly.", return_tensors="pt")
    model.train()
    model(**ids, labels=ids["input_ids"]).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_without_bitsandbytes_four_bits_become_sixteen_with_one_warning(tiny_llama_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.warns(SlothWarning) as caught:
        model, _ = FastLanguageModel.from_pretrained(str(tiny_llama_path))
    (warning,) = [w for w in caught if w.category is SlothWarning]
    assert "load_in_4bit=True, but bitsandbytes is not installed (pip install bitsandbytes)" in str(
        warning.message
    )
    best = choose_dtype(None, best_device())
    assert str(best).removeprefix("torch.") in str(warning.message)
    assert model.dtype == best


def test_a_bitsandbytes_that_fails_to_import_is_named(tiny_llama_path, monkeypatch, tmp_path):
    (tmp_path / "broken" / "bitsandbytes").mkdir(parents=True)
    (tmp_path / "broken" / "bitsandbytes" / "__init__.py").write_text("raise OSError('libfoo.so is missing')")
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    monkeypatch.syspath_prepend(tmp_path / "broken")
    with pytest.warns(SlothWarning, match=r"can't be loaded \(OSError: libfoo\.so is missing\)"):
        model, _ = FastLanguageModel.from_pretrained(str(tiny_llama_path))
    assert model.dtype == choose_dtype(None, best_device())


def test_nf4_trains_on_the_cpu_also_after_answering_and_evaluating(tiny_llama_path, bitsandbytes):
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_llama_path))
    layer = model.model.layers[0].mlp.up_proj
    assert isinstance(layer, bitsandbytes.nn.Linear4bit)
    assert layer.weight.quant_state.quant_type == "nf4" and layer.weight.quant_state.nested
    model = FastLanguageModel.get_peft_model(model)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    before = gradients(model, tokenizer)

    generate(model, tokenizer, "Hello", max_new_tokens=2)
    FastLanguageModel.for_inference(model)
    with torch.no_grad():
        model(**tokenizer("held out", return_tensors="pt"))
    FastLanguageModel.for_training(model)

    after = gradients(model, tokenizer)
    assert len(before) == len([p for p in model.parameters() if p.requires_grad])
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name
    lowest = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight"
    assert before[lowest].abs().sum() > 0, "the gradient reaches the lowest layer"


def test_the_trap_is_real_where_the_cpu_has_it(bitsandbytes):
    """Without keep_trainable the same layer loses its input gradient: the reason for all of this."""
    layer = bitsandbytes.nn.Linear4bit(64, 64, bias=False, quant_type="nf4", compute_dtype=torch.bfloat16).to(
        "cpu"
    )
    if not layer.support_avx512bf16_for_cpu:
        pytest.skip("this CPU has no AVX512-BF16, so bitsandbytes repacks nothing")
    layer.eval()
    with torch.no_grad():
        layer(torch.ones(2, 64, dtype=torch.bfloat16))
    with pytest.raises(ModelError, match="was repacked for inference"):
        keep_trainable(torch.nn.Sequential(layer))


def test_int8_trains_on_the_cpu_and_survives_being_merged(tiny_llama_path, bitsandbytes, tmp_path):
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_llama_path), load_in_8bit=True)
    model = FastLanguageModel.get_peft_model(model)
    before = gradients(model, tokenizer)
    with pytest.warns(SlothWarning, match="merged into the quantised weights"):
        model.save_pretrained_merged(tmp_path / "merged", tokenizer)
    after = gradients(model, tokenizer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_merged_nf4_model_computes_what_the_quantised_one_does(tiny_llama_path, bitsandbytes, tmp_path):
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_llama_path))
    model = FastLanguageModel.get_peft_model(model)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    with pytest.warns(SlothWarning, match="merged into the quantised weights"):
        model.save_pretrained_merged(tmp_path / "merged", tokenizer)
    merged, _ = FastLanguageModel.from_pretrained(str(tmp_path / "merged"), load_in_16bit=True)
    assert not getattr(merged.config, "quantization_config", None)
    ids = tokenizer("The quick brown fox", return_tensors="pt")
    with torch.no_grad():
        expected, found = model.eval()(**ids).logits.float(), merged.eval()(**ids).logits.float()
    assert torch.allclose(expected, found, atol=8 * 2**-8 * expected.abs().max().item())
    assert torch.nn.functional.cosine_similarity(expected, found, dim=-1).min() > 0.999


def test_dora_on_a_quantised_base_says_how_to_merge_it(tiny_llama_path, bitsandbytes, tmp_path):
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_llama_path))
    model = FastLanguageModel.get_peft_model(model, use_dora=True)
    with (
        pytest.warns(SlothWarning, match="quantised"),
        pytest.raises(ExportError, match="load its folder with load_in_4bit=False"),
    ):
        model.save_pretrained_merged(tmp_path / "merged", tokenizer)
    assert not (tmp_path / "merged").exists()


def test_8_bit_and_16_bit_exclude_each_other(tiny_llama_path):
    with pytest.raises(ModelError, match="exclude each other"):
        FastLanguageModel.from_pretrained(str(tiny_llama_path), load_in_8bit=True, load_in_16bit=True)


def test_a_quantization_config_of_the_users_own_is_used(tiny_llama_path, bitsandbytes):
    from transformers import BitsAndBytesConfig

    own = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4")
    model, _ = FastLanguageModel.from_pretrained(str(tiny_llama_path), quantization_config=own)
    assert model.model.layers[0].mlp.up_proj.weight.quant_state.quant_type == "fp4"


def test_an_already_quantised_checkpoint_loads_as_it_is_and_cannot_be_trained_in_full(
    tiny_llama_path, bitsandbytes, tmp_path
):
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_llama_path))
    model.save_pretrained(tmp_path / "nf4")
    tokenizer.save_pretrained(tmp_path / "nf4")
    again, _ = FastLanguageModel.from_pretrained(str(tmp_path / "nf4"), load_in_4bit=False)
    assert isinstance(again.model.layers[0].mlp.up_proj, bitsandbytes.nn.Linear4bit)
    with pytest.raises(ModelError, match="this checkpoint's are quantised"):
        FastLanguageModel.from_pretrained(str(tmp_path / "nf4"), full_finetuning=True)
