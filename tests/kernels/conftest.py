"""The kernels' tests run three ways: plain torch on the CPU, the Triton kernels under Triton's interpreter,
and CUDA.

Triton decides when it is imported whether it interprets, so the interpreter has processes of its own:
test_interpreter.py starts one for each file. `pytest -m gpu tests/kernels` runs the same tests on a GPU.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
NAMES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        here = [pytest.param("cpu", id="interpreter" if INTERPRETED else "torch")]
        gpu = [] if INTERPRETED else [pytest.param("cuda", id="cuda", marks=pytest.mark.gpu)]
        metafunc.parametrize("device", here + gpu)
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", DTYPES, ids=NAMES.get)


def pytest_collection_modifyitems(config, items):
    if INTERPRETED:  # what runs no kernel has run already
        chosen = [item for item in items if "device" in item.fixturenames]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(chosen)])
        items[:] = chosen


@pytest.fixture
def randn(device):
    """randn(*shape, dtype): the same numbers on every device."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape, dtype=torch.float32, scale=1.0):
        return (torch.randn(*shape, generator=generator) * scale).to(dtype).to(device)

    return make


@pytest.fixture
def assert_close():
    """assert_close(actual, expected, scale): within what rounding allows, element by element.

    expected is float64. The bound is (roundings * ulp(dtype) + slack * ulp(fp32)) * scale, with

    - scale the sum of the absolute values of the terms that make the element up (|expected| when it is a
      product), so that cancellation is neither hidden nor held against a kernel;
    - roundings how often the kernel rounds to the dtype on the way (half a unit in the last place each; a
      whole one under the interpreter, which truncates bf16);
    - slack the fp32 operations in between, sums included.
    """

    def check(actual, expected, scale=None, *, roundings=1, slack=8.0):
        assert actual.shape == expected.shape
        info = torch.finfo(actual.dtype)
        scale = expected.abs() if scale is None else scale
        ulp = (roundings * (1.0 if INTERPRETED else 0.51) * info.eps) if info.bits < 32 else 0.0
        bound = (ulp + slack * 2.0**-23) * scale + info.smallest_normal * info.eps
        error = (actual.double() - expected).abs()
        # not (error <= bound): so that a NaN fails too
        wrong = ~(error <= bound)
        if wrong.any():
            worst = (error / bound).nan_to_num(float("inf")).max().item()
            raise AssertionError(
                f"{int(wrong.sum())} of {wrong.numel()} elements, up to {worst:.3g} times the bound"
            )

    return check
