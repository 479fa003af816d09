"""TrainingMonitor in a real JupyterLab."""

import re

import pytest

pytestmark = pytest.mark.browser

LIMIT = 60_000
PLOT = ".sloth-panel svg.sloth-plot"


def step(book):
    """The step that the live plot names to a screen reader."""
    return int(re.search(r"step (\d+)", book.page.get_attribute(PLOT, "aria-label") or "step 0")[1])


def wait_for_step(book, least):
    """Waits until the live plot names this step or a later one."""
    book.page.wait_for_function(
        "least => /step (\\d+)/.exec(document.querySelector('.sloth-panel svg').ariaLabel)?.[1] >= least",
        arg=least,
    )


def test_a_run_is_watched_stopped_and_kept(notebook, shot):
    book = notebook(
        [
            "from synthetic import begin\nfrom sloth_nb import TrainingMonitor\nrun = begin(steps=3000)",
            "TrainingMonitor(run)",
            "run.wait()",
        ]
    )
    book.run(wait=False)
    page = book.page
    page.wait_for_selector(PLOT)
    wait_for_step(book, 1)
    first = step(book)
    wait_for_step(book, first + 5)  # the plot grows while training runs
    assert page.locator(".sloth-snapshot").is_hidden(), "one view of the run, not two"
    shot(book, "monitor-light")
    book.theme("dark")
    shot(book, "monitor-dark")
    ground = page.evaluate("getComputedStyle(document.querySelector('.sloth-panel')).backgroundColor")
    assert sum(map(int, re.findall(r"\d+", ground)[:3])) < 200, "dark where JupyterLab is dark"
    page.get_by_role("button", name="Stop and save").click()
    page.wait_for_selector(".sloth-card .sloth-badge:has-text('stopped')")
    book.finish()
    assert page.locator(".sloth-panel").count() == 0, "nothing is left to press"
    page.wait_for_selector(".js-plotly-plot .main-svg", state="attached")
    shot(book, "monitor-stopped-dark")
    book.theme("light")
    shot(book, "monitor-stopped-light")
    card, figure = [output["data"] for output in book.save().cells[1].outputs]
    assert "■ stopped" in card["text/html"] and "widget" not in str(list(card))
    assert {"application/vnd.plotly.v1+json", "image/svg+xml", "text/plain"} <= set(figure)
    assert "text/html" not in figure, "GitHub would show that instead, without its SVG"
    largest = max(size for _, size, _ in book.frames)
    assert largest < LIMIT


def test_a_reloaded_page_shows_the_run_going_on_and_a_dead_kernel_its_last_picture(notebook, shot):
    book = notebook(
        [
            "from synthetic import begin\nfrom sloth_nb import TrainingMonitor\n"
            "run = begin(steps=20_000, pause=0.02, folder='reload')\nmonitor = TrainingMonitor(run)\nmonitor",
            "import time\ntime.sleep(1); monitor.flush()",
        ]
    )
    book.run()
    page = book.page
    wait_for_step(book, 1)
    book.save()
    before = step(book)
    book.open(reset=False)
    page.wait_for_selector(PLOT)
    wait_for_step(book, before + 5)  # the widget of the reloaded page goes on
    page.get_by_role("button", name="Stop", exact=True).click()
    page.wait_for_selector(".sloth-panel .sloth-badge:has-text('stopped')")
    assert page.get_by_role("button", name="Stop and save").is_disabled()

    page.evaluate("async () => { await window.jupyterapp.serviceManager.sessions.shutdownAll(); }")
    book.open(reset=False)
    page.locator(".sloth-snapshot svg.sloth-plot").wait_for()
    page.wait_for_timeout(1000)
    shot(book, "reopened")
    shown = page.locator(".jp-Notebook").inner_text()
    assert "widget" not in shown.lower(), "no message about a widget that can't be"
    assert page.locator(".sloth-snapshot .sloth-badge").inner_text() == "● training"
