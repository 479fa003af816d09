"""The catalogue's rows: complete, honest about their sources, and counted right."""

import ast
import subprocess
import sys
from dataclasses import replace

import pytest

from sloth_nb import catalog
from sloth_nb.errors import ModelError

NAMES = [info.name for info in catalog.models()]


@pytest.mark.parametrize("name", NAMES)
def test_the_computed_parameter_count_is_the_published_one(name):
    info = catalog.find(name)
    assert info.shape.parameters == pytest.approx(info.parameters, rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_says_what_a_user_must_know(name):
    info = catalog.find(name)
    assert info.source and info.licence and info.publisher and info.ids["16bit"]
    assert info.context > 0
    assert info.tasks
    assert info.template or info.kind == "base" or info.family == "speech"
    assert info.training.rank > 0 and 0 < info.training.learning_rate < 1


def test_no_name_is_given_twice():
    assert len(set(NAMES)) == len(NAMES)


def test_the_issues_families_are_all_there():
    for name in (
        *(
            "qwen3-0.6b",
            "qwen3-32b",
            "qwen3-30b-a3b",
            "llama-3.1-8b-instruct",
            "llama-3.2-3b",
            "llama-3.3-70b-instruct",
        ),
        *(
            "llama-4-scout-17b-16e-instruct",
            "llama-4-maverick-17b-128e-instruct",
            "gemma-3-270m-it",
            "gemma-3-27b-it",
        ),
        *("phi-4", "phi-4-mini-instruct", "mistral-7b-v0.3", "mistral-nemo-instruct-2407"),
        *(
            "mistral-small-24b-instruct-2501",
            "deepseek-r1-distill-llama-8b",
            "smollm2-135m-instruct",
            "smollm3-3b",
        ),
        *("llama-3.2-11b-vision-instruct", "csm-1b", "whisper-tiny", "whisper-large-v3"),
    ):
        assert catalog.find(name).name == name


def test_exactly_one_model_loads_without_a_network():
    assert [info.name for info in catalog.models() if info.offline] == ["smollm2-135m-instruct"]


@pytest.mark.parametrize("name", ["Qwen3-14B", "Qwen/Qwen3-14B", "unsloth/qwen3-14b-bnb-4bit", " qwen3-14b "])
def test_a_model_is_found_by_any_of_its_names(name):
    assert catalog.find(name).name == "qwen3-14b"


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(ModelError, match=r"qwen3-14b"):
        catalog.find("qwen3-15b")


def test_no_name_at_all_is_not_taken_for_this_folder():
    with pytest.raises(ModelError, match="No model is named"):
        catalog.resolve(" ")


def test_search_needs_every_word_and_every_filter():
    names = [info.name for info in catalog.search("gemma 4b")]
    assert names == ["gemma-3-4b-it", "gemma-3-4b"]
    small = catalog.search(modality="text", licence="Apache-2.0", max_parameters=1e9, kind="instruct")
    assert small and all(info.parameters <= 1e9 and info.licence == "Apache-2.0" for info in small)
    assert {info.name for info in catalog.search(task="stt")} >= {"whisper-tiny", "whisper-large-v3"}
    assert not catalog.search("no such model anywhere")


def test_a_publisher_finds_its_own_models_only():
    assert [info.name for info in catalog.search("sesame")] == ["csm-1b"]
    assert catalog.search("openai") and all("whisper" in info.name for info in catalog.search("openai"))
    assert catalog.find("whisper-large-v3-turbo").licence == "MIT"


def test_the_code_shown_loads_the_right_repository():
    assert 'from_pretrained("unsloth/Qwen3-14B-bnb-4bit", load_in_4bit=True)' in catalog.find(
        "qwen3-14b"
    ).code(True)
    assert 'from_pretrained("smollm2-135m-instruct"' in catalog.find("smollm2-135m-instruct").code()


@pytest.mark.parametrize("name", ["C:\\new\\models", 'a"b', '"); print("no', "Größe\n", "mine"])
def test_the_code_shown_names_the_very_folder_whatever_its_name_holds(name):
    info = replace(catalog.find("qwen3-14b"), ids={"16bit": name})
    call = ast.parse(info.code()).body[-1].value
    assert ast.literal_eval(call.args[0]) == name


def test_the_catalogue_imports_neither_torch_nor_transformers():
    code = (
        "import sys; from sloth_nb import catalog; catalog.find('qwen3-14b').shape; catalog.gpu('T4');"
        "assert not {'torch', 'transformers', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
