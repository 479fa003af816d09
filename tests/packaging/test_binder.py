"""Binder's files: the tested versions, nothing for a GPU, and everything that sloth_nb asks for."""

import os
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture
def wanted(repository):
    lines = (repository / "binder" / "requirements.txt").read_text("utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith(("#", "--"))]
    return {normal(need.name): need for need in found}


def test_its_versions_are_those_that_everything_is_tested_with(wanted, repository):
    lines = (repository / "constraints.txt").read_text("utf-8").splitlines()
    tested = {
        normal(name): version for name, _, version in (line.partition("==") for line in lines) if version
    }
    pinned = {name: str(need.specifier) for name, need in wanted.items() if "==" in str(need.specifier)}
    assert len(pinned) > 12
    assert pinned == {name: f"=={tested[name]}" for name in pinned}
    assert all(need.specifier.contains(tested[name]) for name, need in wanted.items())


def test_nothing_is_for_a_gpu(wanted):
    assert not {"triton", "bitsandbytes"} & set(wanted)
    assert not any(name.startswith("nvidia") for name in wanted)


def test_nothing_that_sloth_nb_needs_is_forgotten(wanted, repository):
    """It is installed with --no-deps, so that pip can't bring in what isn't wanted."""
    project = tomllib.loads((repository / "pyproject.toml").read_text("utf-8"))["project"]
    needs = map(Requirement, [*project["dependencies"], *project["optional-dependencies"]["demo"]])
    assert {normal(need.name) for need in needs} <= set(wanted)
    assert "--no-deps" in (repository / "binder" / "postBuild").read_text("utf-8")


@pytest.mark.skipif(os.name != "posix", reason="Binder's scripts are for bash")
def test_its_scripts_can_be_run_and_start_passes_its_command_on(repository):
    for name in ("postBuild", "start"):
        script = repository / "binder" / name
        assert os.access(script, os.X_OK)
        assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    show = "import os; print(os.environ['OMP_NUM_THREADS'], os.environ['HF_HUB_OFFLINE'])"
    clean = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [repository / "binder" / "start", sys.executable, "-c", show]
    done = subprocess.run(command, capture_output=True, text=True, env=clean, check=True)
    assert done.stdout.split() == ["2", "1"]


def test_its_badge_opens_the_first_lesson(repository):
    link = re.search(
        r"mybinder\.org/v2/gh/\S+?urlpath=lab/tree/([^)\s]+)", (repository / "README.md").read_text("utf-8")
    )
    assert link and (repository / link[1]).is_file()
