"""Every lesson, run from its first to its last cell as a teacher has it, its kernel killed at 2 GB.

On the way each exercise is handed in unsolved and with wrong answers first: its check must refuse them all.
Trainings are cut to a few steps; one lesson a day, or those named in SLOTH_NB_LESSONS ("3", "1,4", "all"), runs whole.
"""

import os
import time

import nbformat
import pytest

from sloth_nb.authoring.cells import as_notebook, as_text, code
from sloth_nb.authoring.execute import execute
from sloth_nb.authoring.lessons import lesson_notebook, lessons
from sloth_nb.authoring.lessons.notebooks import unsolved
from sloth_nb.authoring.parameters import parameter_names

LIMIT = 2.0  # GB, Binder's
MAY_FAIL = ("raises-exception",)

pytestmark = pytest.mark.slow


def whole() -> set[int]:
    asked = os.environ.get("SLOTH_NB_LESSONS", "")
    numbers = set(range(1, 1 + len(lessons())))
    if asked:
        return numbers if asked == "all" else {int(number) for number in asked.split(",")}
    return {1 + time.gmtime().tm_yday % len(numbers)}


def handed_in(lesson):
    """The teacher's notebook, before each solution the ways to get it wrong, each followed by the check."""
    notebook = lesson_notebook(lesson, "teacher")
    cells = {cell["id"]: cell for cell in notebook["cells"]}
    together = []
    for cell in notebook["cells"]:
        for exercise, check in lesson.exercises:
            if cell["id"] == exercise.id:
                tries = [unsolved(exercise.source), *lesson.wrong[exercise.id]]
                for number, source in enumerate(tries):
                    name = f"{exercise.id}-try-{number}"
                    together.append(code(name, source, tags=MAY_FAIL if number == 0 else ()).as_json())
                    together.append(code(f"{name}-check", check.source, tags=MAY_FAIL).as_json())
        together.append(cell)
    assert len(cells) == len(notebook["cells"])
    return {**notebook, "cells": together}


@pytest.fixture(autouse=True)
def environment(repository, monkeypatch):
    paths = [repository, repository / "kernels", repository / "widgets"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", range(1, 1 + len(lessons())))
def test_a_lesson_runs_in_2_gb_and_its_checks_tell_right_from_wrong(number, tmp_path):
    lesson = lessons()[number - 1]
    source = tmp_path / "lesson.ipynb"
    source.write_text(as_text(handed_in(lesson)), encoding="utf-8")
    names = parameter_names(nbformat.read(source, as_version=4))
    small = {"steps": 2} if "steps" in names and number not in whole() else {}
    done = execute(source, tmp_path / "out" / "lesson.ipynb", parameters=small, memory_limit=LIMIT)
    for cell in done.notebook.cells:
        if "-try-" in cell.id and cell.id.endswith("-check"):
            errors = [output.ename for output in cell.outputs if output.output_type == "error"]
            assert errors, f"{lesson.name}: the check accepts {cell.id.removesuffix('-check')}"
            if not cell.id.endswith("-0-check"):
                assert errors == ["AssertionError"], (
                    f"{lesson.name}, {cell.id}: refuses by accident ({errors})"
                )
    assert done.peak_memory_bytes < LIMIT * 1e9
    assert "widgets" not in done.notebook.metadata


def test_a_kernel_that_takes_more_than_its_limit_is_ended(tmp_path):
    from sloth_nb.errors import NotebookError

    source = tmp_path / "hungry.ipynb"
    cells = [
        code(
            "hungry",
            "import time\nx = bytearray(400_000_000)\nx[::4096] = b'1' * len(x[::4096])\ntime.sleep(30)",
        )
    ]
    source.write_text(as_text(as_notebook(cells)), encoding="utf-8")
    with pytest.raises(NotebookError, match=r"ended at the limit of 0\.3 GB"):
        execute(source, tmp_path / "out.ipynb", memory_limit=0.3)
