"""Memory that a step frees: kept while an engine trains on a CPU, then given back."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from sloth_nb.engine import heap
from sloth_nb.models.install import install

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")

_FAULTS = """
import ctypes, resource
from sloth_nb.engine.heap import FreedMemory, give_back_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def faults():
    "Of a step: blocks of 4, 8 and 80 MB, written and freed."
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    sizes = [4 << 20, 8 << 20, 80 << 20]
    blocks = [ctypes.memset(libc.malloc(size), 1, size) for size in sizes]
    for block in blocks:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

faults()
"""


def _said(code: str, **environment: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    return subprocess.run(
        [sys.executable, "-c", _FAULTS + code],
        env={**inherited, **environment}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_a_step_finds_the_pages_that_the_last_one_freed():
    before, first, second, third, after = map(
        int,
        _said(
            "before = faults(); one, two = FreedMemory(), FreedMemory(); first, second = faults(), faults()\n"
            "del one; third = faults(); del two; faults(); print(before, first, second, third, faults())"
        ).split(),
    )
    pages = 92 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert min(before, after) > 0.8 * pages  # 80 MB are mapped anew each time
    assert max(second, third) < 0.02 * pages and first < 1.1 * pages


def test_what_is_kept_goes_back_on_demand():
    held, kept, given_back = map(
        int,
        _said(
            "held = FreedMemory(); base = resident(); faults(); kept = resident() - base\n"
            "give_back_freed_memory(); print(base, kept, resident() - base)"
        ).split(),
    )
    assert kept > 80 << 20 and given_back < 8 << 20, held


@pytest.mark.parametrize(
    "setting",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}],
)
def test_settings_of_the_environment_are_left_alone(setting):
    assert int(_said("held = FreedMemory(); faults(); print(faults())", **setting)) > 10_000


def test_an_engine_keeps_it_from_its_first_training_pass_until_it_is_undone(tiny_llama):
    model, ids, before = tiny_llama, torch.arange(8)[None], heap._holders
    report = install(model, "sloth")
    with torch.no_grad():
        model(input_ids=ids, labels=ids)
    assert heap._holders == before and "freed memory" not in str(report)
    model(input_ids=ids, labels=ids).loss.backward()
    model(input_ids=ids, labels=ids).loss.backward()
    assert heap._holders == before + 1
    assert ("freed memory" in str(report)) is report.engine.keeps_freed_memory
    report.undo()
    assert heap._holders == before and "freed memory" not in str(report)
