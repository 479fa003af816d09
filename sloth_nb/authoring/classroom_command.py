"""`sloth-nb classroom`: writes the course's notebooks into a folder, for students or for a teacher."""

import argparse

from sloth_nb.authoring.lessons import write_course

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", default="classroom", help="where to (default: classroom)")
    parser.add_argument("--teacher", action="store_true", help="with the solutions, between nbgrader's marks")
    parser.add_argument("--force", action="store_true", help="replace notebooks that are there and differ")


def run(options: argparse.Namespace) -> int:
    written = write_course(
        options.folder, "teacher" if options.teacher else "student", overwrite=options.force
    )
    print(f"{len(written)} lessons in {options.folder}. Begin with {written[0]}.")
    return 0
