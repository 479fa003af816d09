"""What a reader without a kernel gets: by nbconvert (nbviewer, Kaggle) and by GitHub, as far as is known."""

import base64
import re
from html.parser import HTMLParser

import nbformat
import pytest
from sloth_nb_widgets import TrainingMonitor

from sloth_nb.training.events import RUN_FILE, RunEvent
from sloth_nb.training.run import Run

# What GitHub shows of an output is the first of these it finds; of HTML it drops styles, classes and SVG.
GITHUB = ("text/html", "image/svg+xml", "image/png", "text/plain")


@pytest.fixture
def saved(front_end, tmp_path):
    """A notebook whose cell watched a run from its start to its end."""
    run = Run(tmp_path / RUN_FILE)
    TrainingMonitor(run)._ipython_display_()
    run.begin()
    run.emit(RunEvent("started", 0, data={"max_steps": 40, "model": "tiny"}))
    for n in range(1, 41):
        run.emit(RunEvent("step", n, data={"loss": 3 / n, "learning_rate": 1e-4}))
        if n % 10 == 0:
            run.emit(RunEvent("eval", n, data={"eval_loss": 3.5 / n}))
    run.emit(RunEvent("finished", 40))
    run.end("finished")
    outputs = [
        nbformat.v4.new_output("display_data", data=place[-1]) for place in front_end.displays.values()
    ]
    cell = nbformat.v4.new_code_cell("TrainingMonitor(run)", outputs=outputs, execution_count=1)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbformat.validate(notebook)
    return notebook


def test_nbconvert_shows_summary_and_curves_without_a_script(saved):
    nbconvert = pytest.importorskip("nbconvert")
    page, _ = nbconvert.HTMLExporter(template_name="basic").from_notebook_node(saved)
    assert "✔ finished" in page and "held-out loss" in page
    picture = re.search(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    curves = base64.b64decode(picture[1]).decode()
    assert "Loss" in curves and curves.count('class="line') >= 3
    assert 'role="img" aria-label="Training curves: loss 0.075' in curves
    assert "<script" not in page.lower().split("✔ finished", 1)[1]


def test_github_shows_a_sentence_a_table_and_a_picture(saved):
    summary, figure = [output["data"] for output in saved.cells[0].outputs]
    first = [next(mime for mime in GITHUB if mime in data) for data in (summary, figure)]
    assert first == ["text/html", "image/svg+xml"]
    words = " ".join(Words(summary["text/html"]).text.split())
    assert "40 steps in" in words and "loss 3 → 0.075; held-out loss 0.35 → 0.0875" in words
    assert (
        figure["image/svg+xml"].startswith("<svg")
        and 'xmlns="http://www.w3.org/2000/svg"' in figure["image/svg+xml"]
    )
    assert "metadata" not in saved or "widgets" not in saved.metadata


class Words(HTMLParser):
    """The words of a page, without what stands in its style sheets."""

    def __init__(self, source: str):
        super().__init__()
        self.text, self._style = "", False
        self.feed(source)

    def handle_starttag(self, tag, attrs):
        self._style = tag == "style"

    def handle_endtag(self, tag):
        self._style = False
        self.text += " "

    def handle_data(self, data):
        if not self._style:
            self.text += data
