"""ModelPicker and VramEstimator in a real JupyterLab, by keyboard alone, light and dark."""

import re

import pytest

from sloth_nb import estimate

pytestmark = pytest.mark.browser

HEAD = ".sloth-panel .sloth-head"


def ground(page):
    """How bright the panel's ground is, 0 to 765."""
    colour = page.evaluate("getComputedStyle(document.querySelector('.sloth-panel')).backgroundColor")
    return sum(map(int, re.findall(r"\d+", colour)[:3]))


def test_a_model_is_picked_by_keyboard(notebook, shot):
    book = notebook(
        [
            "from sloth_nb import ModelPicker\npicker = ModelPicker(gpu='T4')\npicker",
            "print('value:', picker.value)",
        ]
    )
    book.run(wait=False)
    page = book.page
    search = page.locator(".sloth-panel").get_by_label("Search")
    search.wait_for()
    shot(book, "picker-light")
    search.focus()
    page.keyboard.type("qwen3 apache")
    page.wait_for_function("() => document.querySelectorAll('.sloth-models option').length < 30")
    page.keyboard.press("Enter")
    page.wait_for_function(f"() => document.querySelector('{HEAD} b').textContent === 'qwen3-0.6b'")
    page.get_by_role("button", name="Next").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Space")
    page.wait_for_function(f"() => document.querySelector('{HEAD} b').textContent === 'qwen3-1.7b'")
    chosen = "document.querySelector('.sloth-models select').selectedOptions[0].textContent"
    page.wait_for_function(f"() => {chosen}.includes('qwen3-1.7b')")
    page.get_by_label("Models").focus()
    page.keyboard.press("End")
    page.wait_for_function(f"() => document.querySelector('{HEAD} b').textContent.startsWith('qwen3-30b')")
    shot(book, "picker-chosen-light")
    book.theme("dark")
    assert ground(page) < 200, "dark where JupyterLab is dark"
    shot(book, "picker-chosen-dark")


def test_a_slider_by_keyboard_moves_the_bar(notebook, shot):
    cells = (
        "from sloth_nb import VramEstimator, estimate\nest = VramEstimator('qwen3-14b', gpu='T4')\nest",
        "estimate('llama-3.1-8b', gpu='RTX 4090', length=8192, policy='keep')",
    )
    book = notebook(list(cells))
    book.theme("light")
    book.run(wait=False)
    page = book.page
    page.wait_for_selector(".sloth-panel svg.sloth-plot")
    shot(book, "estimator-light")
    handle = page.locator(".sloth-panel .noUi-handle").nth(1)
    handle.focus()
    for _ in range(40):  # eighths of a doubling: five times double
        page.keyboard.press("ArrowRight")
    length = 2048 * 2**5
    box = page.get_by_label("Length")
    page.wait_for_function(f"box => box.value === '{length}'", arg=box.element_handle())
    total = f"{estimate('qwen3-14b', gpu='T4', length=length).total_gb:.2f} GB"
    page.wait_for_function(f"() => document.querySelector('{HEAD} b').textContent === '{total}'")
    page.wait_for_selector(f"{HEAD} .sloth-badge.bad")
    assert page.locator(".sloth-panel ol li").count() >= 1, "what to change is offered"
    shot(book, "estimator-too-long-light")
    book.theme("dark")
    assert ground(page) < 200
    shot(book, "estimator-too-long-dark")
    box.fill("1024")
    box.press("Enter")
    page.wait_for_selector(f"{HEAD} .sloth-badge.good")
    book.finish()
    (card,) = [o["data"] for o in book.save().cells[1].outputs]
    assert "<svg" in card["text/html"] and "RTX 4090" in card["text/plain"]
