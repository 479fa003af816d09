"""Executes a notebook from its first to its last cell, telling what it does while it does it.

Headings, output as it comes, timings and the kernel's peak memory; the result is a notebook that any host
shows.
"""

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionComplete, CellExecutionError, DeadKernelError

from sloth_nb.authoring.memory_watch import MemoryWatch
from sloth_nb.authoring.parameters import with_parameters
from sloth_nb.errors import NotebookError

__all__ = ["Executed", "execute"]

Say = Callable[[str], None]

_KERNEL = {
    "SLOTH_NB_HOST": "headless",  # widgets say their part in words
    # Threads of torch that wait shall sleep: on a machine with other work, spinning made a training step take
    # minutes instead of seconds (measured: 2 cores, load 5).
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass
class Executed:
    """What an execution came to."""

    notebook: Any
    path: Path
    seconds: float
    peak_memory_bytes: int
    cell_seconds: dict[int, float] = field(default_factory=dict)


def execute(
    notebook: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    parameters: Mapping[str, Any] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    memory_limit: float | None = None,
    say: Say = print,
) -> Executed:
    """Execute a notebook with this very Python, and write it with its outputs.

    Args:
        notebook: an .ipynb file; it is not changed.
        output: where the executed notebook goes, also when a cell fails.
        parameters: values for names that the cell tagged ``parameters`` assigns.
        cwd: the kernel's working folder; by default that of ``output``, so that what the notebook writes lies
            beside it.
        memory_limit: GB (of 2³⁰ bytes, as everywhere here) of resident memory after which the kernel is
            killed, as Binder does at 2.
        say: called with every line of progress.

    Raises:
        NotebookError: no such notebook or parameter, a cell that failed (which, under which heading, and
        why),
            or a kernel that died.
    """
    notebook, output = Path(notebook), Path(output)
    content = with_parameters(_read(notebook), parameters or {})
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.parent if cwd is None else Path(cwd)
    if not folder.is_dir():
        raise NotebookError(f"{folder} is not a folder to work in.")
    client = _Client(content, say, folder, memory_limit)
    say(f"{notebook.name}: {sum(cell.cell_type == 'code' for cell in content.cells)} code cells")
    start = time.perf_counter()
    try:
        client.execute(env=_KERNEL | os.environ)
    except CellExecutionError as error:
        raise NotebookError(f"{client.where()} failed: {_reason(error)}\n  See {output}.") from error
    except DeadKernelError as error:
        peak = client.memory.peak_bytes / 2**30
        why = "the system may have ended it for want of memory"
        if memory_limit is not None and peak > memory_limit:
            why = f"it was ended at the limit of {memory_limit:g} GB"
        raise NotebookError(
            f"{client.where()}: the kernel died (it had used up to {peak:.2f} GB; {why}).\n  See {output}."
        ) from error
    finally:
        client.memory.stop()
        content.metadata.pop("widgets", None)  # GitHub doesn't show a notebook that has them
        nbformat.write(content, output)
    seconds = time.perf_counter() - start
    return Executed(content, output, seconds, client.memory.peak_bytes, client.cell_seconds)


def _read(path: Path) -> Any:
    try:
        content = nbformat.read(path, as_version=4)
        nbformat.validate(content)
    except FileNotFoundError:
        raise NotebookError(f"There is no notebook {path}.") from None
    except (OSError, ValueError, nbformat.ValidationError) as error:
        raise NotebookError(f"{path} is not a notebook: {str(error).splitlines()[0]}") from error
    return content


def _reason(error: CellExecutionError) -> str:
    return f"{error.ename}: {_plain(str(error.evalue))}"


class _Client(NotebookClient):
    """nbclient, saying what happens, and keeping what background threads send to earlier cells."""

    def __init__(self, content: Any, say: Say, folder: Path, memory_limit: float | None = None):
        super().__init__(
            content,
            timeout=None,
            store_widget_state=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
            on_notebook_start=self._began,
        )
        self.say = say
        self.memory = MemoryWatch(None if memory_limit is None else int(memory_limit * 2**30))
        self.cell_seconds: dict[int, float] = {}
        self._heading, self._number, self._unfinished = "", 0, ""
        self._cells_by_message: dict[str, int] = {}
        self._latest: dict[tuple[int, str], str] = {}  # text of outputs that were updated in place

    def where(self) -> str:
        """The cell that runs or ran last, as a person would look for it."""
        under = f" (under “{self._heading}”)" if self._heading else ""
        return f"Code cell {self._number}{under}"

    def create_kernel_manager(self) -> Any:
        """A kernel of this very Python, whatever else is installed under the name python3."""
        manager = super().create_kernel_manager()
        if manager.kernel_spec.language == "python":
            manager.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return manager

    async def _began(self, notebook: Any) -> None:
        process = getattr(getattr(self.km, "provisioner", None), "process", None)
        self.memory.start(getattr(process, "pid", None))
        with contextlib.suppress(RuntimeError):  # NotImplementedError on Windows is one
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupted)

    def _interrupted(self) -> None:
        """One Ctrl-C interrupts the cell that runs (a training saves and stops); the next ends all."""
        loop = asyncio.get_running_loop()
        loop.remove_signal_handler(signal.SIGINT)
        self.say("Interrupting the running cell; press Ctrl-C again to end.")
        self._interrupting = asyncio.ensure_future(self.km.interrupt_kernel())

    async def async_execute_cell(self, cell: Any, cell_index: int, **kwargs: Any) -> Any:
        if cell.cell_type == "markdown":
            for line in cell.source.splitlines():
                if line.startswith("#"):
                    self._heading = line.lstrip("#").strip()
                    self.say(f"\n{line}")
        if cell.cell_type != "code" or not cell.source.strip():
            return await super().async_execute_cell(cell, cell_index, **kwargs)
        self._number += 1
        self.say(f"[{self._number}] {_first_line(cell.source)}")
        start = time.perf_counter()
        try:
            return await super().async_execute_cell(cell, cell_index, **kwargs)
        finally:
            self.memory.look()
            for key in [key for key in self._latest if key[0] == cell_index]:
                self._write(self._latest.pop(key) + "\n")
            self._write("", end=True)
            self.cell_seconds[cell_index] = time.perf_counter() - start
            self.say(f"    {self.cell_seconds[cell_index]:.1f} s")

    async def _async_poll_output_msg(self, parent_msg_id: str, cell: Any, cell_index: int) -> None:
        """As nbclient's, which drops what a background thread sends to a cell that ran before."""
        self._cells_by_message[parent_msg_id] = cell_index
        while True:
            message = await self.kc.iopub_channel.get_msg(timeout=None)
            sender = message["parent_header"].get("msg_id")
            if sender == parent_msg_id:
                try:
                    self.process_message(message, cell, cell_index)
                except CellExecutionComplete:
                    return
            elif message["msg_type"] in _OUTPUTS and sender in self._cells_by_message:
                index = self._cells_by_message[sender]
                self.process_message(message, self.nb.cells[index], index)

    def _update_display_id(self, display_id: str, msg: dict[str, Any]) -> None:
        super()._update_display_id(display_id, msg)
        for index in self._display_id_map.get(display_id, {}):
            self._latest[index, display_id] = _text(msg["content"]["data"])

    def output(self, outs: Any, msg: dict[str, Any], display_id: str | None, cell_index: int) -> Any:
        content = msg["content"]
        if msg["msg_type"] == "stream":
            self._write(content["text"])
        elif msg["msg_type"] in ("display_data", "execute_result"):
            data = content["data"]
            if _WIDGET not in data:
                self._write(_text(data) + "\n")
        return super().output(outs, msg, display_id, cell_index)

    def _write(self, text: str, end: bool = False) -> None:
        """Say whole lines, indented; of a line that a bar drew over itself only the last state."""
        *lines, self._unfinished = (self._unfinished + _plain(text)).split("\n")
        if end and self._unfinished:
            lines, self._unfinished = [*lines, self._unfinished], ""
        for line in lines:
            last = line.rstrip("\r").rsplit("\r")[-1]
            self.say(f"    {last}")


_WIDGET = "application/vnd.jupyter.widget-view+json"
_OUTPUTS = {"stream", "display_data", "execute_result", "update_display_data"}
_CONTROLS = {code: None for code in range(32) if chr(code) not in "\n\r\t"} | {127: None}


def _plain(text: str) -> str:
    """Without control characters: a terminal must not obey what a model or a data set wrote."""
    return text.translate(_CONTROLS)


def _text(data: Mapping[str, Any]) -> str:
    text = data.get("text/plain", "")
    return "".join(text) if isinstance(text, list) else str(text)


def _first_line(source: str) -> str:
    line = next((line for line in source.splitlines() if line.strip()), "")
    return line if len(line) <= 90 else line[:89] + "…"
