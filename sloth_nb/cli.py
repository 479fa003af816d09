"""The command line: `sloth-nb …`, the same abilities without a widget.

Add a command: one line in COMMANDS, and in its module ``add_arguments(parser)`` and ``run(options) -> exit
code``. A command's module is imported only when that command is called.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from importlib import import_module

from sloth_nb import __version__
from sloth_nb.errors import SlothError

__all__ = ["COMMANDS", "Command", "main"]


@dataclass(frozen=True)
class Command:
    """A subcommand: where it lives, and one line about it."""

    module: str
    help: str


COMMANDS = {
    "classroom": Command(
        "sloth_nb.authoring.classroom_command", "write the course's notebooks into a folder"
    ),
    "doctor": Command("sloth_nb.doctor", "what this machine has, what will run on it, which versions clash"),
    "estimate": Command("sloth_nb.memory.estimate_command", "what a run will take, before it runs"),
    "notebook": Command("sloth_nb.authoring.notebook_command", "write a fine-tuning notebook, or a script"),
    "run": Command("sloth_nb.authoring.run_command", "execute a notebook from its first to its last cell"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code: 0 done, 1 failed, 2 called wrongly, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):  # a console that can't write a character shall not end a command
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace", line_buffering=True)
    parser = argparse.ArgumentParser(prog="sloth-nb", description="Fine-tune language models from notebooks.")
    parser.add_argument("--version", action="version", version=f"sloth-nb {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    called = next((word for word in arguments if not word.startswith("-")), None)
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.help, description=command.help)
        if name == called:
            import_module(command.module).add_arguments(subparser)
    options = parser.parse_args(arguments)
    try:
        return import_module(COMMANDS[options.command].module).run(options)
    except SlothError as error:
        print(f"sloth-nb {options.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output has read enough; Python flushes what is left at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"sloth-nb {options.command}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
