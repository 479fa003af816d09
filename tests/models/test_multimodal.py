"""Models that also see: loaded whole or their text part alone, and adapted by parts."""

import pytest
import torch
import transformers

from sloth_nb import FastLanguageModel, FastModel
from sloth_nb.errors import ModelError, SlothWarning

TINY_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "patch_size": 14}


@pytest.fixture
def gemma3(shared_tokenizer, tmp_path):
    """A random Gemma 3 with a vision tower of one layer, and the folder it was saved in."""
    text = {
        "vocab_size": len(shared_tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 2048,
    }
    vision = {**TINY_VISION, "num_hidden_layers": 1, "image_size": 28}
    config = transformers.Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5
    )
    model = transformers.Gemma3ForConditionalGeneration(config)
    model.save_pretrained(tmp_path / "gemma3")
    shared_tokenizer.save_pretrained(tmp_path / "gemma3")
    return model, tmp_path / "gemma3"


def logits(model, tokenizer):
    with torch.no_grad():
        return model.eval()(**tokenizer("slow and steady", return_tensors="pt")).logits


def load(folder, **arguments):
    return FastModel.from_pretrained(str(folder), load_in_4bit=False, dtype="float32", **arguments)


def test_the_text_part_alone_computes_the_same_and_survives_saving(
    gemma3, shared_tokenizer, tmp_path, recwarn
):
    whole, folder = gemma3
    text, tokenizer = load(folder, text_only=True)
    assert type(text).__name__ == "Gemma3ForCausalLM"
    assert torch.equal(logits(text, tokenizer), logits(whole, tokenizer))
    text.save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    again, _ = load(tmp_path / "text")
    assert torch.equal(logits(again, tokenizer), logits(whole, tokenizer))
    assert not [w for w in recwarn if w.category is SlothWarning]


def test_without_a_processor_only_text_goes_in_and_that_is_said(gemma3):
    whole, folder = gemma3
    with pytest.warns(SlothWarning, match="no processor that can be loaded, so only text goes in"):
        model, tokenizer = load(folder)
    assert type(model) is type(whole)
    assert torch.equal(logits(model, tokenizer), logits(whole, tokenizer))


@pytest.mark.filterwarnings("ignore:.*no processor")
@pytest.mark.parametrize("vision", [True, False])
@pytest.mark.parametrize("language", [True, False])
def test_adapters_go_to_the_parts_that_are_switched_on(gemma3, vision, language):
    model, _ = load(gemma3[1])
    switches = {"finetune_vision_layers": vision, "finetune_language_layers": language}
    if not vision and not language:
        with pytest.raises(ModelError, match="Every part is switched off"):
            FastModel.get_peft_model(model, **switches)
        return
    adapted = FastModel.get_peft_model(model, **switches)
    names = [name for name, layer in adapted.named_modules() if hasattr(layer, "lora_A")]
    assert any("vision_tower" in name for name in names) is vision
    assert any("language_model" in name for name in names) is language


@pytest.mark.filterwarnings("ignore:.*no processor")
def test_the_text_models_projections_are_found_in_a_model_that_sees(gemma3):
    model, _ = load(gemma3[1])
    adapted = FastLanguageModel.get_peft_model(model)
    names = [name for name, layer in adapted.named_modules() if hasattr(layer, "lora_A")]
    assert any("language_model" in name for name in names)


def test_a_text_part_without_a_class_of_its_own_is_a_short_error(tmp_path, shared_tokenizer):
    config = transformers.Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 64,
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": 64,
        },
    )
    transformers.Qwen2_5_VLForConditionalGeneration(config).save_pretrained(tmp_path)
    shared_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="Unrecognized configuration class") as caught:
        load(tmp_path, text_only=True)
    assert len(str(caught.value)) < 500


def test_a_whisper_model_gets_its_language_and_task(tmp_path, shared_tokenizer):
    config = transformers.WhisperConfig(
        vocab_size=len(shared_tokenizer),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    transformers.WhisperForConditionalGeneration(config).save_pretrained(tmp_path)
    shared_tokenizer.save_pretrained(tmp_path)
    with pytest.warns(SlothWarning, match="no processor"):
        model, _ = load(tmp_path, whisper_language="English", whisper_task="transcribe")
    assert (model.generation_config.language, model.generation_config.task) == ("English", "transcribe")
