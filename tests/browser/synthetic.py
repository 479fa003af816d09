"""A run that looks like training and takes as long as one likes, for the notebooks of the browser tests."""

import math
import random
import threading
import time
from pathlib import Path

from sloth_nb.training.events import RUN_FILE, RunEvent
from sloth_nb.training.run import Run


def begin(steps: int = 2000, pause: float = 0.01, folder: str = "outputs") -> Run:
    """A run in a thread that obeys its stop request within one step."""
    run = Run(Path(folder) / RUN_FILE)
    run.begin()
    threading.Thread(target=_train, args=(run, steps, pause), daemon=True).start()
    return run


def _train(run: Run, steps: int, pause: float) -> None:
    run.emit(
        RunEvent(
            "started",
            0,
            data={"max_steps": steps, "model": "SmolLM2-135M-Instruct", "predicted_bytes": 2.4 * 2**30},
        )
    )
    for n in range(1, steps + 1):
        time.sleep(pause)
        run.emit(RunEvent("step", n, data=_numbers(n, steps)))
        if n % max(1, steps // 20) == 0:
            run.emit(RunEvent("eval", n, data={"eval_loss": _loss(n, steps) + 0.08}))
        if run.stop_request is not None:
            saved = str(run.path.parent / f"checkpoint-{n}") if run.stop_request.save else None
            if saved:
                run.emit(RunEvent("checkpoint", n, data={"path": saved}))
            run.emit(RunEvent("stopped", n, data={"reason": "stopped on request", "saved": saved}))
            run.end("stopped")
            return
    run.emit(RunEvent("finished", steps))
    run.end("finished")


def _loss(n: int, steps: int) -> float:
    return 2.2 * math.exp(-4 * n / steps) + 0.8


def _numbers(n: int, steps: int) -> dict[str, float]:
    noise = random.Random(n).gauss(0, 0.3)
    return {
        "loss": _loss(n, steps) * (1 + 0.12 * noise),
        "learning_rate": 2e-4 * min(1.0, 20 * n / steps) * (1 - n / steps),
        "grad_norm": 1.1 + 0.5 * noise,
        "tokens_per_second": 1200 + 90 * noise,
        "memory_bytes": (2.1 - 0.4 * math.exp(-20 * n / steps)) * 2**30,
    }
