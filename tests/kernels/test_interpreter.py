"""Every kernel under Triton's interpreter: each file of this room once more, in a process with
TRITON_INTERPRET=1."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent
ROOT = HERE.parents[1]
USES_A_DEVICE = re.compile(r"def test_\w+\([^)]*\bdevice\b")
FILES = sorted(path.name for path in HERE.glob("test_*.py") if USES_A_DEVICE.search(path.read_text()))


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="already inside the interpreter's process"
)
@pytest.mark.parametrize("file", FILES)
def test_the_kernels_pass_under_the_interpreter(file):
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    env |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"tests/kernels/{file}"]
    run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-6000:] + run.stderr[-2000:]
