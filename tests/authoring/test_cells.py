"""Cells become a notebook that nbformat finds right, and the same file each time."""

import nbformat
import pytest

from sloth_nb.authoring.cells import as_notebook, as_text, code, markdown, read_cells, save
from sloth_nb.errors import NotebookError

TEXT = """
%%% markdown title
# Höhe & “Länge”

Two lines.
%%% code settings parameters slow
steps = 60

%%% code exercise {"nbgrader": {"grade": true, "points": 1}}
assert steps
"""


def test_a_text_is_read_into_cells_with_ids_tags_and_metadata():
    title, settings, exercise = read_cells(TEXT)
    assert (title.kind, title.id, title.source) == ("markdown", "title", "# Höhe & “Länge”\n\nTwo lines.")
    assert settings == code("settings", "steps = 60", tags=["parameters", "slow"])
    assert exercise.metadata == {"nbgrader": {"grade": True, "points": 1}} and exercise.tags == ()


def test_a_notebook_is_valid_holds_no_outputs_and_is_the_very_text_that_nbformat_writes():
    text = as_text(as_notebook(read_cells(TEXT)))
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert nbformat.writes(notebook) + "\n" == text == as_text(as_notebook(read_cells(TEXT)))
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert [cell.id for cell in notebook.cells] == ["title", "settings", "exercise"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebook.cells[1:])
    assert "widgets" not in notebook.metadata and notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize(
    ("cells", "says"),
    [
        ([markdown("a", "1"), code("a", "2")], "Two cells have the id 'a'"),
        ([code("two words", "1")], "no cell id"),
        ([code("x" * 65, "1")], "no cell id"),
    ],
)
def test_ids_that_are_none_are_refused(cells, says):
    with pytest.raises(NotebookError, match=says):
        as_notebook(cells)


@pytest.mark.parametrize(
    ("text", "says"),
    [("hello\n%%% code a\n1", "before its first cell"), ("%%% raw a\n1", "markdown or code")],
)
def test_texts_that_are_no_cells_are_refused(text, says):
    with pytest.raises(NotebookError, match=says):
        read_cells(text)


def test_an_existing_file_is_left_alone_unless_forced(tmp_path):
    path = save("one\n", tmp_path / "new" / "a.ipynb")
    with pytest.raises(NotebookError, match="exists already"):
        save("two\n", path)
    assert path.read_bytes() == b"one\n"
    assert save("two\n", path, force=True).read_bytes() == b"two\n"
    with pytest.raises(NotebookError, match="can't be written"):
        save("x", path / "below.ipynb")
