"""What the tests of generated notebooks share."""

import os

import pytest


@pytest.fixture
def kernels_find_the_package(monkeypatch, repository):
    """A kernel that a test starts imports this very checkout."""
    paths = [repository, repository / "kernels", repository / "widgets"]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
