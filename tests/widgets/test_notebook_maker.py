"""NotebookMaker: what it shows is what it writes, and what the code it shows writes."""

import pytest
from sloth_nb_widgets import ModelPicker, NotebookMaker, VramEstimator

from sloth_nb.authoring.recipe import Recipe
from sloth_nb.errors import SlothError


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Saves go to the test's folder; the saved copy of a panel follows later than any test lasts."""
    monkeypatch.chdir(tmp_path)
    for panel in (NotebookMaker, ModelPicker, VramEstimator):
        monkeypatch.setattr(panel, "snapshot_delay", 600)
    return tmp_path


def test_the_outline_the_settings_and_the_code_are_those_of_the_recipe(here):
    maker = NotebookMaker(model="qwen3-14b", task="tools", platform="kaggle", card="P100")
    assert maker.recipe == Recipe.of("qwen3-14b", "tools", "kaggle", "P100")
    for line in maker.recipe.outline():
        assert line in str(maker)
    shown = maker._view()
    assert "Teach Qwen3-14B to use your tools" in shown and "no code for a P100" in shown
    exec(maker.as_code())
    assert (here / "qwen3-14b-tools-p100-kaggle.ipynb").read_text("utf-8") == maker.recipe.text()


def test_the_button_saves_once_and_says_where(front_end, find, here):
    maker = NotebookMaker(model="qwen3-4b")
    maker._ipython_display_()
    front_end.update(find(maker, "File"), value="mine/teach.ipynb")
    find(maker, "Save").click()
    assert (here / "mine" / "teach.ipynb").read_text("utf-8") == maker.recipe.text()
    assert "Saved mine" in maker._status_line.value
    find(maker, "Save").click()
    assert "exists already" in maker._status_line.value and 'role="alert"' in maker._status_line.value
    front_end.update(find(maker, "Write over it"), value=True)
    find(maker, "Save").click()
    assert "Saved mine" in maker._status_line.value


def test_another_place_lends_other_cards(front_end, find):
    maker = NotebookMaker(model="qwen3-4b", card="A100")
    maker._ipython_display_()
    assert "A100" in find(maker, "Card").options and maker.recipe.machine.name == "A100"
    front_end.update(
        find(maker, "Place"), index=[value for _, value in find(maker, "Place").options].index("kaggle")
    )
    assert maker.platform == "kaggle" and maker.card == find(maker, "Card").value == "its usual one"
    assert "P100" in find(maker, "Card").options and "A100" not in find(maker, "Card").options
    assert maker.recipe.machine.name == "T4x2"


def test_what_makes_no_notebook_is_said_and_mends(front_end, find):
    maker = NotebookMaker(model="whisper-tiny")
    maker._ipython_display_()
    assert "train yet" in maker._picture.value and 'role="alert"' in maker._picture.value
    with pytest.raises(SlothError, match="whisper-tiny"):
        maker.save()
    find(maker, "Save").click()
    assert "whisper-tiny" in maker._status_line.value
    front_end.update(find(maker, "Model"), value="qwen3-41b")
    assert "Nearest" in maker._picture.value
    front_end.update(find(maker, "Model"), value="qwen3-4b")
    assert "<li>" in maker._picture.value
    front_end.update(find(maker, "Length"), value=1024)
    assert maker.recipe.settings.length == 1024 and "length=1024" in maker._picture.value


def test_it_takes_over_what_the_picker_and_the_estimator_hold():
    picker, estimator = (
        ModelPicker(chosen="qwen3-4b"),
        VramEstimator("phi-4", batch=1, length=1024, policy="lean"),
    )
    maker = NotebookMaker(picker=picker, platform="jupyter")
    assert maker.recipe.model.name == "qwen3-4b" and maker.method == "qlora"
    picker.chosen = "qwen3-8b"
    assert maker.recipe.model.name == "qwen3-8b"
    picker.method = "full"
    assert maker.method == "worked out", "a notebook trains adapters"
    maker = NotebookMaker(estimator=estimator, platform="jupyter")
    settings = maker.recipe.settings
    assert (maker.recipe.model.name, settings.batch, settings.length) == ("phi-4", 1, 1024)
    assert maker.activations == "" and maker.recipe.machine.name == "RTX 4090"
    estimator.gpu, estimator.length, estimator.policy = "H100", 512, "offload"
    assert maker.recipe.machine.gpu.name.startswith("H100") and maker.recipe.settings.length == 512
    assert maker.recipe.settings.activations == "offload"


def test_hostile_names_are_shown_as_text():
    maker = NotebookMaker(model="<img src=x onerror=alert(1)>")
    assert "<img" not in maker._view() and "&lt;img" in maker._view()
