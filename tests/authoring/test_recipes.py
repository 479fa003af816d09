"""Recipes: what they choose for a card, what they refuse, and how they grow."""

import dataclasses
import importlib
import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from sloth_nb import catalog, make_notebook
from sloth_nb.authoring import render
from sloth_nb.authoring.platforms import Machine
from sloth_nb.authoring.possible import possible_tasks, writes_text
from sloth_nb.authoring.recipe import Recipe
from sloth_nb.authoring.settings import SHARE, settle
from sloth_nb.authoring.tasks import COMING, read_task, task, tasks
from sloth_nb.cli import main
from sloth_nb.errors import HardwareError, ModelError, NotebookError

TASKS = [one.name for one in tasks()]
# The last of each kind: what differs within one is its size.
KINDS = {(info.family, info.kind, info.modality): info.name for info in catalog.models()}


def test_the_tasks_of_this_version_are_there_the_easiest_first():
    assert TASKS == ["sft", "completion", "pretraining", "tools", "synthetic", "evaluate"]
    assert not set(TASKS) & set(COMING)


@pytest.mark.parametrize("model", KINDS.values())
def test_every_pair_of_a_model_and_a_task_makes_a_notebook_or_one_clear_sentence(model):
    for one in TASKS:
        for platform, card in (("colab", None), ("kaggle", "P100"), ("jupyter", "H200"), ("classroom", None)):
            try:
                recipe = Recipe.of(model, one, platform, card)
            except (NotebookError, HardwareError) as error:
                assert "\n" not in str(error) and len(str(error)) < 500
                continue
            assert writes_text(recipe.model) and recipe.task in possible_tasks(recipe.model)
            assert recipe.settings.estimate.total <= SHARE * recipe.machine.gpu.memory
            assert recipe.cells()


def test_settings_follow_the_card():
    small, large = Recipe.of("qwen3-14b", "sft", "colab"), Recipe.of("qwen3-14b", "sft", "colab", "A100")
    assert small.settings.method == large.settings.method == "qlora"
    assert small.settings.activations == "auto" and large.settings.batch * large.settings.accumulation == 8
    assert large.settings.seconds < small.settings.seconds / 2
    assert large.settings.estimate.total > small.settings.estimate.total, "more room is used to be faster"
    assert Recipe.of("smollm2-135m-instruct", "sft", "classroom").settings.method == "lora"


def test_the_less_memory_the_shorter_the_rows_until_nothing_fits():
    info, sft, lengths = catalog.find("qwen3-14b"), task("sft"), []
    for quarters in range(64, 16, -1):
        card = dataclasses.replace(catalog.gpu("T4"), memory_gib=quarters / 4)
        try:
            lengths.append(settle(info, sft, Machine.own(card)).length)
        except HardwareError:
            lengths.append(0)
    assert lengths == sorted(lengths, reverse=True) and {0, 2048} < set(lengths)


def test_what_is_asked_for_is_taken_as_it_is():
    recipe = Recipe.of(
        "qwen3-4b", "sft", "colab", length=1024, batch=1, steps=7, rank=8, learning_rate=1e-5, data="a.jsonl"
    )
    text = recipe.text()
    for line in ("max_length = 1024", "batch_size = 1 ", "max_steps = 7", "rank = 8", "learning_rate = 1e-5"):
        assert line in text
    assert 'data = \\"a.jsonl\\"' in text
    assert recipe.code("x.ipynb") == (
        "sloth_nb.make_notebook('qwen3-4b', 'sft', 'colab', length=1024, batch=1, steps=7, rank=8, "
        "learning_rate=1e-05, data='a.jsonl', path='x.ipynb')"
    )


@pytest.mark.parametrize(
    ("names", "options", "error", "says"),
    [
        (("qwen3-41b",), {}, ModelError, "Nearest: .*qwen3-14b"),
        (("qwen3-4b", "sfft"), {}, NotebookError, "Did you mean 'sft'"),
        (("qwen3-4b", "grpo"), {}, NotebookError, "can't be done in this version.*What can: sft"),
        (("whisper-large-v3", "grpo"), {}, NotebookError, "grpo is for the models that write text; whisper-large-v3"),
        (("qwen3-4b", "tts"), {}, NotebookError, "tts is for the models that speak; qwen3-4b"),
        (("whisper-large-v3", "sft"), {}, NotebookError, "can't train yet"),
        (("llama-3.2-11b-vision-instruct", "sft"), {}, NotebookError, "see pictures"),
        (("gemma-3-4b-it", "tools"), {}, NotebookError, "no place for what tools trains.*qwen3-4b"),
        (("llama-3.2-3b", "tools"), {}, NotebookError, "base model has no chat template"),
        (("llama-3.2-3b", "synthetic"), {}, NotebookError, "base model; synthetic needs one that follows"),
        (("llama-3.3-70b-instruct",), {}, HardwareError, r"does not fit T4 .* T4 takes llama-3\.1-8b"),
        (("qwen3-4b", "sft", "kaggle", "A100"), {}, HardwareError, "Kaggle lends no 'A100'"),
        (("qwen3-4b", "sft", "kagle"), {}, NotebookError, "Did you mean 'kaggle'"),
        (("qwen3-4b",), {"lenght": 1}, NotebookError, "Did you mean 'length'"),
        (("qwen3-4b",), {"length": "long"}, NotebookError, "must be a whole number"),
        (("qwen3-4b",), {"batch": 0}, NotebookError, "above 0"),
        (("qwen3-4b",), {"method": "full"}, NotebookError, "method is 'full'; in a notebook it is one of qlora, lora"),
    ],
)  # fmt: skip
def test_what_makes_no_notebook_is_refused_in_a_sentence(names, options, error, says):
    with pytest.raises(error, match=says):
        Recipe.of(*names, **options)


def test_the_smallest_card_that_is_named_really_takes_it():
    with pytest.raises(HardwareError) as refused:
        Recipe.of("llama-3.3-70b-instruct", "sft", "colab", "T4")
    card = re.search(r"takes it is (.+?)\. ", str(refused.value))[1]
    assert Recipe.of("llama-3.3-70b-instruct", "sft", "jupyter", card).settings.length >= 512


def test_a_kaggle_notebook_may_be_without_internet_and_says_what_to_attach():
    recipe = Recipe.of("qwen3-14b", "sft", "kaggle", offline=True)
    assert recipe.notebook()["metadata"]["kaggle"]["isInternetEnabled"] is False
    text = recipe.text()
    assert "search for “Qwen3-14B”" in text and "--no-index" in text and "offline=True" in recipe.code()
    assert (
        Recipe.of("qwen3-14b", "sft", "kaggle").notebook()["metadata"]["kaggle"]["isInternetEnabled"] is True
    )
    with pytest.raises(NotebookError, match="offline is for kaggle: Google Colab has no switch"):
        Recipe.of("qwen3-14b", "sft", "colab", offline=True)


def test_make_notebook_writes_once(tmp_path):
    path = make_notebook("smollm2-135m-instruct", platform="jupyter", card="cpu", path=tmp_path / "a.ipynb")
    assert json.loads(path.read_text("utf-8"))["nbformat_minor"] == 5
    with pytest.raises(NotebookError, match="exists already"):
        make_notebook("qwen3-4b", path=path)
    assert make_notebook("qwen3-4b", path=path, force=True) == path and "qwen3-4b" in path.read_text("utf-8")


# How it grows --------------------------------------------------------------------------------------------------

ONE_MORE = """+++
title = "Poems"
headline = "Let {model} rhyme"
learns = "It rhymes."
data = "none"
order = 9
+++
{% extends "notebook.nb" %}
{% block data %}
%%% markdown data-text
## 4. Poems

%%% code data
train = held_out = [{"text": "a rhyme"}]
{% endblock %}
"""


def test_one_file_adds_a_task():
    poems = read_task("poems", ONE_MORE)
    recipe = Recipe.of("qwen3-4b", poems, "colab")
    assert recipe.name == "qwen3-4b-poems"
    assert "Let Qwen3-4B rhyme" in recipe.outline() and "4. Poems" in recipe.outline()
    assert "6. Train" in recipe.outline(), "what it doesn't say itself is the common plan's"


@pytest.fixture
def mossy(monkeypatch):
    """One more entry in the catalogue."""
    info = dataclasses.replace(
        catalog.find("qwen3-4b"), name="mossy-5b", ids={"16bit": "moss/Mossy-5B"}, aliases=()
    )
    entries = (*catalog.models(), info)
    find = importlib.import_module("sloth_nb.catalog.find")
    monkeypatch.setattr(find, "load_models", lambda: entries)
    find._index.cache_clear()
    yield info
    find._index.cache_clear()


def test_one_entry_of_the_catalogue_adds_a_model(mossy):
    for one in TASKS:
        recipe = Recipe.of("mossy-5b", one, "kaggle")
        assert 'model_name = "mossy-5b"' in "\n".join(cell.source for cell in recipe.cells())
        assert "Mossy-5B" in recipe.outline()[0] and "'mossy-5b'" in recipe.code()


def test_any_other_model_s_folder_will_do(tiny_llama_path):
    recipe = Recipe.of(str(tiny_llama_path), "sft", "jupyter", "cpu")
    assert f'model_name = "{tiny_llama_path}"' in "\n".join(cell.source for cell in recipe.cells())
    assert str(tiny_llama_path) in recipe.code() and str(tiny_llama_path) in recipe.command()
    assert recipe.name == "tiny-llama-sft-cpu"


def test_a_model_that_fp16_is_too_narrow_for_says_so_where_the_card_has_no_bf16():
    assert "Mind the numbers" in Recipe.of("gemma-3-4b-it", "sft", "colab", "T4").text()
    assert "Mind the numbers" not in Recipe.of("gemma-3-4b-it", "sft", "colab", "L4").text()
    assert "Mind the numbers" not in Recipe.of("qwen3-4b", "sft", "colab", "T4").text()


@pytest.mark.parametrize(
    "text", ["no facts", "+++\ntitle = 1 2\n+++\n", '+++\ntitle = "only"\n+++\n', '+++\nhue = "red"\n+++\n']
)
def test_a_task_s_file_without_its_facts_is_refused(text):
    with pytest.raises(NotebookError, match="facts"):
        read_task("broken", text)


def test_a_name_that_the_texts_don_t_know_is_an_error_not_empty_text():
    broken = dataclasses.replace(
        task("sft"), text='{% extends "notebook.nb" %}{% block data %}{{ nonsense }}{% endblock %}'
    )
    with pytest.raises(Exception, match="nonsense"):
        Recipe.of("qwen3-4b", broken, "colab").cells()


def test_the_pins_are_the_tested_versions(repository: Path):
    tested = dict(
        line.split("==")
        for line in (repository / "constraints.txt").read_text("utf-8").splitlines()
        if "==" in line and "#" not in line
    )
    table = render.pins()
    for pin in [*table["always"], *table["gpu"], *table["offline"]]:
        name, _, version = pin.partition("==")
        assert tested[name] == version
    assert {"torch", "numpy", "ipywidgets"} <= set(table["stay"])
    from sloth_nb import __version__

    assert table["itself"] == f"sloth-nb=={__version__}"


# What the images have of what must stay (googlecolab/backend-info, August 2026; Kaggle's is built on Colab's).
IMAGE = {
    "torch": "2.11.0",
    "triton": "3.6.0",
    "numpy": "2.1.3",
    "pandas": "2.2.3",
    "ipywidgets": "7.7.1",
    "ipykernel": "6.17.1",
}


def test_nothing_that_is_added_wants_another_version_of_what_must_stay(repository):
    ours = tomllib.loads((repository / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    needs = [*ours, *(need for name in ("trl", "bitsandbytes") for need in importlib.metadata.requires(name))]
    checked = [
        need for need in map(Requirement, needs) if need.name in IMAGE and "extra" not in str(need.marker)
    ]
    assert {need.name for need in checked} >= {"torch", "numpy", "ipywidgets"}
    for need in checked:
        assert need.specifier.contains(IMAGE[need.name]), f"{need} against {IMAGE[need.name]}"
    assert set(IMAGE) <= set(render.pins()["stay"])


# The command line and the script -------------------------------------------------------------------------------


def test_the_command_writes_a_notebook_and_says_what_it_needs(tmp_path, capsys):
    out = tmp_path / "out.ipynb"
    assert main(["notebook", "qwen3-14b", "--platform", "kaggle", "--rank", "8", "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert (
        str(out) in said and "for Kaggle with 2 × T4: qlora" in said and "rank = 8" in out.read_text("utf-8")
    )
    assert main(["notebook", "qwen3-14b", "-o", str(out)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main(["notebook", "qwen3-14b", "-o", str(out), "--force"]) == 0
    assert main(["notebook", "qwen3-14b", "--task", "grpo"]) == 1
    assert "grpo" in capsys.readouterr().err


def test_what_a_recipe_says_makes_it_again_does(tmp_path, capsys):
    recipe = Recipe.of(
        "llama-3.2-3b", "pretraining", "kaggle", "P100", length=512, learning_rate=5e-5, offline=True
    )
    words = shlex.split(recipe.command())
    assert main([*words[1:], "-o", str(tmp_path / "a.ipynb")]) == 0
    assert (tmp_path / "a.ipynb").read_text("utf-8") == recipe.text()
    import sloth_nb

    made = eval(recipe.code(str(tmp_path / "b.ipynb")), {"sloth_nb": sloth_nb})
    assert made.read_text("utf-8") == recipe.text()


@pytest.mark.parametrize("task_name", TASKS)
@pytest.mark.parametrize("model", ["smollm2-135m", "smollm2-135m-instruct", "qwen3-4b", "gemma-3-4b-it"])
def test_a_script_is_python_and_its_config_is_yaml(task_name, model):
    try:
        recipe = Recipe.of(model, task_name, "kaggle")
    except NotebookError:
        return
    if not recipe.task.script:
        with pytest.raises(NotebookError, match="A script is written for"):
            recipe.script()
        return
    files = recipe.script()
    compile(files["train.py"], "train.py", "exec")
    assert yaml.safe_load(files["accelerate.yaml"])["num_processes"] == 2


LAUNCHERS = {
    "accelerate": ["accelerate.commands.launch", "--cpu", "--num_processes=1", "--num_machines=1"],
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node=2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_the_script_trains_in_one_process_and_in_two(
    launcher, tmp_path, tiny_llama_path, kernels_find_the_package
):
    script, _ = Recipe.of("smollm2-135m-instruct", "sft", "jupyter", "cpu").save_script(tmp_path / "run")
    given = ["--model", tiny_llama_path, "--max-steps", 2, "--batch-size", 2, "--accumulation", 1]
    command = [sys.executable, "-m", *LAUNCHERS[launcher], script, *given, "--output-dir", tmp_path / "out"]
    done = subprocess.run(
        [str(word) for word in command],
        capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert done.stdout.count("The adapter: ") == 1, "one process alone saves"
    assert done.stdout.count("120 read, 120 kept") == (2 if launcher == "torchrun" else 1)
