"""Lessons in a real JupyterLab, with widgets and pictures: solved, and with the gaps left open."""

import json
import re

import nbformat
import pytest

from sloth_nb.authoring.cells import as_text
from sloth_nb.authoring.lessons import lesson, lesson_notebook
from tests.browser.accessibility import UNNAMED, WEAK

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PICTURES = ".jp-OutputArea-output.js-plotly-plot, .jp-OutputArea-output :is(svg.sloth-plot, .sloth-tokens)"
ERRORS = "[data-mime-type='application/vnd.jupyter.stderr']"  # warnings and exceptions


def opened(notebook, number, version):
    content = nbformat.reads(as_text(lesson_notebook(lesson(number), version)), as_version=4)
    book = notebook(content, viewport=(1280, 6500))
    book.context.set_default_timeout(300_000)
    return book


@pytest.mark.parametrize("number", [2, 5])
def test_a_solved_lesson_runs_with_its_pictures_and_widgets(number, notebook, shot):
    book = opened(notebook, number, "teacher")
    book.run()
    assert book.page.locator(ERRORS).count() == 0, book.outputs()
    book.page.wait_for_function("selector => document.querySelectorAll(selector).length >= 4", arg=PICTURES)
    book.page.wait_for_timeout(1000)
    for segment in book.page.locator(".js-plotly-plot .point path").all():
        fill = re.search(r'fill: (?:url\("#(.+?)"\)|rgb)', segment.get_attribute("style"))
        assert not fill[1] or book.page.locator(f"pattern#{fill[1]} rect").count(), (
            "strokes on nothing can't be seen"
        )
    for theme in ("light", "dark"):
        book.theme(theme)
        book.page.wait_for_timeout(1000)  # plotly draws anew; two themes at once trip it
        shot(book, f"lesson-{number}-{theme}")
        assert book.page.evaluate(UNNAMED) == []
        assert book.page.evaluate(WEAK) == []
    saved = book.save()
    assert "widgets" not in saved.metadata and len(json.dumps(saved)) < 1_000_000


def test_run_all_stops_at_the_first_exercise_that_is_not_solved(notebook):
    book = opened(notebook, 2, "student")
    book.run()
    assert book.raised() == ["NotImplementedError"]
