"""Executing a notebook: what is said, what is written, and what a failing cell looks like."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from sloth_nb.authoring import memory_watch
from sloth_nb.authoring.execute import execute
from sloth_nb.cli import main
from sloth_nb.errors import NotebookError


@pytest.fixture(autouse=True)
def kernels_find_the_package(monkeypatch, repository):
    paths = [repository, repository / "kernels", repository / "widgets"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))


@pytest.fixture
def write(tmp_path):
    def write(*cells) -> Path:
        notebook = new_notebook(
            cells=[*cells], metadata={"kernelspec": {"name": "python3", "display_name": "Python"}}
        )
        path = tmp_path / "in" / "book.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, path)
        return path

    return write


def said_by(path, output, **options) -> str:
    lines: list[str] = []
    execute(path, output, say=lines.append, **options)
    return "\n".join(lines)


def test_it_tells_headings_output_and_times_and_writes_the_result_beside_what_it_made(write, tmp_path):
    path = write(
        new_markdown_cell("# A title\nwords"),
        new_code_cell("print('hello')\nopen('made.txt', 'w').close()"),
        new_markdown_cell("## Next"),
        new_code_cell("import sys\nprint('a\\rb', file=sys.stderr)\n6 * 7"),
    )
    before = path.read_bytes()
    output = tmp_path / "out" / "book.ipynb"
    said = said_by(path, output)
    assert "# A title" in said and "[1] print('hello')" in said and "    hello\n" in said
    assert "## Next" in said and "    b\n" in said and "    42\n" in said and " s" in said
    assert path.read_bytes() == before and (tmp_path / "out" / "made.txt").exists()
    assert nbformat.read(output, 4).cells[3].outputs[-1].data["text/plain"] == "42"


def test_a_failing_cell_is_named_with_its_heading_and_the_notebook_is_written(write, tmp_path, capsys):
    path = write(
        new_markdown_cell("## Train"),
        new_code_cell("x = 1"),
        new_code_cell("raise ValueError('no such\\x1b[31m thing')"),
        new_code_cell("print('never')"),
    )
    output = tmp_path / "out.ipynb"
    with pytest.raises(
        NotebookError, match=r"Code cell 2 \(under “Train”\) failed: ValueError: no such\[31m thing"
    ):
        execute(path, output, say=lambda line: None)
    assert nbformat.read(output, 4).cells[2].outputs[0].ename == "ValueError"
    assert main(["run", str(path), "-o", str(output)]) == 1
    assert "failed: ValueError" in capsys.readouterr().err


def test_widgets_leave_no_state_in_the_notebook(write, tmp_path):
    path = write(new_code_cell("import ipywidgets\nipywidgets.IntSlider()"))
    output = tmp_path / "out.ipynb"
    said = said_by(path, output)
    assert "widgets" not in nbformat.read(output, 4).metadata and "IntSlider" not in said


def test_parameters_are_set_after_their_defaults(write, tmp_path):
    path = write(
        new_code_cell("steps = 60\nname: str = 'Moss'", metadata={"tags": ["parameters"]}),
        new_code_cell("print(steps, name)"),
    )
    said = said_by(path, tmp_path / "out.ipynb", parameters={"steps": 2})
    assert "    2 Moss\n" in said
    with pytest.raises(NotebookError, match=r"no parameter 'step'\. Did you mean 'steps'"):
        execute(path, tmp_path / "out.ipynb", parameters={"step": 2})


def test_what_a_background_thread_shows_later_reaches_the_cell_it_belongs_to(write, tmp_path):
    path = write(
        new_code_cell(
            "import threading, time\n"
            "from IPython.display import display\n"
            "handle = display('first', display_id=True)\n"
            "threading.Thread(target=lambda: (time.sleep(0.5), handle.update('last'))).start()"
        ),
        new_code_cell("time.sleep(1.5)"),
    )
    output = tmp_path / "out.ipynb"
    said_by(path, output)
    assert nbformat.read(output, 4).cells[0].outputs[0].data["text/plain"] == "'last'"


def test_an_output_updated_in_place_is_said_again_as_it_ended(write, tmp_path):
    path = write(
        new_code_cell(
            "handle = display('first', display_id=True)\nhandle.update('then')\nhandle.update('last')"
        )
    )
    said = said_by(path, tmp_path / "out.ipynb")
    assert "    'first'\n    'last'\n" in said and "'then'" not in said


def test_the_kernel_s_peak_memory_is_known_however_short_its_cell(write, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_watch, "_SECONDS", 60)  # no second look before the notebook's end
    path = write(new_code_cell("import numpy\nx = numpy.ones(40_000_000)\ndel x"))
    assert execute(path, tmp_path / "out.ipynb", say=lambda line: None).peak_memory_bytes > 320e6


def test_a_kernel_that_dies_is_one_clear_sentence(write, tmp_path):
    path = write(new_code_cell("import os\nos._exit(1)"))
    with pytest.raises(NotebookError, match="Code cell 1: the kernel died"):
        execute(path, tmp_path / "out.ipynb", say=lambda line: None)


def test_a_file_that_is_no_notebook_is_named(tmp_path, capsys):
    with pytest.raises(NotebookError, match="no notebook"):
        execute(tmp_path / "absent.ipynb", tmp_path / "out.ipynb")
    (tmp_path / "bad.ipynb").write_text("{")
    with pytest.raises(NotebookError, match="not a notebook"):
        execute(tmp_path / "bad.ipynb", tmp_path / "out.ipynb")
    assert main(["run", str(tmp_path / "absent.ipynb")]) == 1
    assert capsys.readouterr().err.startswith("sloth-nb run: There is no notebook")


@pytest.mark.skipif(sys.platform == "win32", reason="a console's Ctrl-C can't be sent to one process there")
def test_ctrl_c_interrupts_the_running_cell_and_the_notebook_is_written(write, tmp_path):
    path = write(new_code_cell("import time\nprint('waiting', flush=True)\ntime.sleep(120)"))
    output = tmp_path / "out.ipynb"
    command = [sys.executable, "-m", "sloth_nb.cli", "run", str(path), "-o", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while "waiting" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1 and "Interrupting the running cell" in said
    assert "Code cell 1 failed: KeyboardInterrupt" in errors
    assert nbformat.read(output, 4).cells[0].outputs[-1].ename == "KeyboardInterrupt"
