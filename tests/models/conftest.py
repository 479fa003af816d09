"""The room's shared fixtures."""

import pytest

from sloth_nb import FastLanguageModel
from tests.models.tuned import load, stir


@pytest.fixture
def adapted(tiny_llama_path):
    model, tokenizer = load(tiny_llama_path)
    return stir(FastLanguageModel.get_peft_model(model)), tokenizer
