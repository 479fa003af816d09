"""A warning names the user's own line, however deep in the package it was thought of."""

import warnings

import pytest

from sloth_nb import FastLanguageModel
from sloth_nb.errors import SlothWarning


def test_a_warning_points_at_the_first_caller_outside_the_package(tiny_llama_path):
    with pytest.warns(SlothWarning) as caught:
        FastLanguageModel.from_pretrained(str(tiny_llama_path), load_in_4bit=False, max_seq_length=4096)
    assert [w.filename for w in caught if w.category is SlothWarning] == [__file__]


def test_loading_and_adapting_shows_no_deprecation_of_other_libraries(tiny_llama_path, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        model, _ = FastLanguageModel.from_pretrained(str(tiny_llama_path), load_in_4bit=False)
        model = FastLanguageModel.get_peft_model(model)
        model.save_pretrained(tmp_path / "lora")
        FastLanguageModel.from_pretrained(str(tmp_path / "lora"), load_in_4bit=False)


def test_the_first_step_with_checkpointing_says_nothing_about_the_cache(tiny_llama_path, caplog):
    import logging

    model, tokenizer = FastLanguageModel.from_pretrained(str(tiny_llama_path), load_in_4bit=False)
    model = FastLanguageModel.get_peft_model(model).train()
    ids = tokenizer("slowly", return_tensors="pt")
    transformers_log = logging.getLogger("transformers")
    transformers_log.addHandler(caplog.handler)
    try:
        model(**ids, labels=ids["input_ids"]).loss.backward()
    finally:
        transformers_log.removeHandler(caplog.handler)
    assert "use_cache" not in caplog.text
