"""The quickstart, opened in a real JupyterLab and run from its first to its last cell, with a person's clicks."""

import re
import time

import nbformat
import pytest

from tests.browser.accessibility import UNNAMED, WEAK

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LIMIT = 60_000  # bytes of a frame
PLOT = ".sloth-panel svg.sloth-plot"


def test_the_quickstart_is_watched_stopped_and_talked_to(notebook, repository, shot):
    quickstart = nbformat.read(repository / "notebooks" / "quickstart.ipynb", as_version=4)
    book = notebook(quickstart, viewport=(1280, 6000))
    page = book.page
    book.run(wait=False)

    page.wait_for_selector(PLOT)
    seen = [_wait_for_step(page, 1), _wait_for_step(page, 6)]
    drawn = page.locator(f"{PLOT} path.line").first.get_attribute("d")
    seen.append(_wait_for_step(page, seen[-1] + 2))
    assert page.locator(f"{PLOT} path.line").first.get_attribute("d") != drawn, "the plot grows"
    assert page.evaluate(UNNAMED) == []
    shot(book, "quickstart-training")
    page.get_by_role("button", name="Stop and save").click()
    clicked = time.monotonic()
    page.wait_for_selector(".sloth-card .sloth-badge:has-text('stopped')")
    card = page.locator(".sloth-card", has=page.locator(".sloth-badge:has-text('stopped')"))
    stopped = int(re.search(r"([\d,]+) of", card.locator("p").first.inner_text())[1])
    assert stopped <= seen[-1] + 2 + (time.monotonic() - clicked), "it ended within a step or so"

    book.finish()
    assert (
        page.locator(".jp-OutputArea-output [data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    )
    page.get_by_label("Message", exact=True).fill("What is your name?")
    page.get_by_label("Message", exact=True).press("Enter")
    turn = page.locator(".sloth-panel .sloth-turn").last
    turn.locator(".sloth-cursor").wait_for()
    turn.locator(".sloth-cursor").wait_for(state="detached")
    assert "What is your name?" in turn.inner_text()
    page.wait_for_timeout(500)
    shot(book, "quickstart-light")
    assert page.evaluate(WEAK) == []
    book.theme("dark")
    shot(book, "quickstart-dark")
    assert page.evaluate(WEAK) == []

    saved = book.save()
    assert all("widgets" not in part.metadata for part in (saved, *saved.cells))
    kept = "".join(str(output.get("data", "")) for cell in saved.cells for output in cell.get("outputs", []))
    assert "■ stopped" in kept and "image/svg+xml" in kept and "What is your name?" in kept
    largest = max(size for _, size, _ in book.frames)
    assert largest < LIMIT, f"{largest} bytes in one frame"


def _wait_for_step(page, least):
    """Waits until the plot names this step or a later one, and returns which."""
    page.wait_for_function(
        "least => Number(/step (\\d+)/.exec(document.querySelector('.sloth-panel svg').ariaLabel)?.[1]) >= least",
        arg=least,
        timeout=120_000,
    )
    return int(re.search(r"step (\d+)", page.get_attribute(PLOT, "aria-label"))[1])
