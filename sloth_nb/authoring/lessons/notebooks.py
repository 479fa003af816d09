"""From a lesson to its notebooks: the student's, with gaps, and the teacher's, with nbgrader's marks."""

import re
from pathlib import Path
from typing import Any, Literal

from sloth_nb.authoring.cells import Cell, as_notebook, as_text, code, markdown
from sloth_nb.authoring.lessons.reading import BEGIN, END, Lesson, Part, lessons
from sloth_nb.errors import NotebookError

__all__ = ["Version", "lesson_notebook", "unsolved", "write_course"]

Version = Literal["student", "teacher"]

_SOLUTION = re.compile(rf"^(?P<indent>[ ]*){BEGIN}\n.*?^[ ]*{END}[ ]*$", re.DOTALL | re.MULTILINE)


def unsolved(source: str) -> str:
    """An exercise as students get it: what stands between the marks replaced, in nbgrader's own words."""
    return _SOLUTION.sub(
        lambda found: f"{found['indent']}# YOUR CODE HERE\n{found['indent']}raise NotImplementedError()",
        source,
    )


def lesson_notebook(lesson: Lesson, version: Version = "student") -> dict[str, Any]:
    """The notebook of a lesson as JSON data, without outputs; the same each time it is made."""
    return as_notebook([_cell(part, version) for part in lesson.parts])


def _cell(part: Part, version: Version) -> Cell:
    metadata: dict[str, Any] = {"slideshow": {"slide_type": part.slide}}
    if part.kind == "prose":
        return markdown(part.id, part.source, **metadata)
    if part.kind in ("exercise", "check"):
        metadata["nbgrader"] = _nbgrader(part)
    source = unsolved(part.source) if part.kind == "exercise" and version == "student" else part.source
    return code(part.id, source, tags=("parameters",) if part.kind == "parameters" else (), **metadata)


def _nbgrader(part: Part) -> dict[str, Any]:
    """nbgrader's cell metadata, schema 3: what students fill in, and what is locked and gives points."""
    grades = part.kind == "check"
    points = {"points": part.points} if grades else {}
    return {
        "schema_version": 3,
        "grade_id": part.id,
        "grade": grades,
        "solution": not grades,
        "locked": grades,
        "task": False,
        "cell_type": "code",
        **points,
    }


def write_course(folder: str | Path, version: Version = "student", *, overwrite: bool = False) -> list[Path]:
    """Writes every lesson into a folder, which is made; returns their paths.

    Raises:
        NotebookError: a file there differs (a student's work, perhaps) and ``overwrite`` is off; nothing is
            written then.
    """
    folder = Path(folder)
    wanted = {
        folder / f"{lesson.name}.ipynb": as_text(lesson_notebook(lesson, version)) for lesson in lessons()
    }
    taken = [path for path, text in wanted.items() if path.exists() and path.read_text("utf-8") != text]
    if taken and not overwrite:
        raise NotebookError(
            f"{taken[0]} is there already and is not what would be written (a student's work, perhaps). "
            "Nothing was written. Choose another folder, or pass overwrite=True (--force)."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in wanted.items():
            path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise NotebookError(
            f"The course can't be written into {folder}: {error.strerror or error}."
        ) from error
    return list(wanted)
