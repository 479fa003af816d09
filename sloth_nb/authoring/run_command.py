"""`sloth-nb run`: executes a notebook, showing what it does."""

import argparse
from pathlib import Path

from sloth_nb.errors import NotebookError

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("notebook", help="an .ipynb file; it is not changed")
    parser.add_argument(
        "-o", "--output", help="where the executed notebook goes (default: NAME-executed.ipynb, here)"
    )
    parser.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a value for a name in the cell tagged `parameters`; may be given again",
    )
    parser.add_argument(
        "--memory-limit",
        type=float,
        metavar="GB",
        help="end the kernel when it takes more memory than this, as Binder does at 2",
    )
    parser.add_argument("--cwd", help="the kernel's working folder (default: the output's folder)")


def run(options: argparse.Namespace) -> int:
    try:
        from sloth_nb.authoring.execute import execute
    except ImportError as error:
        raise NotebookError(
            f"Executing a notebook needs {error.name}: pip install 'sloth-nb[demo]'."
        ) from error
    from sloth_nb.authoring.parameters import parse_parameters

    output = Path(options.output or f"{Path(options.notebook).stem}-executed.ipynb")
    done = execute(
        options.notebook,
        output,
        parameters=parse_parameters(options.parameter),
        cwd=options.cwd,
        memory_limit=options.memory_limit,
    )
    peak = done.peak_memory_bytes / 2**30
    print(f"\nDone in {done.seconds:.0f} s, peak memory {peak:.2f} GB. The executed notebook: {output}")
    return 0
