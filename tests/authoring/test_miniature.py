"""Every notebook that the repository carries, run from its first to its last cell, with its model in miniature.

All of them with ALL_NOTEBOOKS=1 (`make notebooks-check`); else one of each task, others with each commit.
"""

import os
import subprocess
from pathlib import Path

import nbformat
import pytest

from sloth_nb.authoring import collection
from sloth_nb.authoring.execute import execute
from sloth_nb.authoring.tasks import tasks
from tests.authoring import miniature

RECIPES = {f"{one.platform.name}/{one.name}": one for one in collection.recipes()}


def chosen() -> list[str]:
    """All of them, or one a task: the commit's number says which, so that a failure can be seen again."""
    if os.environ.get("ALL_NOTEBOOKS") == "1":
        return list(RECIPES)
    root = Path(__file__).parent
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    turn = int(git.stdout.strip() or "0", 16)
    by_task = [[name for name, one in RECIPES.items() if one.task == task] for task in tasks()]
    return [names[turn % len(names)] for names in by_task]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny-models")


@pytest.mark.slow
@pytest.mark.parametrize("name", chosen())
def test_it_runs_from_its_first_to_its_last_cell(name, tiny_models, tmp_path, kernels_find_the_package):
    recipe = RECIPES[name]
    path = recipe.save(tmp_path / "in.ipynb")
    model = miniature.tiny_model(recipe.model, tiny_models / recipe.model.name)
    put_in = miniature.parameters(recipe, nbformat.read(path, 4), model, tmp_path / "results")
    lines: list[str] = []
    done = execute(path, tmp_path / "out.ipynb", parameters=put_in, say=lines.append)
    said = "\n".join(lines)
    assert "sloth_nb is here already" in said and "finished" in said
    assert (tmp_path / "results" / "adapter" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "results" / "merged" / "model.safetensors").is_file()
    assert (tmp_path / "results" / "run.jsonl").is_file()
    notebook = nbformat.read(tmp_path / "out.ipynb", 4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    assert done.peak_memory_bytes < 4e9
    if recipe.task.name == "evaluate":
        assert (tmp_path / "results" / "comparison.csv").read_text("utf-8").count("score") == 2
    if recipe.task.name == "synthetic":
        assert "pairs kept" in said and (tmp_path / "results" / "pairs.jsonl").is_file()
