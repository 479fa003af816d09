"""``%sloth``: each subcommand finds what it names and shows the right widget; what is wrong is one sentence."""

from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

from sloth_nb.errors import SlothError
from sloth_nb.magics import COMMANDS, sloth


@pytest.fixture(scope="module")
def shell():
    running = InteractiveShell()
    running.run_line_magic("load_ext", "sloth_nb")
    yield running
    running.run_line_magic("unload_ext", "sloth_nb")


def test_the_extension_adds_one_magic_and_takes_it_away(shell):
    assert "sloth" in shell.magics_manager.magics["line"]
    shell.run_line_magic("unload_ext", "sloth_nb")
    assert "sloth" not in shell.magics_manager.magics["line"]
    shell.run_line_magic("load_ext", "sloth_nb")


def test_a_notebooks_variables_are_found(shell):
    shell.user_ns["rows"] = [{"text": "Slowly now."}, {"text": "No hurry."}]
    shown = shell.run_line_magic("sloth", "preview rows")
    assert "2 rows; text (text = text)" in str(shown)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("%sloth ", "preview"),
        ("%sloth not", "notebook"),
        ("%sloth estimate qwen3-1", "qwen3-14b"),
        ("%sloth train my_", "my_trainer"),
    ],
)
def test_the_tab_key_offers_commands_models_and_variables(shell, typed, offered):
    shell.user_ns["my_trainer"] = 3
    assert offered in shell.complete(typed.split()[-1] if typed[-1] != " " else "", typed, len(typed))[1]


def test_pick_searches_and_estimate_computes():
    picker = sloth("pick qwen3 14b --gpu T4", {})
    assert (picker.query, picker.gpu) == ("qwen3 14b", "T4")
    estimator = sloth("estimate qwen3-4b --gpu T4 --length 1024 --batch 1", {})
    assert estimator.estimate.work.length == 1024 and "qwen3-4b" in str(estimator)


def test_preview_takes_files_and_shipped_examples(tmp_path):
    file = tmp_path / "my rows.jsonl"
    file.write_text('{"text": "Leaves."}\n')
    assert "1 row; text (text = text)" in str(sloth(f"preview '{file.as_posix()}'", {}))
    assert "120 rows" in str(sloth("preview quickstart", {}))


def test_train_needs_a_trainer():
    with pytest.raises(SlothError, match="no variable 'trainer'"):
        sloth("train", {})
    with pytest.raises(SlothError, match="int, which can't be started"):
        sloth("train x", {"x": 3})


def test_train_starts_the_trainer_shows_it_and_keeps_the_run(tmp_path):
    from sloth_nb.training import Run
    from sloth_nb.training.events import RUN_FILE, EventLog, RunEvent

    log = EventLog(tmp_path / RUN_FILE)
    log.write(RunEvent("started", 0, data={"max_steps": 1}))
    log.write(RunEvent("finished", 1))

    class Trainer:
        def start(self):
            return Run.open(tmp_path)

    variables = {"mine": Trainer()}
    shown = sloth("train mine", variables)
    assert variables["run"].path and "finished" in str(shown)
    assert "finished" in str(sloth(f"train '{tmp_path.as_posix()}'", {})), "a folder shows a past run"


def test_chat_needs_a_model():
    with pytest.raises(SlothError, match="no variable 'model'"):
        sloth("chat", {})


def test_chat_takes_the_notebooks_model(tiny_llama, shared_tokenizer):
    chat = sloth("chat --system 'Be slow.'", {"model": tiny_llama, "tokenizer": shared_tokenizer})
    assert chat.system == "Be slow."


def test_chat_with_a_model_by_name_leaves_the_notebooks_own_alone(tiny_llama_path, monkeypatch):
    import torch

    monkeypatch.setattr("sloth_nb.models.devices.best_device", lambda: torch.device("cpu"))
    mine = {"model": object(), "tokenizer": object()}
    variables = dict(mine)
    chat = sloth(f"chat '{tiny_llama_path.as_posix()}'", variables)
    assert variables == mine
    assert chat.model.config.model_type == "llama" and chat.tokenizer.chat_template
    assert not getattr(chat.model, "is_quantized", False), "a CPU chats in 16 bits"


def test_classroom_writes_the_course(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shown = sloth("classroom", {})
    assert (tmp_path / "classroom").is_dir() and "1_what_a_model_is.ipynb" in shown._repr_html_()


def test_notebook_writes_a_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sloth("notebook smollm2-135m-instruct -o mine.ipynb", {})
    assert Path("mine.ipynb").is_file()
    with pytest.raises(SlothError, match=r"mine\.ipynb"):
        sloth("notebook smollm2-135m-instruct -o mine.ipynb", {})


def test_notebook_without_a_model_is_a_panel_to_choose_one():
    assert sloth("notebook", {}).recipe.platform.name == "jupyter"


def test_notebook_without_a_model_takes_its_options_into_the_panel():
    maker = sloth("notebook --platform colab --task tools -o mine.ipynb --force", {})
    assert (maker.platform, maker.task, maker.path, maker.overwrite) == ("colab", "tools", "mine.ipynb", True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pik", "has no command 'pik'. Did you mean pick?"),
        ("dance", "has no command 'dance'. It has: pick"),
        ("estimate --lenght 3", "unrecognized arguments"),
        ("estimate --batch many", "invalid int value"),
        ("estimate --method dance", "a method is one of"),
        ("preview", "the following arguments are required: data"),
        ("notebook --platform cola", "colab"),
        ("notebook --task tool", "tools"),
        ("preview 'open", "the line can't be read"),
        ("preview x --tokenizer tok", "no variable 'tok'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(line, said):
    with pytest.raises(SlothError) as error:
        sloth(line, {"x": [{"text": "a"}]})
    assert said in str(error.value) and "\n" not in str(error.value)


def test_help_lists_all_commands(capsys):
    sloth("", {})
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert sloth("estimate --help", {}) is None
    assert "--gpu" in capsys.readouterr().out
