"""``%sloth …``: the widgets and functions by a short command, after ``%load_ext sloth_nb``.

Each subcommand is a thin face: it reads words, finds variables of the notebook, and shows a widget or calls a function.
"""

import argparse
import difflib
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from sloth_nb.errors import SlothError

__all__ = ["COMMANDS", "register", "sloth", "unregister"]

Variables = dict[str, Any]


class _Parser(argparse.ArgumentParser):
    """argparse, which says what is wrong in one sentence instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        usage = " ".join(self.format_usage().split()).removeprefix("usage: ")
        raise SlothError(f"{self.prog}: {message}. It is called like this: {usage}")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise _Told


class _Told(Exception):
    """Help was asked for, and given."""


@dataclass(frozen=True)
class Command:
    """A subcommand: one line about it, its arguments, and what it does with them and the notebook's variables."""

    about: str
    arguments: Callable[[argparse.ArgumentParser], Any]
    run: Callable[[argparse.Namespace, Variables], Any]


def sloth(line: str, variables: Variables) -> Any:
    """Runs one ``%sloth`` line against the notebook's variables, and returns what the cell shows.

    Raises:
        SlothError: an unknown subcommand, argument or variable; or what the function itself refuses.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise SlothError(f"%sloth: the line can't be read ({error}).") from None
    if not words or words[0] in ("help", "-h", "--help"):
        print("\n".join(f"%sloth {name:<10} {command.about}" for name, command in COMMANDS.items()))
        return None
    name, *rest = words
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise SlothError(f"%sloth has no command {name!r}.{hint} It has: {', '.join(COMMANDS)}.")
    command = COMMANDS[name]
    parser = _Parser(prog=f"%sloth {name}", description=command.about)
    command.arguments(parser)
    try:
        options = parser.parse_args(rest)
    except _Told:
        return None
    return command.run(options, variables)


# pick -----------------------------------------------------------------------------------------------------


def _pick_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", help="words to search for")
    parser.add_argument("--gpu", help="the card that it must fit")


def _pick(options: argparse.Namespace, variables: Variables) -> Any:
    from sloth_nb_widgets import ModelPicker

    return ModelPicker(query=" ".join(options.words), **_given(options, "gpu"))


# estimate -------------------------------------------------------------------------------------------------


def _estimate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", default="smollm2-135m-instruct", help="catalogue name, hub id or folder"
    )
    parser.add_argument("--gpu", help="a card's name")
    parser.add_argument("--method", help="qlora, lora, lora-8bit or full")
    for name in ("batch", "length", "rank"):
        parser.add_argument(f"--{name}", type=int)


def _estimate(options: argparse.Namespace, variables: Variables) -> Any:
    from sloth_nb_widgets import VramEstimator

    from sloth_nb.memory import METHODS

    if options.method is not None and options.method not in METHODS:
        raise SlothError(f"%sloth estimate: a method is one of {', '.join(METHODS)}, not {options.method!r}.")
    return VramEstimator(options.model, **_given(options, "gpu", "method", "batch", "length", "rank"))


# preview --------------------------------------------------------------------------------------------------


def _preview_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="a variable, a file, an id on the Hub, or a shipped example's name")
    parser.add_argument(
        "--tokenizer", default="tokenizer", help="the variable that holds it (default: tokenizer)"
    )


def _preview(options: argparse.Namespace, variables: Variables) -> Any:
    from sloth_nb_widgets import DatasetPreview

    from sloth_nb.data.examples import example, example_names

    if options.data in variables:
        data = variables[options.data]
    elif options.data in example_names() and not Path(options.data).exists():
        data = example(options.data, "train")
    else:
        data = options.data
    if options.tokenizer != "tokenizer":
        _variable(variables, options.tokenizer, "a tokenizer")
    return DatasetPreview(data, variables.get(options.tokenizer))


# train ----------------------------------------------------------------------------------------------------


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "trainer",
        nargs="?",
        default="trainer",
        help="a trainer's variable, or the folder of a run to look at",
    )


def _train(options: argparse.Namespace, variables: Variables) -> Any:
    from sloth_nb_widgets import TrainingMonitor

    if options.trainer not in variables and Path(options.trainer).exists():
        return TrainingMonitor(options.trainer)
    trainer = _variable(variables, options.trainer, "a trainer")
    if not callable(getattr(trainer, "start", None)):
        raise SlothError(
            f"{options.trainer} is a {type(trainer).__name__}, which can't be started; pass an SFTTrainer."
        )
    variables["run"] = trainer.start()
    return TrainingMonitor(variables["run"])


# chat -----------------------------------------------------------------------------------------------------


def _chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", default="model", help="its variable, or a name to load for this chat alone"
    )
    parser.add_argument(
        "--tokenizer", default="tokenizer", help="the variable that holds it (default: tokenizer)"
    )
    parser.add_argument("--system", help="a system prompt")


def _chat(options: argparse.Namespace, variables: Variables) -> Any:
    from sloth_nb_widgets import Chat

    if options.model in variables or options.model == "model":
        model = _variable(variables, options.model, "a model")
        tokenizer = _variable(variables, options.tokenizer, "a tokenizer")
    else:
        from sloth_nb.models import FastLanguageModel
        from sloth_nb.models.devices import best_device

        # Four bits save a card's memory; a CPU has the room, and is slow with them.
        whole = {"load_in_4bit": False} if best_device().type == "cpu" else {}
        model, tokenizer = FastLanguageModel.from_pretrained(options.model, **whole)
    return Chat(model, tokenizer, **_given(options, "system"))


# notebook and classroom -----------------------------------------------------------------------------------


def _notebook_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", nargs="?", help="catalogue name, hub id or folder; without one, a panel to choose"
    )
    parser.add_argument("--task", default="sft", help="what to do (default: sft)")
    parser.add_argument("--platform", default="jupyter", help="where it will run (default: jupyter)")
    parser.add_argument("-o", "--output", dest="path", help="the file")
    parser.add_argument("--force", action="store_true", help="write over a file that exists")


def _notebook(options: argparse.Namespace, variables: Variables) -> Any:
    if options.model is None:
        from sloth_nb_widgets import NotebookMaker

        from sloth_nb.authoring.platforms import platform
        from sloth_nb.authoring.tasks import task

        return NotebookMaker(
            task=task(options.task).name,
            platform=platform(options.platform).name,
            path=options.path or "",
            overwrite=options.force,
        )
    from sloth_nb.authoring.recipe import make_notebook

    return _link(
        make_notebook(options.model, options.task, options.platform, path=options.path, force=options.force)
    )


def _classroom_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="classroom", help="where to (default: classroom)")


def _classroom(options: argparse.Namespace, variables: Variables) -> Any:
    from sloth_nb.authoring.lessons import write_course

    return _link(write_course(options.folder)[0])


def _link(path: Path) -> Any:
    from IPython.display import FileLink

    return FileLink(str(path)) if not path.is_absolute() else path


COMMANDS = {
    "pick": Command("search the models and see what fits", _pick_arguments, _pick),
    "estimate": Command("what a run will need, before it runs", _estimate_arguments, _estimate),
    "preview": Command("a data set, and token by token what will be learnt", _preview_arguments, _preview),
    "train": Command("start a trainer and watch it, or look at a past run", _train_arguments, _train),
    "chat": Command("talk to a model, with and without its adapter", _chat_arguments, _chat),
    "notebook": Command("write a fine-tuning notebook, or choose one", _notebook_arguments, _notebook),
    "classroom": Command("write the course's notebooks into a folder", _classroom_arguments, _classroom),
}


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """The options that were given; a widget's own defaults stand for the rest."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _variable(variables: Variables, name: str, what: str) -> Any:
    if name not in variables:
        raise SlothError(f"There is no variable {name!r} in this notebook; it should hold {what}.")
    return variables[name]


# IPython's side -------------------------------------------------------------------------------------------


def register(shell: Any) -> None:
    """Adds ``%sloth`` to a shell, with its subcommands for the Tab key."""

    def magic(line: str) -> Any:
        return sloth(line, shell.user_ns)

    magic.__doc__ = "\n".join(f"%sloth {name}: {command.about}" for name, command in COMMANDS.items())
    shell.register_magic_function(magic, "line", "sloth")
    shell.set_hook("complete_command", _complete, str_key="%sloth")


def unregister(shell: Any) -> None:
    """Takes ``%sloth`` away."""
    shell.magics_manager.magics["line"].pop("sloth", None)


def _complete(shell: Any, event: Any) -> list[str]:
    """What the Tab key offers: subcommands, then the models or variables that they take."""
    words = event.text_until_cursor.split()
    if len(words) + event.text_until_cursor.endswith(" ") <= 2:
        return list(COMMANDS)
    if words[1] in ("estimate", "notebook"):
        from sloth_nb.catalog import models

        return [model.name for model in models()]
    return [name for name in shell.user_ns if not name.startswith("_")]
