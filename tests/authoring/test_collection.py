"""The notebooks that the repository carries: the ones their recipes make, clean, valid, and right for their place."""

import ast
import re

import nbformat
import pytest

from sloth_nb.authoring import collection
from sloth_nb.authoring.parameters import parameter_names

PATHS = [path for path in collection.files() if path.endswith(".ipynb")]
MOST = (
    "qwen3-14b",
    "qwen3-4b",
    "gemma-3-4b-it",
    "llama-3.2-3b-instruct",
    "phi-4",
    "mistral-7b-instruct-v0.3",
    "deepseek-r1-distill-llama-8b",
    "smollm2-1.7b-instruct",
)
SECRET = re.compile(r"hf_[A-Za-z0-9]{20,}|api[_-]?key\s*=\s*['\"]\w", re.I)


@pytest.fixture(scope="module")
def files():
    return collection.files()


def test_the_repository_s_notebooks_are_what_their_recipes_make(repository):
    assert collection.differences(repository / "notebooks") == [], (
        "run `make notebooks` and commit what it writes"
    )


def test_the_best_known_models_are_there_for_colab_and_kaggle():
    for model in MOST:
        assert {f"colab/{model}-sft.ipynb", f"kaggle/{model}-sft.ipynb"} <= set(PATHS)


def test_they_are_the_same_bytes_when_made_again(files):
    assert files == collection.files()


def test_a_changed_a_missing_and_a_left_over_notebook_are_told_and_mended(tmp_path, capsys):
    assert collection.main([str(tmp_path)]) == 0
    assert collection.main([str(tmp_path), "--check"]) == 0
    (tmp_path / "colab" / "old.ipynb").write_text("{}")
    (tmp_path / "README.md").write_bytes((tmp_path / "README.md").read_bytes().replace(b"\n", b"\r\n"))
    (tmp_path / PATHS[0]).unlink()
    capsys.readouterr()
    assert collection.main([str(tmp_path), "--check"]) == 1
    said = capsys.readouterr().out
    assert (
        "old.ipynb" in said
        and "README.md" in said
        and PATHS[0].split("/")[1] in said
        and "make notebooks" in said
    )
    assert collection.main([str(tmp_path)]) == 0 and collection.differences(tmp_path) == []


def test_the_index_names_each_of_them_and_what_is_still_to_come(files):
    for path in PATHS:
        assert path in files["README.md"]
    assert "grpo" in files["README.md"] and "quickstart.ipynb" in files["README.md"]


@pytest.mark.parametrize("path", PATHS)
def test_a_notebook_is_valid_clean_python_and_right_for_its_platform(path, files):
    notebook = nbformat.reads(files[path], as_version=4)
    nbformat.validate(notebook)
    assert not SECRET.search(files[path]) and "widgets" not in notebook.metadata
    assert ("kaggle" in notebook.metadata) == path.startswith("kaggle/")
    assert ("colab" in notebook.metadata) == path.startswith("colab/")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        assert cell.outputs == [] and cell.execution_count is None
        ast.parse(cell.source)
        assert cell.id != "load" or re.search(r"\(\n    (adapter or )?(source|picker\.value),\n", cell.source)
    text = "\n".join(cell.source for cell in notebook.cells)
    for other in {"colab", "kaggle"} - {path.split("/")[0]}:
        assert not re.search(rf"\b(google\.)?{other}\b", text, re.I), (
            f"a notebook for another place speaks of {other}"
        )
    assert ("#@param" in text) == path.startswith("colab/")
    assert {"model_name", "data", "max_steps", "output_dir"} <= set(parameter_names(notebook))
    prose = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert not [line for source in prose for line in source.splitlines() if line != line.rstrip()]
    assert max(len(source.split()) for source in prose) < 280, "short"


@pytest.mark.parametrize("path", PATHS)
def test_what_a_notebook_does_comes_in_the_order_that_a_newcomer_needs(path, files):
    ids = [cell.id for cell in nbformat.reads(files[path], as_version=4).cells]
    wanted = [
        "title",
        "install",
        "settings",
        "pick",
        "load",
        "data",
        "preview",
        "estimate",
        "trainer",
        "wait",
        "export",
        "next",
    ]
    assert [name for name in ids if name in wanted] == wanted
