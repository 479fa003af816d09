"""Which host shows this notebook, and what it can show. The one place that asks."""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["HOSTS", "Host", "current", "detect"]


@dataclass(frozen=True)
class Host:
    """What a front end can show.

    ``name``: lab, notebook, colab, kaggle, vscode, voila; headless (a kernel that nobody watches: ``sloth-nb
    run``, papermill, nbconvert, a batch run); script (no kernel at all).
    """

    name: str
    widgets: bool  # draws ipywidgets and sends their clicks back
    displays: bool  # keeps HTML outputs, and updates them in place
    log: bool = False  # only what is printed tells how things go


HOSTS = {
    **{name: Host(name, True, True) for name in ("lab", "notebook", "colab", "kaggle", "vscode", "voila")},
    "headless": Host("headless", False, True, log=True),
    "script": Host("script", False, False, log=True),
}

_RUNNERS = ("papermill", "nbconvert", "nbclient", "jupyter-execute", "nbmake")


def current() -> Host:
    """The host of this process, asked anew each time (a kernel's front end is known only once it runs)."""
    return detect(os.environ, _in_kernel(), "google.colab" in sys.modules, _parent_command)


def detect(
    environ: Mapping[str, str], in_kernel: bool, colab_module: bool, parent_command: Callable[[], str]
) -> Host:
    """The host that these facts speak for. ``SLOTH_NB_HOST`` in the environment overrules them.

    Raises:
        ValueError: ``SLOTH_NB_HOST`` names no host.
    """
    wish = environ.get("SLOTH_NB_HOST")
    if wish and wish not in HOSTS:
        raise ValueError(f"SLOTH_NB_HOST={wish!r} is no host; one of: {', '.join(HOSTS)}")
    if wish and in_kernel:  # a script that a notebook starts inherits the wish, and is a script
        return HOSTS[wish]
    return HOSTS[_name(environ, in_kernel, colab_module, parent_command)]


def _name(
    environ: Mapping[str, str], in_kernel: bool, colab_module: bool, parent_command: Callable[[], str]
) -> str:
    if not in_kernel:
        return "script"
    if environ.get("KAGGLE_KERNEL_RUN_TYPE", "").lower() == "batch":
        return "headless"
    if "KAGGLE_KERNEL_RUN_TYPE" in environ or "KAGGLE_URL_BASE" in environ:
        return "kaggle"
    if "COLAB_NOTEBOOK_ID" in environ or "COLAB_RELEASE_TAG" in environ or colab_module:
        return "colab"
    if environ.get("SERVER_SOFTWARE", "").startswith("voila"):
        return "voila"
    # jupyter_server names the session; a Lab started in VS Code's terminal has VSCODE_* and is still a Lab.
    served = "JPY_SESSION_NAME" in environ
    if not served and any(name in environ for name in ("VSCODE_PID", "VSCODE_CWD", "VSCODE_IPC_HOOK_CLI")):
        return "vscode"
    command = parent_command()
    if not served and any(runner in command for runner in _RUNNERS):
        return "headless"
    return "notebook" if "notebook" in command and "lab" not in command else "lab"


def _in_kernel() -> bool:
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = get_ipython() if get_ipython else None
    return getattr(shell, "kernel", None) is not None


def _parent_command() -> str:
    """The program that started this kernel, without its folders; empty where that can't be seen."""
    try:
        import psutil

        parent = psutil.Process(int(os.environ.get("JPY_PARENT_PID") or os.getppid()))
        # The first words only: a folder or notebook named "notebook" further on says nothing.
        return " ".join(Path(word).name for word in parent.cmdline()[:4])
    except Exception:  # no psutil, no right to look, parent gone: then nothing is known
        return ""
