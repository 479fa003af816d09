"""Colab's kernel has ipywidgets 7.7.1: the same tests again, over that version."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.overlay import overlay

COLAB = ("ipywidgets==7.7.1", "ipython_genutils==0.2.0")


@pytest.mark.slow
@pytest.mark.skipif(version("ipywidgets").startswith("7."), reason="this is that run")
def test_the_panels_work_on_ipywidgets_7_too(tmp_path: Path, repository: Path):
    folder = tmp_path / "overlay"
    overlay(folder, COLAB)
    path = [str(folder), *(str(repository / part) for part in (".", "kernels", "widgets"))]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(path)}
    which = [sys.executable, "-c", "import ipywidgets; print(ipywidgets.__version__)"]
    assert subprocess.run(which, env=env, capture_output=True, text=True).stdout.strip() == "7.7.1"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(repository / "tests" / "widgets"),
    ]
    done = subprocess.run(command, env=env, cwd=repository, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
