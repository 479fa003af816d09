"""A real JupyterLab in a headless Chromium: one server for all tests, one notebook each.

``window.jupyterapp`` (served with --expose-app-in-browser) runs cells reliably; a click on the Run menu is
lost when the session is not ready yet.
"""

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 60_000  # milliseconds that any one wait may take on a busy machine

# Neither news nor updates are asked for; nothing is autosaved behind a test's back.
_SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True,
    },
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
}  # fmt: skip

_READY = """async () => {
    const nap = ms => new Promise(resolve => setTimeout(resolve, ms));
    while (!window.jupyterapp) await nap(50);
    const app = window.jupyterapp;
    await app.restored;
    let panel;
    while (!(panel = app.shell.currentWidget) || !panel.sessionContext) await nap(50);
    await panel.context.ready;
    await panel.revealed;
    await panel.sessionContext.ready;
    await panel.sessionContext.session.kernel.info;
}"""


def chromium() -> str | None:
    """Debian's chromium, another Chrome or Chromium of this machine, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    found = os.environ.get("CHROME") or next(filter(None, map(shutil.which, names)), None)
    mac = Path("/Applications/Google Chrome.app/Contents/MacOS/Google Chrome")
    return found or (str(mac) if mac.exists() else None)


class Server:
    """A JupyterLab on 127.0.0.1 whose settings, kernels and files all lie in one folder, with our extension."""

    def __init__(self, root: Path, extension: Path = REPOSITORY / "widgets" / "labextension"):
        self.extension = extension
        self.root = root / "notebooks"
        self.root.mkdir()
        self.token = secrets.token_hex(16)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        settings = root / "config" / "labconfig" / "default_setting_overrides.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(_SETTINGS))
        self.log = root / "lab.log"
        self.process = self._start(root)

    def _start(self, root: Path) -> subprocess.Popen[bytes]:
        folders = {
            "JUPYTER_CONFIG_DIR": "config", "JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime",
            "IPYTHONDIR": "ipython", "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
        }  # fmt: skip
        path = [str(REPOSITORY / part) for part in (".", "kernels", "widgets")]
        env = os.environ | {name: str(root / folder) for name, folder in folders.items()}
        # As the wheel's shared data would lie (pyproject.toml), without installing it.
        shutil.copytree(self.extension, root / "share" / "labextensions" / "sloth-nb")
        (root / "etc" / "jupyter_server_config.d").mkdir(parents=True)
        shutil.copy(
            self.extension / "server.json", root / "etc" / "jupyter_server_config.d" / "sloth_nb.json"
        )
        env |= {"JUPYTER_PATH": str(root / "share"), "JUPYTER_CONFIG_PATH": str(root / "etc")}
        env["PYTHONPATH"] = os.pathsep.join([*path, env.get("PYTHONPATH", "")])
        command = [
            sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser",
            "--ip=127.0.0.1", f"--port={self.port}", "--ServerApp.port_retries=0",
            f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.root}",
            "--LabApp.extension_manager=readonly", "--LabApp.news_url=None",
        ]  # fmt: skip
        return subprocess.Popen(
            command, env=env, cwd=root, stdout=self.log.open("wb"), stderr=subprocess.STDOUT
        )

    def wait(self) -> None:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api?token={self.token}", timeout=1)
                return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError("JupyterLab does not answer:\n" + self.log.read_text())

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT if os.name == "posix" else signal.SIGTERM)
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def write(self, name: str, cells: list[str] | nbformat.NotebookNode) -> None:
        """Puts a notebook into the server's folder: of these code cells, or this one."""
        if isinstance(cells, list):
            cells = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
            cells.metadata["kernelspec"] = {
                "name": "python3",
                "display_name": "Python 3",
                "language": "python",
            }
        nbformat.write(cells, self.root / name)

    def url(self, name: str, reset: bool = True) -> str:
        return f"http://127.0.0.1:{self.port}/lab/tree/{name}?token={self.token}" + (
            "&reset" if reset else ""
        )


class Notebook:
    """A notebook open in the browser, and what the page asked for and received."""

    def __init__(self, server: Server, browser: Any, name: str, viewport: tuple[int, int]):
        self.server, self.name = server, name
        self.foreign: list[str] = []  # requests that wanted to leave this machine
        self.errors: list[str] = []  # exceptions of the page
        self.frames: list[tuple[float, int, str]] = []  # time, bytes and beginning of what the kernel sent
        self.context = browser.new_context(viewport={"width": viewport[0], "height": viewport[1]})
        self.context.set_default_timeout(PATIENCE)
        self.context.route("**/*", self._only_here)
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", self._no_dialog)
        self.page.on("websocket", lambda socket: socket.on("framereceived", self._received))
        self.open()

    def _only_here(self, route: Any) -> None:
        url = route.request.url
        if url.startswith((f"http://127.0.0.1:{self.server.port}/", "data:", "blob:")):
            route.continue_()
        else:
            self.foreign.append(url)
            route.abort()

    def _no_dialog(self, dialog: Any) -> None:
        if dialog.type != "beforeunload":
            self.errors.append(f"a dialog opened: {dialog.message}")
        dialog.accept()

    def _received(self, frame: str | bytes) -> None:
        text = frame if isinstance(frame, str) else frame.decode("utf-8", "replace")
        self.frames.append((time.monotonic(), len(frame), text[:3000]))

    def open(self, reset: bool = True) -> None:
        """Opens the page, or reloads it as a person's F5 would (``reset=False`` keeps the workspace)."""
        self.page.goto(self.server.url(self.name, reset))
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.page.evaluate(_READY)

    def run(self, wait: bool = True) -> None:
        """Runs all cells; ``wait`` until the last has ended."""
        self.page.evaluate(
            "() => { window.__run = window.jupyterapp.commands.execute('notebook:run-all-cells'); }"
        )
        if wait:
            self.finish()

    def finish(self) -> None:
        self.page.evaluate("async () => { await window.__run; }")

    def command(self, name: str, **arguments: Any) -> None:
        self.page.evaluate(
            "async ([name, args]) => { await window.jupyterapp.commands.execute(name, args); }",
            [name, arguments],
        )

    def theme(self, name: str) -> None:
        """``light`` or ``dark``."""
        self.command("apputils:change-theme", theme=f"JupyterLab {name.title()}")
        self.page.wait_for_function(
            "want => document.body.dataset.jpThemeLight === want", arg="true" if name == "light" else "false"
        )

    def save(self) -> nbformat.NotebookNode:
        """Saves as Ctrl-S does, and reads what lies on disk then."""
        self.command("docmanager:save")
        return nbformat.read(self.server.root / self.name, as_version=4)

    def outputs(self) -> str:
        """All text that the cells show, for messages of failing tests."""
        return "\n---\n".join(self.page.locator(".jp-OutputArea-output").all_inner_texts())

    def raised(self) -> list[str]:
        """The names of the exceptions that cells have ended with."""
        return self.page.evaluate(
            """() => window.jupyterapp.shell.currentWidget.content.widgets
                .filter(cell => cell.model.type === 'code')
                .flatMap(cell => cell.model.outputs.toJSON())
                .filter(output => output.output_type === 'error').map(output => output.ename)"""
        )

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.page.evaluate(
                "async () => { await window.jupyterapp.serviceManager.sessions.shutdownAll(); }"
            )
        self.context.close()


@contextlib.contextmanager
def serving(root: Path, **options: Any) -> Iterator[Server]:
    server = Server(root, **options)
    try:
        server.wait()
        yield server
    finally:
        server.stop()
