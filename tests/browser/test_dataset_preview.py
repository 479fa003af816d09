"""DatasetPreview in a real JupyterLab: the three views of a row, light and dark, and hostile rows."""

import re

import pytest

pytestmark = pytest.mark.browser

OPEN = (
    "from transformers import AutoTokenizer\n"
    "from sloth_nb import DatasetPreview\n"
    "from sloth_nb.catalog.embedded import default_model_path\n"
    "from sloth_nb.data import example\n"
    "tokenizer = AutoTokenizer.from_pretrained(default_model_path())\n"
)
PANEL = ".sloth-panel"


def show(page, view):
    page.locator(PANEL).get_by_label("Show").select_option(view)


def test_a_row_is_seen_as_conversation_as_text_and_as_tokens(notebook, shot):
    book = notebook([OPEN, "preview = DatasetPreview(example('quickstart', 'train'), tokenizer)\npreview"])
    book.theme("light")
    book.run(wait=False)
    page = book.page
    page.wait_for_selector(f"{PANEL} .sloth-talk")
    assert page.locator(f"{PANEL} .sloth-rows tbody tr").count() == 10
    shot(book, "preview-conversation-light")

    show(page, "text")
    page.wait_for_selector(f"{PANEL} .sloth-written mark.sloth-learnt")
    assert page.inner_text(f"{PANEL} .sloth-written mark").startswith("⟦Slowly now.")
    shot(book, "preview-text-light")

    show(page, "tokens")
    page.wait_for_selector(f"{PANEL} .sloth-tokens .sloth-token")
    page.get_by_label("Token ids").check()
    page.wait_for_selector(f"{PANEL} .sloth-tokens ruby rt")
    shot(book, "preview-tokens-light")
    learnt = page.evaluate(
        "() => { const m = document.querySelector('.sloth-tokens mark .sloth-token');"
        " const s = getComputedStyle(m); return [s.textDecorationLine, s.fontWeight]; }"
    )
    assert learnt == ["underline", "600"], "told by a stroke and by weight, not by colour alone"

    book.theme("dark")
    shot(book, "preview-tokens-dark")
    show(page, "report")
    page.wait_for_selector(f"{PANEL} .sloth-report")
    assert "120 read, 120 kept" in page.inner_text(f"{PANEL} .sloth-report")
    shot(book, "preview-report-dark")


def test_rows_are_walked_and_found_by_keyboard_alone(notebook):
    book = notebook([OPEN, "preview = DatasetPreview(example('quickstart', 'train'))\npreview"])
    book.run(wait=False)
    page = book.page
    page.wait_for_selector(f"{PANEL} .sloth-rows")
    page.get_by_role("button", name="Page ▸").focus()
    page.keyboard.press("Enter")
    page.wait_for_function("() => /▶ 11/.test(document.querySelector('.sloth-rows tr.chosen').textContent)")
    find = page.locator(PANEL).get_by_label("Find")
    find.focus()
    page.keyboard.type("hibiscus")
    page.keyboard.press("Enter")
    page.wait_for_function(
        "() => /rows found in 120 of 120/.test(document.querySelector('.sloth-panel').textContent)"
    )
    jump = page.locator(PANEL).get_by_label("Row", exact=True)
    jump.fill("2")
    jump.press("Enter")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.sloth-rows tbody tr')][1].className === 'chosen'"
    )
    assert "hibiscus" in page.inner_text(f"{PANEL} .sloth-talk")


def test_the_template_changes_live_and_the_saved_notebook_keeps_the_view(notebook, shot):
    book = notebook(
        [OPEN, "preview = DatasetPreview(example('quickstart', 'train'), tokenizer, show='text')\npreview"]
    )
    book.run(wait=False)
    page = book.page
    page.wait_for_selector(f"{PANEL} .sloth-written")
    page.locator(PANEL).get_by_label("Template").select_option("zephyr")
    page.wait_for_function(
        "() => /<\\|assistant\\|>/.test(document.querySelector('.sloth-written').innerText)"
    )
    shot(book, "preview-zephyr")
    page.wait_for_timeout(2500)  # the snapshot follows a second after the last change
    book.finish()
    outputs = book.save().cells[1].outputs
    html = next(o["data"]["text/html"] for o in outputs if "text/html" in o["data"])
    assert "&lt;|assistant|&gt;" in html and "chat_template=" in html


def test_hostile_rows_stay_text(notebook, shot):
    rows = (
        "bad = '<script>window.hacked = 1</script><img src=x onerror=\"window.hacked = 1\"></mark></div>\\u202e'\n"
        "rows = [{'question': bad, 'answer': bad}]\n"
        "preview = DatasetPreview(rows, tokenizer)\npreview"
    )
    book = notebook([OPEN, rows])
    book.run(wait=False)
    page = book.page
    page.wait_for_selector(f"{PANEL} .sloth-talk")
    for view, place in (("text", ".sloth-written"), ("tokens", ".sloth-tokens")):
        show(page, view)
        page.wait_for_selector(f"{PANEL} {place}")
        assert re.search(r"script>\s*window|window", page.inner_text(f"{PANEL} {place}"))
    shot(book, "preview-hostile")
    wide = page.evaluate(
        "() => ['.sloth-written', '.sloth-scroll'].map(s => document.querySelector(s).getBoundingClientRect().right"
        " - document.querySelector('.sloth-panel').getBoundingClientRect().right)"
    )
    assert max(wide) <= 0, "nothing sticks out of the panel"
    assert page.evaluate("window.hacked") is None
    assert page.locator(f"{PANEL} img, {PANEL} script").count() == 0
