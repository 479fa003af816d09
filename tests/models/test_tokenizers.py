"""What is mended on a tokenizer, and what is left alone."""

import pytest

from sloth_nb import FastLanguageModel
from sloth_nb.errors import ModelError, SlothWarning
from sloth_nb.models.tokenizers import mend_tokenizer


def test_padding_is_not_the_end_of_a_text_where_a_token_is_to_spare(tokenizer):
    assert tokenizer.pad_token == tokenizer.eos_token
    rows = len(tokenizer)
    mend_tokenizer(tokenizer, 2048)
    assert tokenizer.pad_token == "<|endoftext|>"
    assert len(tokenizer) == rows, "no token was added"
    assert tokenizer.padding_side == "right"


def test_a_token_kept_for_padding_is_preferred(tokenizer):
    tokenizer.add_tokens(["<|finetune_right_pad_id|>", "<pad>"], special_tokens=True)
    mend_tokenizer(tokenizer, 2048)
    assert tokenizer.pad_token == "<|finetune_right_pad_id|>"


def test_a_padding_token_of_its_own_is_kept(tokenizer):
    tokenizer.pad_token = "<file_sep>"
    mend_tokenizer(tokenizer, 2048)
    assert tokenizer.pad_token == "<file_sep>"


def test_without_a_token_to_spare_the_end_of_a_text_pads(tokenizer):
    tokenizer.eos_token, tokenizer.pad_token = "<|endoftext|>", None
    mend_tokenizer(tokenizer, 2048)
    assert tokenizer.pad_token == tokenizer.eos_token


def test_an_unknown_length_becomes_the_models_context_and_a_known_one_stays(tokenizer):
    mend_tokenizer(tokenizer, 2048)
    assert tokenizer.model_max_length == 8192
    tokenizer.model_max_length = int(1e30)
    mend_tokenizer(tokenizer, 2048)
    assert tokenizer.model_max_length == 2048


def test_for_inference_pads_left_and_for_training_right_again(tiny_llama_path):
    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_llama_path), load_in_4bit=False)
    assert FastLanguageModel.for_inference(model) is model
    assert (tokenizer.padding_side, model.training, model.config.use_cache) == ("left", False, True)
    assert FastLanguageModel.for_training(model) is model
    assert (tokenizer.padding_side, model.training) == ("right", True)
    model.for_inference()
    assert not model.training, "bound on the model too"


def test_for_inference_and_back_leaves_checkpointing_as_asked_for(tiny_llama):
    def on(model):
        return any(getattr(layer, "gradient_checkpointing", False) for layer in model.modules())

    model = FastLanguageModel.get_peft_model(tiny_llama)
    assert on(model)
    assert not on(FastLanguageModel.for_inference(model))
    assert on(FastLanguageModel.for_training(model))
    assert not on(FastLanguageModel.for_training(model, use_gradient_checkpointing=False))
    with pytest.raises(ModelError, match="use_gradient_checkpointing='sometimes' is not known"):
        FastLanguageModel.for_training(model, use_gradient_checkpointing="sometimes")


def test_more_tokens_than_embeddings_are_pointed_out(tiny_llama_path, tokenizer):
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(tiny_llama_path)
    with pytest.warns(SlothWarning, match="resize_model_vocab=49153"):
        FastLanguageModel.from_pretrained(str(tiny_llama_path), load_in_4bit=False)
    model, _ = FastLanguageModel.from_pretrained(
        str(tiny_llama_path), load_in_4bit=False, resize_model_vocab=49153
    )
    assert model.get_input_embeddings().weight.shape[0] == 49153


def test_a_missing_tokenizer_is_a_model_error(tiny_llama_path):
    for file in tiny_llama_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"The tokenizer of .* can't be loaded"):
        FastLanguageModel.from_pretrained(str(tiny_llama_path), load_in_4bit=False)
