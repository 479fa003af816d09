"""Every panel in one page: each shows itself, each control has a name, and both themes can be read."""

import pytest

from tests.browser.accessibility import UNNAMED, WEAK

pytestmark = pytest.mark.browser

PANELS = (
    "from synthetic import begin\nfrom sloth_nb.data import example\n"
    "from sloth_nb_widgets import DatasetPreview, ModelPicker, TrainingMonitor, VramEstimator",
    "ModelPicker()",
    "VramEstimator()",
    "DatasetPreview(example('quickstart')[0])",
    "TrainingMonitor(begin(steps=100_000, folder='panels'))",
)


def test_every_panel_shows_itself_names_its_controls_and_can_be_read(notebook, shot):
    book = notebook(list(PANELS), viewport=(1280, 3200))
    book.run()
    page = book.page
    page.locator(".sloth-tile b").filter(has_text="GB").wait_for()
    panels = page.locator(".sloth-panel")
    assert panels.count() == len(PANELS) - 1, book.outputs()
    assert page.evaluate(UNNAMED) == [], "controls without a name"
    shot(book, "panels-light")
    assert page.evaluate(WEAK) == [], "hard to read on light"
    book.theme("dark")
    shot(book, "panels-dark")
    assert page.evaluate(WEAK) == [], "hard to read on dark"
