"""The quickstart with a beginner's mistakes: each is answered in one sentence, and the kernel goes on."""

import re
import time

import nbformat
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SETTINGS, LOAD, DATA, ASK, ADAPTER, TRAINER = range(6)  # the code cells of the quickstart

FILES = """
from pathlib import Path
turn = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
Path("broken.jsonl").write_text(turn + '\\n{"messages": [{"role": "user", "content": "cut\\n')
Path("odd.jsonl").write_text('{"alpha": "x", "beta": 3}\\n')
"""

# What the user changes in the trainer's cell, and what the answer says.
MISTAKES = {
    "missing": ("train_dataset=train,", 'train_dataset="tranes.jsonl",', "There is no file tranes.jsonl"),
    "broken": ("train_dataset=train,", 'train_dataset="broken.jsonl",', "line 2 of broken.jsonl is not a JSON row"),
    "columns": ("train_dataset=train,", 'train_dataset="odd.jsonl",', "from the columns 'alpha', 'beta'"),
    "all cut": ("max_steps=max_steps,", "max_steps=max_steps, max_length=8,", "Not one of the 120 rows"),
    "misspelt": ("seed=3407", "sede=3407", "SFTConfig has no argument 'sede'; did you mean 'seed'?"),
}  # fmt: skip


class Hand:
    """A person at the notebook: edits a code cell, runs it, reads what it says."""

    def __init__(self, book, content):
        self.page = book.page
        self.cells = [i for i, cell in enumerate(content.cells) if cell.cell_type == "code"]

    def edit(self, cell, old, new):
        changed = self.page.evaluate(
            "([i, old, now]) => { const m = jupyterapp.shell.currentWidget.content.widgets[i].model.sharedModel;"
            " const before = m.source; m.setSource(before.replace(old, now)); return m.source !== before; }",
            [self.cells[cell], old, new],
        )
        assert changed, f"the quickstart has no {old!r} in its cell any more"

    def start(self, cell):
        self.page.evaluate(
            "i => { jupyterapp.shell.currentWidget.content.activeCellIndex = i;"
            " window.__cell = jupyterapp.commands.execute('notebook:run-cell'); }",
            self.cells[cell],
        )

    def end(self, cell):
        self.page.evaluate("async () => { await window.__cell; }")
        outputs = self.page.locator(".jp-Notebook .jp-Cell").nth(self.cells[cell])
        return "\n".join(outputs.locator(".jp-OutputArea-output").all_inner_texts()).strip()

    def run(self, cell):
        self.start(cell)
        return self.end(cell)


def is_one_answer(text):
    return "Traceback" not in text and text.count("\n") <= 3 and re.match(r"\w+(Error|Interrupted)?: ", text)


def test_each_mistake_is_answered_in_one_sentence_and_mended_in_place(notebook, repository, shot):
    quickstart = nbformat.read(repository / "notebooks" / "quickstart.ipynb", as_version=4)
    quickstart.cells[0] = nbformat.v4.new_markdown_cell("")
    quickstart.cells.append(nbformat.v4.new_code_cell(FILES))
    book = notebook(quickstart, viewport=(1280, 3000))
    hand = Hand(book, quickstart)
    hand.run(-1)

    hand.edit(SETTINGS, "smollm2-135m-instruct", "smollm2-135m-instrukt")
    hand.run(SETTINGS)
    said = hand.run(LOAD)
    assert is_one_answer(said) and "Nearest in the catalogue: 'smollm2-135m-instruct'" in said
    hand.edit(SETTINGS, "smollm2-135m-instrukt", "smollm2-135m-instruct")
    hand.run(SETTINGS)

    hand.start(LOAD)
    time.sleep(0.7)
    book.command("kernelmenu:interrupt")
    said = hand.end(LOAD)
    assert "million parameters" in said or (is_one_answer(said.splitlines()[-1]) and "Interrupted" in said), (
        said
    )

    for cell in (LOAD, DATA, ADAPTER):
        assert "Error" not in hand.run(cell)
    for right, wrong, answer in MISTAKES.values():
        hand.edit(TRAINER, right, wrong)
        said = hand.run(TRAINER)
        assert is_one_answer(said) and answer in said, said
        hand.edit(TRAINER, wrong, right)
    shot(book, "wrong-inputs")
    assert "120 read, 120 kept" in hand.run(TRAINER)
