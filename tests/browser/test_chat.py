"""Chat in a real JupyterLab: a tiny random model for the words, a scripted one for hostile words."""

import pytest

from tests.browser.accessibility import UNNAMED

pytestmark = pytest.mark.browser

TURN = ".sloth-turn"

# A model that says hostile things, and needs no time to do so.
SCRIPTED = """
import sys, types

EVIL = '<script>window.pwned = 1</script><img src=x onerror="window.pwned = 2"></td></table><h1>big</h1>'
inference = types.ModuleType("sloth_nb.inference")
inference.stream = lambda *args, **options: iter([EVIL[:4], EVIL[4:]])
sys.modules["sloth_nb.inference"] = inference

class Model:
    config = types.SimpleNamespace(_name_or_path=EVIL)
    disable_adapter = lambda self: None

"""


def test_a_turn_is_streamed_stopped_and_kept(notebook, tiny_llama_path, shot):
    book = notebook(
        [
            "from sloth_nb import Chat, FastLanguageModel\n"
            f"model, tokenizer = FastLanguageModel.from_pretrained({str(tiny_llama_path)!r})\n"
            "model = FastLanguageModel.get_peft_model(model, r=4)",
            "chat = Chat(model, tokenizer, temperature=1.0, max_new_tokens=200)\nchat",
            "answer = chat.ask('Who are you?')\nlen(answer) > 0",
        ]
    )
    page = book.page
    book.run()
    assert "True" in page.locator(".jp-OutputArea-executeResult").last.inner_text(), book.outputs()
    assert page.locator(TURN).filter(visible=True).count() == 1
    page.get_by_label("Message").fill("And now?")
    page.get_by_label("Message").press("Enter")
    grown = page.locator(".sloth-panel .sloth-turn").nth(1)
    grown.locator(".sloth-cursor").wait_for()
    first = len(grown.inner_text())
    page.wait_for_function(
        "first => document.querySelectorAll('.sloth-panel .sloth-turn')[1].innerText.length > first + 5",
        arg=first,
    )
    shot(book, "chat-streaming")
    grown.locator(".sloth-cursor").wait_for(state="detached")
    assert page.get_by_label("Message").input_value() == ""
    page.get_by_role("button", name="Settings").click()
    page.get_by_label("Length").fill("2000")
    page.get_by_label("Length").press("Enter")
    page.get_by_label("Message").fill("Tell me everything.")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Stop").click()
    page.locator(".sloth-panel .sloth-turn").nth(2).get_by_text("Stopped.").wait_for()
    shot(book, "chat-stopped")
    book.theme("dark")
    shot(book, "chat-dark")
    page.wait_for_timeout(200)
    live, kept = [output["data"] for output in book.save().cells[1].outputs]
    assert "Who are you?" in kept["text/html"] and "Stopped." in kept["text/plain"]
    assert "Who are you?" not in str(live)


def test_everything_can_be_done_with_the_keyboard(notebook):
    book = notebook([SCRIPTED + "from sloth_nb import Chat", "Chat(Model(), 'tokenizer')"])
    page = book.page
    book.run()
    page.get_by_label("Message").focus()
    reached = []
    for _ in range(20):
        reached.append(page.evaluate(_NAME_OF_FOCUS))
        if reached[-1] == "Settings":
            page.keyboard.press("Enter")
            page.get_by_label("System prompt").wait_for()
        page.keyboard.press("Tab")
    for name in ("Message", "Send", "Clear", "Settings", "System prompt", "Temperature", "Top-p", "Length"):
        assert name in reached, reached
    assert any("Compare" in name for name in reached)
    unnamed = page.evaluate(UNNAMED)
    assert not unnamed, f"controls without a name: {unnamed}"


_NAME_OF_FOCUS = """() => {
    const at = document.activeElement;
    return at.labels?.[0]?.innerText.trim() || at.innerText?.trim() || at.ariaLabel || at.title;
}"""


def test_hostile_text_stays_text(notebook, shot):
    book = notebook(
        [
            SCRIPTED + "from sloth_nb import Chat, TrainingMonitor",
            "chat = Chat(Model(), 'tokenizer', system=EVIL)\nchat",
            "print(len(chat.ask(EVIL)))",
            "from pathlib import Path\nfrom sloth_nb.training.events import RUN_FILE, RunEvent\n"
            "from sloth_nb.training.run import Run\n"
            "run = Run(Path('evil') / RUN_FILE); run.begin()\n"
            "run.emit(RunEvent('started', 0, data={'model': EVIL, 'max_steps': 3}))\n"
            "run.emit(RunEvent('warning', 1, data={'message': EVIL}))\n"
            "run.emit(RunEvent('step', 1, data={'loss': 1.0}))",
            "TrainingMonitor(run)",
            "run.emit(RunEvent('failed', 2, data={'message': EVIL})); run.end('failed')",
        ],
        viewport=(1280, 2200),
    )
    book.run()
    page = book.page
    page.wait_for_selector(".js-plotly-plot .main-svg", state="attached")
    shot(book, "hostile")
    assert page.evaluate("window.pwned") is None
    within = ".jp-OutputArea-output"
    assert page.locator(f"{within} :is(script, img[src=x], h1)").count() == 0
    assert page.locator(f"{within} .sloth-turn").first.inner_text().count("<script>window.pwned") == 3
    assert "<script>window.pwned" in page.locator(f"{within} .sloth-notices").inner_text()
