"""Kaggle without internet: the model is found among the attached inputs, or the sentence says what to attach."""

import json

import pytest

from sloth_nb import catalog
from sloth_nb.authoring.attached import attached_model
from sloth_nb.errors import NotebookError


def attach(inputs, name, *parts):
    """An input that holds a model of the catalogue, as Kaggle lays it out."""
    folder = inputs.joinpath(*parts)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(catalog.find(name).config))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


def offline():
    return False


def test_an_attached_model_is_found_by_its_shape_and_of_two_alike_the_better_named(tmp_path):
    llama = attach(tmp_path, "llama-3.1-8b-instruct", "llama-3.1", "transformers", "8b-instruct", "2")
    r1 = attach(
        tmp_path,
        "deepseek-r1-distill-llama-8b",
        "deepseek-r1",
        "transformers",
        "deepseek-r1-distill-llama-8b",
        "1",
    )
    find = {"inputs": tmp_path, "online": offline}
    assert attached_model("llama-3.1-8b-instruct", **find) == str(llama)
    assert attached_model("unsloth/DeepSeek-R1-Distill-Llama-8B-bnb-4bit", **find) == str(r1)


def test_a_model_that_also_sees_is_found_by_its_text_part(tmp_path):
    gemma = attach(tmp_path, "gemma-3-4b-it", "gemma-3", "transformers", "gemma-3-4b-it", "1")
    assert attached_model("google/gemma-3-4b-it", inputs=tmp_path, online=offline) == str(gemma)


def test_without_internet_and_without_the_input_the_sentence_says_what_to_attach(tmp_path):
    attach(tmp_path, "qwen3-4b", "qwen-3", "transformers", "4b", "1")
    with pytest.raises(
        NotebookError, match=r"no internet.*Add Input → Models, search for “Qwen3-14B”.*Internet on"
    ):
        attached_model("qwen3-14b", inputs=tmp_path, online=offline)
    with pytest.raises(NotebookError, match="search for “strange”"):
        attached_model("some/strange", inputs=tmp_path, online=offline)


def test_elsewhere_a_name_stays_a_name(tmp_path):
    assert attached_model("qwen3-14b", inputs=tmp_path / "absent", online=offline) == "qwen3-14b"
    assert attached_model("qwen3-14b", inputs=tmp_path, online=lambda: True) == "qwen3-14b"
    assert attached_model("smollm2-135m-instruct", inputs=tmp_path, online=offline) == "smollm2-135m-instruct"
    assert attached_model(str(tmp_path), inputs=tmp_path, online=offline) == str(tmp_path)
