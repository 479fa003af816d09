"""ModelPicker: finds, filters, says what fits, and hands over a choice that loads."""

from dataclasses import replace

import pytest
from sloth_nb_widgets import ModelPicker, VramEstimator, model_picker
from sloth_nb_widgets.panel import PanelArgumentError

from sloth_nb import catalog
from sloth_nb.errors import HardwareError


@pytest.fixture(autouse=True)
def no_late_snapshot(monkeypatch):
    """The saved copy follows after a second; by then a test is over."""
    monkeypatch.setattr(ModelPicker, "snapshot_delay", 600)


def names(picker):
    return [value for _, value in picker._list.options]


def test_typing_narrows_the_list(front_end, find):
    picker = ModelPicker(gpu="T4")
    picker._ipython_display_()
    assert len(names(picker)) == len(catalog.models())
    front_end.update(find(picker, "Search"), value="llama 8b instruct")
    assert names(picker) == ["llama-3.1-8b-instruct"]
    assert picker.chosen == "smollm2-135m-instruct", "narrowing the list chooses nothing"
    assert picker._list.value is None
    front_end.update(find(picker, "Search"), value="")
    assert picker._list.value == "smollm2-135m-instruct"


def test_filters_work_together(front_end, find):
    picker = ModelPicker(gpu="T4")
    picker._ipython_display_()
    front_end.update(find(picker, "Licence"), index=list(find(picker, "Licence").options).index("Apache-2.0"))
    front_end.update(find(picker, "Size"), index=1)
    found = [catalog.find(name) for name in names(picker)]
    assert found and all(info.licence == "Apache-2.0" and info.parameters <= 1e9 for info in found)


def test_each_row_says_how_it_fits_the_card():
    picker = ModelPicker(gpu="T4")
    how = {name: picker.fit(catalog.find(name))[0] for name in ("qwen3-0.6b", "qwen3-14b", "qwen3-32b")}
    assert how == {"qwen3-0.6b": "fits", "qwen3-14b": "fits", "qwen3-32b": "does not fit"}
    assert "✗ qwen3-32b" in str(picker)
    assert ModelPicker(gpu="RTX 3060").fit(catalog.find("phi-4"))[0] == "fits with offload"


def test_choosing_a_row_shows_it_and_its_code(front_end):
    picker = ModelPicker(gpu="T4")
    picker._ipython_display_()
    front_end.update(picker._list, index=names(picker).index("qwen3-8b"))
    assert picker.chosen == "qwen3-8b"
    assert picker.value == "unsloth/Qwen3-8B-bnb-4bit" and picker.four_bit
    assert (
        "unsloth/Qwen3-8B-bnb-4bit" in picker._picture.value and "load_in_4bit=True" in picker._picture.value
    )
    picker.method = "lora"
    assert picker.value == "Qwen/Qwen3-8B" and not picker.four_bit


def test_enter_takes_the_first_and_the_buttons_step_through(front_end, find):
    picker = ModelPicker(gpu="T4")
    picker._ipython_display_()
    front_end.update(find(picker, "Search"), value="phi")
    front_end.custom(find(picker, "Search"), "submit")
    assert picker.chosen == names(picker)[0] == picker._list.value
    front_end.click(find(picker, "Next"))
    assert picker.chosen == names(picker)[1] == picker._list.value
    for _ in range(3):
        front_end.click(find(picker, "Previous"))
    assert picker.chosen == names(picker)[0]
    for _ in range(30):
        front_end.click(find(picker, "Next"))
    assert picker.chosen == names(picker)[-1]


def test_letters_that_arrive_after_their_enter_still_count(front_end, find, monkeypatch):
    picker = ModelPicker(gpu="T4")
    picker._ipython_display_()
    clock = [100.0]
    monkeypatch.setattr("sloth_nb_widgets.model_picker.time.monotonic", lambda: clock[0])
    search = find(picker, "Search")
    front_end.update(search, value="q")
    front_end.custom(search, "submit")
    clock[0] += 0.5
    front_end.update(search, value="qwen3 14b")
    assert picker.chosen == names(picker)[0] and "14b" in picker.chosen
    clock[0] += 2
    front_end.update(search, value="phi")
    assert "14b" in picker.chosen, "who types on later looks around first"


def test_the_offline_default_is_chosen_first_and_needs_no_hub():
    picker = ModelPicker()
    assert picker.choice.offline
    assert picker.value == "smollm2-135m-instruct"


def test_a_gated_model_says_what_to_do():
    assert (
        "accept the licence once at huggingface.co/meta-llama" in ModelPicker(chosen="llama-3.1-8b")._view()
    )


def test_a_name_that_is_not_there_is_said_in_the_panel():
    picker = ModelPicker(chosen="qwen3-15b")
    assert "Nearest: qwen3-14b" in picker._view()


def test_a_chosen_folder_that_breaks_the_estimate_is_said_in_the_panel(front_end, monkeypatch):
    picker = ModelPicker(gpu="T4")
    picker._ipython_display_()
    monkeypatch.setattr(picker, "fit", lambda info: {}["fit"])
    picker.chosen = "qwen3-8b"
    assert "qwen3-8b can&#x27;t be estimated: KeyError" in picker._picture.value


def test_a_hostile_entry_stays_text():
    hostile = replace(catalog.find("qwen3-0.6b"), name="<img src=x onerror=alert(1)>", title="<script>")
    view = ModelPicker([hostile], gpu="T4")._view()
    assert "<img" not in view and "<script" not in view


def test_an_empty_search_result_is_said(front_end, find):
    picker = ModelPicker(gpu="T4")
    picker._ipython_display_()
    front_end.update(find(picker, "Search"), value="no such thing")
    assert names(picker) == []
    assert f"0 of {len(catalog.models())} models" in picker._picture.value


@pytest.mark.parametrize(
    "word", ["Search", "Card", "Method", "Family", "Size", "Modality", "Licence", "Task", "Models"]
)
def test_every_control_has_a_visible_name(front_end, find, word):
    picker = ModelPicker(gpu="T4")
    picker._ipython_display_()
    assert find(picker, word).description == word


def test_a_filter_that_no_model_has_is_refused_with_the_nearest():
    family = catalog.find("qwen3-8b").family
    assert ModelPicker(family=family.upper()).family == family
    with pytest.raises(PanelArgumentError, match=rf"No model has the family .*Did you mean '{family}'"):
        ModelPicker(family=family + "x")
    with pytest.raises(PanelArgumentError, match="No model has the task"):
        ModelPicker(task="sing")


@pytest.mark.parametrize("panel", [ModelPicker, VramEstimator])
def test_a_card_is_taken_in_any_spelling_and_an_unknown_one_is_refused_with_the_nearest(panel):
    shown = panel(gpu="a100")
    assert shown.gpu == catalog.gpu("A100").name
    assert shown.widget is not None
    with pytest.raises(HardwareError, match=r"No card named 'RTX 9999'\. Nearest: RTX"):
        shown.gpu = "RTX 9999"
    assert shown.gpu == catalog.gpu("A100").name


def test_a_model_that_the_engine_does_not_run_is_never_said_to_fit_by_offloading():
    picker = ModelPicker(gpu="T4", chosen="gemma-3-4b-it")
    assert picker.fit(catalog.find("gemma-3-4b-it"))[0] == "fits at batch 1"
    assert "1 × 2,048 tokens" in str(picker._view()) and "does not run gemma-3-4b-it" in str(picker._view())


def test_what_would_be_moved_to_ram_that_is_not_there_does_not_fit_by_offloading(monkeypatch):
    monkeypatch.setattr(model_picker, "usable_ram", lambda: 1 << 20)
    how, answer = ModelPicker(gpu="RTX 3060").fit(catalog.find("phi-4"))
    assert how != "fits with offload" and answer.host == 0
    monkeypatch.setattr(model_picker, "usable_ram", lambda: 16 << 30)
    assert "GB of RAM" in str(ModelPicker(gpu="RTX 3060", chosen="phi-4")._view())
