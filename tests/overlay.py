"""Other versions of some packages, in a folder that goes before all others on a process' path."""

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

__all__ = ["overlay"]


def overlay(folder: Path, packages: Iterable[str]) -> None:
    """Installs these packages, without what they need, into the folder; skips the test where no registry is."""
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder)]
    done = subprocess.run([*install, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"can't be installed here: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
