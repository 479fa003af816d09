"""The quickstart notebook: committed clean, and it runs from its first to its last cell."""

import os
import re

import nbformat
import pytest

from sloth_nb.authoring.execute import execute
from sloth_nb.authoring.parameters import parameter_names


@pytest.fixture
def quickstart(repository):
    return repository / "notebooks" / "quickstart.ipynb"


def test_it_is_committed_without_outputs_and_with_cell_ids_that_stay(quickstart):
    notebook = nbformat.read(quickstart, as_version=4)
    nbformat.validate(notebook)
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z-]+", name) for name in ids)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert "max_steps" in parameter_names(notebook)


@pytest.mark.slow
def test_it_runs_in_miniature_and_leaves_what_it_says(quickstart, repository, tmp_path, monkeypatch):
    paths = [repository, repository / "kernels", repository / "widgets"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    lines: list[str] = []
    done = execute(
        quickstart,
        tmp_path / "quickstart.ipynb",
        parameters={"max_steps": 2, "batch_size": 2},
        say=lines.append,
    )
    said = "\n".join(lines)
    for line in ("held-out loss ", "before ", "after ", "speed ", "peak memory ", "event log ", "adapter "):
        assert re.search(rf"^    +{line}", said, re.MULTILINE), line
    assert (tmp_path / "outputs" / "run.jsonl").is_file()
    assert (tmp_path / "moss-adapter" / "adapter_model.safetensors").is_file()
    notebook = nbformat.read(tmp_path / "quickstart.ipynb", as_version=4)
    assert "widgets" not in notebook.metadata
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not any("SlothWarning" in output.get("text", "") for output in outputs), (
        "our own calls are today's"
    )
    assert any("image/svg+xml" in output.get("data", {}) for output in outputs), (
        "the curves stay in the notebook"
    )
    assert done.peak_memory_bytes < 3e9
