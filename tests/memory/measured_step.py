"""A few real steps of one work on the card, and what they took of it: tests/memory/measure.py's unit."""

from __future__ import annotations

import gc
import time
from typing import Any

from real_models import inputs_of, install, optimiser_of

from sloth_nb import catalog
from sloth_nb.memory import Work

__all__ = ["Card", "measured"]

# A timed step that is shorter than this is worth a second look.
SHORT = 1.0


class Card:
    """The card's counters, and a cap on what the process may take of it."""

    device = "cuda"

    def __init__(self) -> None:
        import torch

        self.name = torch.cuda.get_device_name()
        self.gpu = catalog.gpu(self.name)
        self.total = torch.cuda.mem_get_info()[1]

    def libraries(self) -> dict[str, str]:
        import bitsandbytes
        import peft
        import torch
        import transformers

        return {m.__name__: str(m.__version__) for m in (torch, transformers, peft, bitsandbytes)}

    def clear(self) -> None:
        """Everything that nobody holds any more goes back; peaks begin anew.

        Pinned host memory stays cached for the next work while there is plenty, because pinning is slow.
        """
        import psutil
        import torch

        gc.collect()
        torch.cuda.synchronize()
        torch._C._cuda_clearCublasWorkspaces()  # or a capture's would stay for all that comes after it
        torch.cuda.empty_cache()
        if psutil.virtual_memory().percent > 60:
            torch.accelerator.memory.empty_host_cache()
        torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        import torch

        torch.cuda.synchronize()

    def context(self) -> int:
        """What the driver holds outside of torch's count, on a card that nobody else uses."""
        import torch

        return self.total - torch.cuda.mem_get_info()[0] - torch.cuda.memory_reserved()

    def largest_budget(self) -> int:
        return self.total - (256 << 20)

    def cap(self, budget: int) -> None:
        """From here on the process gets no more than this of the card, its driver's own included."""
        import torch

        torch.cuda.set_per_process_memory_fraction((budget - self.context()) / self.total)

    def uncap(self) -> None:
        import torch

        torch.cuda.set_per_process_memory_fraction(1.0)

    def phase(self) -> int:
        """The allocated peak since the last call."""
        import torch

        peak = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        return peak

    def now(self) -> tuple[int, int]:
        """(allocated, peak of reserved since the last phase)."""
        import torch

        return torch.cuda.memory_allocated(), torch.cuda.max_memory_reserved()


class _Peaks:
    """Peaks of the phases of a step, and of all steps together."""

    def __init__(self, card: Card):
        self.card, self.reserved, self.allocated = card, 0, 0
        self.phases: dict[str, int] = {}

    def mark(self, name: str) -> None:
        self.reserved = max(self.reserved, self.card.now()[1])
        self.phases[name] = self.card.phase()
        self.allocated = max(self.allocated, self.phases[name])


def measured(model: Any, work: Work, card: Card, *, timed: int = 1) -> dict[str, Any]:
    """The peaks over a warm-up step and up to ``timed`` more, fewer when they are long. Out of memory is an answer.

    A captured shape is one that has come three times, so that a work with graphs takes two steps more.
    """
    import torch

    optimiser, batch = optimiser_of(work, model), inputs_of(work)
    engine = install(model, work, card.gpu)
    card.clear()
    peaks, seconds, loss, standing, error = _Peaks(card), [], None, 0, ""
    try:
        for step in range(1 + timed + (2 if work.graphs else 0)):
            if step > 1 and not work.graphs and sum(seconds[1:]) > SHORT:
                break
            standing = card.now()[0]
            begun = time.perf_counter()
            for _ in range(work.accumulation):
                output = model(**batch)
                peaks.mark("forward")
                output.loss.backward()
                peaks.mark("backward")
                loss = output.loss.detach()
                del output
            optimiser.step()
            peaks.mark("optimiser step")
            optimiser.zero_grad(set_to_none=True)
            card.wait()
            seconds.append(time.perf_counter() - begun)
    except torch.OutOfMemoryError as short:
        error = str(short).splitlines()[0]
        peaks.mark("out of memory")
    context = card.context()
    found: dict[str, Any] = {
        "ok": not error,
        "loss": None if loss is None else round(float(loss), 4),
        "seconds": round(min(seconds[1:]), 4) if len(seconds) > 1 else None,
        "allocated": peaks.allocated,
        "reserved": peaks.reserved,
        "context": context,
        "standing": standing,
        "phases": peaks.phases,
        "pinned": engine.pinned_bytes,
    }
    if error:
        found["error"] = error
    if work.graphs:
        found["captured"] = len(engine.captured.replays)
    engine.captured.replays.clear()
    optimiser.zero_grad(set_to_none=True)
    return found
