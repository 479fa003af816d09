"""The course as it is written: each notebook is its lesson's, valid, without solutions, and gradable."""

import ast
import re

import nbformat
import pytest

from sloth_nb.authoring.cells import as_text
from sloth_nb.authoring.lessons import lesson, lesson_notebook, lessons, write_course
from sloth_nb.authoring.lessons.reading import BEGIN, END
from sloth_nb.cli import main
from sloth_nb.errors import NotebookError

FOLDERS = {"student": "notebooks/classroom", "teacher": "notebooks/classroom/teacher"}
NAMES = [found.name for found in lessons()]


@pytest.fixture(params=FOLDERS)
def version(request):
    return request.param


def test_the_course_has_eight_lessons_in_their_order():
    assert [found.title[:2] for found in lessons()] == [f"{number}." for number in range(1, 9)]


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_what_its_source_says(name, version, repository):
    """When this fails: make lessons."""
    path = repository / FOLDERS[version] / f"{name}.ipynb"
    assert path.read_text("utf-8") == as_text(lesson_notebook(lesson(name), version))


def test_no_notebook_is_left_of_a_lesson_that_is_gone(version, repository):
    assert sorted(path.stem for path in (repository / FOLDERS[version]).glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_valid_clean_and_has_slides(name, version):
    notebook = nbformat.reads(as_text(lesson_notebook(lesson(name), version)), as_version=4)
    nbformat.validate(notebook)
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        assert cell.metadata.slideshow.slide_type
        if cell.cell_type == "code":
            ast.parse(cell.source)
            assert not cell.outputs and cell.execution_count is None


@pytest.mark.parametrize("name", NAMES)
def test_nbgrader_finds_what_students_fill_in_and_what_gives_points(name):
    found = lesson(name)
    cells = {cell["id"]: cell["metadata"].get("nbgrader") for cell in lesson_notebook(found)["cells"]}
    assert found.exercises
    for exercise, check in found.exercises:
        assert (cells[exercise.id]["solution"], cells[exercise.id]["grade"]) == (True, False)
        assert (cells[check.id]["solution"], cells[check.id]["grade"]) == (False, True)
        assert cells[check.id]["locked"] and cells[check.id]["points"] > 0
        assert "points" not in cells[exercise.id]
    graded = [data["grade_id"] for data in cells.values() if data]
    assert len(graded) == len(set(graded)) == 2 * len(found.exercises)


@pytest.mark.parametrize("name", NAMES)
def test_students_get_gaps_and_no_solution(name):
    found = lesson(name)
    students, teachers = (as_text(lesson_notebook(found, v)) for v in ("student", "teacher"))
    assert BEGIN not in students and END not in students
    assert students.count("raise NotImplementedError()") == len(found.exercises) == teachers.count(BEGIN)
    for exercise, _ in found.exercises:
        solution = exercise.source.partition(BEGIN)[2].partition(END)[0].strip()
        assert solution and solution not in "\n".join(
            "".join(c["source"]) for c in lesson_notebook(found)["cells"]
        )


@pytest.mark.parametrize("name", NAMES)
def test_every_exercise_comes_with_wrong_answers_for_its_check(name):
    found = lesson(name)
    assert set(found.wrong) == {exercise.id for exercise, _ in found.exercises}


@pytest.mark.parametrize("name", NAMES)
def test_prose_is_in_small_portions(name):
    for part in lesson(name).parts:
        if part.kind == "prose":
            assert len(part.source.split()) <= 150, f"{name}, {part.id}: a wall of text"
        else:
            assert len(part.source.splitlines()) <= 46, f"{name}, {part.id}: too much code for one cell"
        assert max(map(len, part.source.splitlines())) <= 125, f"{name}, {part.id}: a long line"


def test_the_teachers_table_counts_exercises_and_points_rightly(repository):
    page = (repository / "notebooks" / "classroom" / "TEACHER.md").read_text("utf-8")
    rows = re.findall(r"^\| (\d) \| ([^|]+) \| [^|]+ \| (\d+) · (\d+) \|", page, re.M)
    assert [(f"{number}. {title}", int(count), int(points)) for number, title, count, points in rows] == [
        (found.title, len(found.exercises), found.points) for found in lessons()
    ]


def solved_names(source):
    """Names that an exercise gives only when it is solved: its functions with a gap, and what stands in the gap."""
    lines = source.splitlines()
    first, last = (
        lines.index(next(x for x in lines if BEGIN in x)),
        lines.index(next(x for x in lines if END in x)),
    )
    names = set()
    for statement in ast.parse(source).body:
        if statement.lineno <= first + 1 <= (statement.end_lineno or 0) or first < statement.lineno <= last:
            targets = getattr(statement, "targets", [statement])
            names |= {getattr(target, "id", getattr(target, "name", None)) for target in targets}
    return names - {None}


@pytest.mark.parametrize("name", NAMES)
def test_who_is_stuck_can_go_on_as_no_later_cell_needs_a_solution(name):
    missing: set[str] = set()
    for part in lesson(name).parts:
        if part.kind == "exercise":
            found = solved_names(part.source)
            assert found, part.id
            missing |= found
        elif part.kind in ("code", "parameters"):
            used = {node.id for node in ast.walk(ast.parse(part.source)) if isinstance(node, ast.Name)}
            assert not used & missing, f"{name}, {part.id} needs {used & missing}"


def test_a_lesson_is_found_by_number_and_by_name():
    assert lesson(3) is lesson("3") is lesson("3_lora_from_scratch")
    with pytest.raises(NotebookError, match=r"no lesson 9.*\n  1\. What a model is"):
        lesson(9)


def test_a_students_work_is_never_overwritten(tmp_path):
    written = write_course(tmp_path)
    assert len(written) == len(NAMES)
    assert write_course(tmp_path) == written, "writing the same again changes nothing"
    written[2].write_text("my answers")
    written[0].unlink()
    with pytest.raises(NotebookError, match=re.escape(str(written[2]))):
        write_course(tmp_path)
    assert written[2].read_text() == "my answers" and not written[0].exists(), "nothing is half done"
    write_course(tmp_path, overwrite=True)
    assert written[2].read_text() != "my answers"


def test_the_command_writes_the_course(tmp_path, capsys):
    assert main(["classroom", str(tmp_path / "course")]) == 0
    assert len(list((tmp_path / "course").glob("*.ipynb"))) == len(NAMES)
    assert f"{len(NAMES)} lessons" in capsys.readouterr().out
    (tmp_path / "course" / f"{NAMES[0]}.ipynb").write_text("my answers")
    assert main(["classroom", str(tmp_path / "course")]) == 1
    assert "Nothing was written" in capsys.readouterr().err
    assert main(["classroom", str(tmp_path / "course"), "--teacher", "--force"]) == 0
    assert BEGIN in (tmp_path / "course" / f"{NAMES[0]}.ipynb").read_text("utf-8")
