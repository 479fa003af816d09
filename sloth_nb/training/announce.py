"""Tells the notebook where a run's events are, so that whoever shows or executes it can follow along."""

import contextlib
import sys
from pathlib import Path

from sloth_nb.training.run import Run

__all__ = ["RUN_MIME", "announce"]

RUN_MIME = "application/vnd.sloth-nb.run+json"  # {"path": the event file, "offset": its size before this run}


def announce(run: Run) -> None:
    """In a notebook's kernel, name the run's event file; ``sloth-nb run`` shows its progress from there."""
    if "IPython" not in sys.modules:
        return
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None or not hasattr(get_ipython(), "kernel"):
        return
    path = run.path
    with contextlib.suppress(ValueError):
        path = path.resolve().relative_to(Path.cwd())
    offset = run.path.stat().st_size if run.path.is_file() else 0
    about = {"path": path.as_posix(), "offset": offset}
    display({RUN_MIME: about, "text/plain": f"Events of this run: {path.as_posix()}"}, raw=True)
