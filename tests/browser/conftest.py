"""One JupyterLab and one Chromium for all browser tests; a page that would leave 127.0.0.1 fails."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.lab import Notebook, Server, chromium, serving

SHOTS = os.environ.get("SLOTH_NB_SHOTS")  # a folder for screenshots, for whoever wants to look


def _need(reason: str) -> None:
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{reason}; under CI the browser tests must run")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for module in ("jupyterlab", "playwright"):
        if importlib.util.find_spec(module) is None:
            _need(f"{module} is not installed")
    with serving(tmp_path_factory.mktemp("lab")) as running:
        shutil.copy(Path(__file__).with_name("synthetic.py"), running.root)
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if (path := chromium()) is None:
        _need("no Chrome or Chromium found (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=path, headless=True, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield running
        running.close()


@pytest.fixture
def notebook(
    server: Server, browser: Any, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Notebook]]:
    """notebook(cells) -> an open Notebook; its requests and page errors are checked when the test ends."""
    opened: list[Notebook] = []

    def make(cells: Any, viewport: tuple[int, int] = (1280, 1500)) -> Notebook:
        name = f"{request.node.name.replace('[', '-').replace(']', '')}.ipynb"
        server.write(name, cells)
        opened.append(Notebook(server, browser, name, viewport))
        return opened[-1]

    yield make
    for book in opened:
        if SHOTS:
            book.page.screenshot(path=f"{SHOTS}/{book.name.removesuffix('.ipynb')}-end.png")
        book.close()
        assert not book.foreign, f"the page wanted to leave this machine: {book.foreign}"
        assert not book.errors, book.errors


@pytest.fixture
def shot(request: pytest.FixtureRequest) -> Callable[[Notebook, str], None]:
    """shot(notebook, name): a screenshot into $SLOTH_NB_SHOTS, if that is set."""

    def take(book: Notebook, name: str) -> None:
        if SHOTS:
            book.page.wait_for_timeout(300)
            book.page.screenshot(path=f"{SHOTS}/{name}.png")

    return take
