"""The extension in a real JupyterLab: cards, dialog, a notebook run to its end, the course; and broken on purpose."""

import json
import shutil

import nbformat
import pytest

from tests.browser.lab import _READY, PATIENCE, REPOSITORY, Notebook, serving

pytestmark = pytest.mark.browser

STARTED = """async () => {
    while (!window.jupyterapp) await new Promise(resolve => setTimeout(resolve, 50));
    await window.jupyterapp.restored;
}"""
CARD = ".jp-LauncherCard[title^='{}']"


class Launcher(Notebook):
    """JupyterLab on its launcher."""

    def open(self, reset=True):
        self.page.goto(f"http://127.0.0.1:{self.server.port}/lab?reset&token={self.server.token}")
        self.page.evaluate(STARTED)
        self.page.wait_for_selector(".jp-Launcher")

    def opened(self):
        """Waits until a notebook is open with its kernel, and returns its path."""
        self.page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell")
        self.page.evaluate(_READY)
        return self.page.evaluate("() => window.jupyterapp.shell.currentWidget.context.path")


@pytest.fixture
def launcher(server, browser):
    opened = []

    def make(of=server):
        opened.append(Launcher(of, browser, "", (1280, 1100)))
        return opened[-1]

    yield make
    for one in opened:
        one.close()
        assert not one.foreign, f"the page wanted to leave this machine: {one.foreign}"


def test_a_card_leads_to_a_dialog_and_the_dialog_to_a_notebook(launcher, shot):
    lab = launcher()
    page = lab.page
    for theme in ("light", "dark"):
        lab.theme(theme)
        page.wait_for_selector(CARD.format("Choose a model"))
        shot(lab, f"launcher-{theme}")
    lab.theme("light")
    page.click(CARD.format("Choose a model"))
    dialog = page.locator(".jp-Dialog")
    dialog.get_by_label("Model", exact=True).select_option("smollm2-135m-instruct")
    tasks = dialog.get_by_label("What to do").locator("option").all_text_contents()
    assert len(tasks) >= 3
    shot(lab, "launcher-dialog")
    dialog.get_by_label("Model", exact=True).select_option(index=0)
    dialog.get_by_label("Model", exact=True).select_option("smollm2-135m-instruct")
    dialog.get_by_label("What to do").select_option("sft")
    dialog.get_by_role("button", name="Create").click()
    first = lab.opened()
    assert first.startswith("smollm2-135m-instruct-sft") and first.endswith(".ipynb")
    nbformat.validate(nbformat.read(lab.server.root / first, as_version=4))
    lab.command("sloth-nb:new-notebook", model="smollm2-135m-instruct", task="sft", platform="jupyter")
    page.wait_for_function(
        "first => window.jupyterapp.shell.currentWidget.context?.path !== first", arg=first
    )
    assert lab.opened() != first, "a notebook that is there is never written over"


def test_both_commands_are_in_the_palette(launcher):
    lab = launcher()
    lab.command("apputils:activate-command-palette")
    field = lab.page.locator(".lm-CommandPalette-input")
    for words in ("New fine-tuning notebook…", "Open the fine-tuning classroom"):
        field.fill(words)
        lab.page.wait_for_selector(f".lm-CommandPalette-itemLabel:has-text('{words}')")


def test_the_classroom_opens_and_keeps_a_students_work(launcher):
    lab = launcher()
    lab.page.click(CARD.format("Eight lessons"))
    assert lab.opened() == "classroom/1_what_a_model_is.ipynb"
    file = lab.server.root / "classroom" / "2_tokens_and_templates.ipynb"
    notebook = nbformat.read(file, as_version=4)
    notebook.cells[0].source = "my work"
    nbformat.write(notebook, file)
    lab.command("sloth-nb:classroom")
    assert nbformat.read(file, as_version=4).cells[0].source == "my work"


def test_what_can_not_be_is_said_in_a_dialog(launcher):
    lab = launcher()
    lab.page.evaluate(
        "() => { window.jupyterapp.commands.execute('sloth-nb:new-notebook', {model: 'qwen3-140b', task: 'sft'}); }"
    )
    dialog = lab.page.locator(".jp-Dialog")
    dialog.wait_for()
    assert "qwen3-14b" in dialog.inner_text(), "the nearest name"
    dialog.get_by_role("button").last.click()


@pytest.mark.slow
def test_from_the_launcher_card_to_the_end_of_the_notebook(launcher, shot):
    lab = launcher()
    lab.page.set_viewport_size({"width": 1280, "height": 4000})
    lab.command("sloth-nb:new-notebook", model="smollm2-135m-instruct", task="sft", platform="jupyter")
    path = lab.opened()
    # In miniature: the cell of parameters is followed by one with fewer steps, as papermill would put it.
    lab.page.evaluate(
        """async () => {
            const { model } = window.jupyterapp.shell.currentWidget.content;
            const cells = [...Array(model.cells.length).keys()].map(i => model.cells.get(i));
            const at = cells.findIndex(cell => (cell.getMetadata('tags') || []).includes('parameters'));
            model.sharedModel.insertCell(at + 1, {cell_type: 'code', source: 'max_steps = 3'});
        }"""
    )
    lab.page.context.set_default_timeout(10 * PATIENCE)
    lab.run()
    assert lab.raised() == []
    counts = lab.page.evaluate(
        """() => window.jupyterapp.shell.currentWidget.content.widgets
            .filter(cell => cell.model.type === 'code').map(cell => cell.model.executionCount)"""
    )
    assert counts and all(counts), f"every cell of {path} ran"
    shot(lab, "launcher-notebook-light")
    lab.theme("dark")
    shot(lab, "launcher-notebook-dark")


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param("this is no JavaScript (", id="a syntax error"),
        pytest.param("throw new Error('at loading')", id="an exception when it is loaded"),
        pytest.param(None, id="an exception when it is activated"),
    ],
)
def test_jupyterlab_starts_when_the_extension_is_broken(broken, browser, tmp_path):
    copy = tmp_path / "extension"
    shutil.copytree(REPOSITORY / "widgets" / "labextension", copy)
    entry = copy / "static" / "remoteEntry.js"
    source = entry.read_text("utf-8")
    needle = "const activate = async (app, launcher, palette, browser) => {"
    assert needle in source
    entry.write_text(broken or source.replace(needle, needle + "throw new Error('at activation');"), "utf-8")
    (tmp_path / "lab").mkdir()
    with serving(tmp_path / "lab", extension=copy) as server:
        lab = Launcher(server, browser, "", (1280, 900))
        lab.page.wait_for_selector(".jp-LauncherCard")
        assert lab.page.locator(".jp-LauncherCard[title^='Choose a model']").count() == 0
        lab.close()


def test_without_the_servers_part_the_card_says_what_is_missing(browser, tmp_path):
    copy = tmp_path / "extension"
    shutil.copytree(REPOSITORY / "widgets" / "labextension", copy)
    # Switched off by name: where the package is installed its own configuration switches it on.
    switches = json.loads((copy / "server.json").read_text("utf-8"))
    extensions = switches["ServerApp"]["jpserver_extensions"]
    extensions.update(dict.fromkeys(extensions, False))
    (copy / "server.json").write_text(json.dumps(switches), "utf-8")
    (tmp_path / "lab").mkdir()
    with serving(tmp_path / "lab", extension=copy) as server:
        lab = Launcher(server, browser, "", (1280, 900))
        lab.page.click(CARD.format("Eight lessons"))
        dialog = lab.page.locator(".jp-Dialog")
        dialog.wait_for()
        assert "jupyter server extension list" in dialog.inner_text()
        lab.close()
