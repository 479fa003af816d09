"""The package as a whole: light, independent, usable without Triton, and no folder that shadows another package."""

import ast
import subprocess
import sys
from pathlib import Path

import sloth_nb_kernels

PACKAGE = Path(sloth_nb_kernels.__file__).parent


def test_it_imports_torch_and_triton_only():
    allowed = {"torch", "triton"} | set(sys.stdlib_module_names)
    for file in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            assert {name.split(".")[0] for name in names} <= allowed, file.name


def test_no_kernel_multiplies_matrices_itself():
    """Triton makes no tensor-core code below 8.0: products belong to cuBLAS."""
    for file in PACKAGE.glob("*.py"):
        assert "tl.dot" not in file.read_text(encoding="utf-8"), file.name


def test_without_triton_everything_runs_in_torch():
    script = """
import sys
sys.modules["triton"] = None
import torch, sloth_nb_kernels as K
assert not K.HAS_TRITON and not K.runs_triton(torch.ones(1))
x = torch.randn(4, 8, requires_grad=True)
loss = K.linear_cross_entropy(K.rms_norm(K.glu(x, x), torch.ones(8), 1e-5), torch.randn(9, 8), torch.arange(4))
loss.backward()
assert x.grad.isfinite().all()
"""
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_the_folder_above_is_no_package():
    """An importable top-level ``kernels`` breaks transformers' model imports."""
    assert not (PACKAGE.parent / "__init__.py").exists()


def test_every_public_name_exists_and_says_what_it_is():
    for name in sloth_nb_kernels.__all__:
        value = getattr(sloth_nb_kernels, name)
        assert not callable(value) or value.__doc__, name
