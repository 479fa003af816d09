"""This machine: its cards and how much of them is free, its RAM. Looks without importing torch."""

import csv
import io
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from sloth_nb.catalog import GPU, cpu
from sloth_nb.catalog import gpu as gpu_named
from sloth_nb.catalog.gpus import akin
from sloth_nb.errors import HardwareError

__all__ = ["Device", "cards_of_the_driver", "device_for", "devices", "free_ram", "ram_gib"]

GIB = 2**30
# Where Linux says what a container may take, takes, and of what (control groups, versions 2 and 1).
CONTAINERS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


CACHED = ("inactive_file", "active_file")


@dataclass(frozen=True)
class Device:
    """A card of this machine: what it is, and how many bytes are free now."""

    gpu: GPU
    free: int


def devices() -> list[Device]:
    """The NVIDIA cards that a run may use; empty when there are none, no driver answers, or torch, where it is
    loaded, can't use them."""
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        if not torch.cuda.is_available():
            return []
        return [_from_torch(torch, index) for index in range(torch.cuda.device_count())]
    return cards_of_the_driver()


def ram_gib() -> float:
    """The machine's RAM, or what a container may take of it where that is less."""
    total = psutil.virtual_memory().total
    for limit, _, _ in CONTAINERS:
        try:
            total = min(total, int(Path(limit).read_text("ascii")))
        except (OSError, ValueError):  # no such container, or "max"
            continue
    return total / GIB


def free_ram() -> int:
    """Bytes of RAM that could be taken now, within the limit of a container where there is one."""
    free = psutil.virtual_memory().available
    for files in CONTAINERS:
        try:
            limit, used, stat = (Path(file).read_text("ascii") for file in files)
            # Pages of files that were read (a checkpoint, say) count as used, and go when memory is wanted.
            cached = [int(size) for name, size in map(str.split, stat.splitlines()) if name in CACHED]
            free = min(free, max(int(limit) - int(used) + sum(cached), 0))
        except (OSError, ValueError, IndexError):  # no such container, or "max"
            continue
    return free


def device_for(name: "str | GPU | None") -> GPU:
    """The card of this name, with its own memory; None is this machine's first card, or its CPU.

    Raises:
        HardwareError: no card of that name is known.
    """
    if name is None:
        found = devices()
        return found[0].gpu if found else cpu(round(ram_gib(), 1))
    if isinstance(name, str) and name.strip().lower() == "cpu":
        return cpu(round(ram_gib(), 1))
    return gpu_named(name)


def _known(name: str, total: int, capability: float) -> GPU:
    """What the driver calls it, with the memory that is really there, and the speeds of the table's card of that name.

    A card that the table lacks gets the speeds of the one most like it, or modest ones, and keeps its own name; so
    does one of another size than the table's (an RTX 3060 with 8 GB).
    """
    memory_gib = total / GIB
    try:
        row = gpu_named(name)
        called = row.name if abs(memory_gib / row.memory_gib - 1) < 0.1 else name
    except HardwareError:
        row = akin(name) or GPU(name, 0, capability, bandwidth=500, tflops_16=50, host_gbps=12)
        called = name
    return replace(row, name=called, memory_gib=memory_gib, capability=capability, aliases=())


def _from_torch(torch, index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    capability = properties.major + properties.minor / 10
    return Device(_known(properties.name, total, capability), free)


def cards_of_the_driver() -> list[Device]:
    """The NVIDIA cards that the driver knows, whether or not torch can use them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = "--query-gpu=name,memory.total,memory.free,compute_cap"
    try:
        answer = subprocess.run(
            [tool, query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for row in csv.reader(io.StringIO(answer.stdout)):
        try:
            name, total, free, capability = (cell.strip() for cell in row)
            found.append(Device(_known(name, int(total) << 20, float(capability)), int(free) << 20))
        except ValueError:  # a driver that answers "[N/A]"
            continue
    return found
