"""What this device can do: how fast it computes and talks to its host, measured once, in milliseconds, when a plan
first asks; and how much of its memory nobody has taken."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch

__all__ = ["DeviceSpeed", "speed_of", "unreserved"]


@dataclass(frozen=True)
class DeviceSpeed:
    """Measured rates of one CUDA device."""

    flops: float
    """Half-precision matrix products, operations a second."""
    link: float
    """Device to pinned host memory, bytes a second."""


@lru_cache(maxsize=16)
def speed_of(index: int) -> DeviceSpeed:
    """Times products and copies, 10 ms on a fast card. Waits for the device: never inside a capture."""
    with torch.cuda.device(index), torch.no_grad():
        dtype = torch.bfloat16 if torch.cuda.get_device_capability(index) >= (8, 0) else torch.float16
        a = torch.randn(4096, 4096, device="cuda", dtype=dtype)
        _seconds(lambda: torch.mm(a, a), 20)  # clocks rise
        seconds = _seconds(lambda: torch.mm(a, a), 20)
        data = torch.empty(16 << 20, dtype=torch.uint8, device="cuda")
        host = torch.empty(data.numel(), dtype=torch.uint8, pin_memory=True)
        copying = _seconds(lambda: host.copy_(data, non_blocking=True))
    return DeviceSpeed(2 * 4096**3 / seconds, data.numel() / copying)


def _seconds(run: Callable[[], object], repeats: int = 5) -> float:
    run()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats


def unreserved(device: torch.device) -> int:
    """Bytes that torch's allocator could still get of the device, within the share that this process may take."""
    free, total = torch.cuda.mem_get_info(device)
    share = torch.cuda.get_per_process_memory_fraction(device)
    return max(0, min(free, int(share * total) - torch.cuda.memory_reserved(device)))
