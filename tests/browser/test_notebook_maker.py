"""NotebookMaker in a real JupyterLab: chosen by keyboard, saved by its button, and what it saved opens."""

import nbformat
import pytest

pytestmark = pytest.mark.browser

TITLE = ".sloth-panel .sloth-head b"


def test_a_notebook_is_made_by_keyboard_and_opens(notebook, server, shot):
    made = "model='qwen3-4b', platform='jupyter', path='made.ipynb'"
    book = notebook([f"from sloth_nb import NotebookMaker\nmaker = NotebookMaker({made})\nmaker"])
    book.theme("light")
    book.run(wait=False)
    page = book.page
    page.wait_for_function(f"() => document.querySelector('{TITLE}')?.textContent.includes('Qwen3-4B')")
    shot(book, "maker-light")
    model = page.get_by_label("Model", exact=True)
    model.fill("whisper-tiny")
    model.press("Enter")
    page.wait_for_selector(".sloth-panel .sloth-status.bad")
    shot(book, "maker-refused-light")
    model.fill("qwen3-14b")
    model.press("Enter")
    page.wait_for_function(f"() => document.querySelector('{TITLE}')?.textContent.includes('Qwen3-14B')")
    page.get_by_label("Task").focus()
    page.keyboard.type("Tool")
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => document.querySelector('{TITLE}')?.textContent.includes('tools')")
    page.get_by_role("button", name="Save", exact=True).focus()
    page.keyboard.press("Enter")
    page.get_by_text("Saved made.ipynb.").wait_for()
    book.theme("dark")
    shot(book, "maker-saved-dark")
    made = nbformat.read(server.root / "made.ipynb", as_version=4)
    nbformat.validate(made)
    assert "tools" in made.cells[0].source and book.foreign == []
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:open', {path: 'made.ipynb'})")
    page.get_by_role("heading", name="Teach Qwen3-14B to use your tools").wait_for()
    shot(book, "maker-made-dark")
