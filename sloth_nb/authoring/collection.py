"""The notebooks that the repository carries, and their index: written from recipes, never by hand.

``python -m sloth_nb.authoring.collection notebooks`` writes them; ``--check`` says which differ.
"""

import argparse
import sys
import tomllib
from importlib import resources
from pathlib import Path

from sloth_nb.authoring.index import index
from sloth_nb.authoring.recipe import Recipe

__all__ = ["differences", "files", "main", "recipes", "write"]


def recipes() -> list[Recipe]:
    """Every recipe of the collection, in the order of its file."""
    rows = tomllib.loads((resources.files(__package__) / "collection.toml").read_text("utf-8"))["notebooks"]
    return [
        Recipe.of(model, row["task"], where)
        for row in rows
        for model in row["models"]
        for where in row["platforms"]
    ]


def files() -> dict[str, str]:
    """What the folder holds: path within it → text."""
    found = recipes()
    return {f"{one.platform.name}/{one.name}.ipynb": one.text() for one in found} | {
        "README.md": index(found)
    }


def differences(folder: Path) -> list[str]:
    """The paths in it that are missing, differ from their recipe, or have none."""
    wanted = files()
    platforms = {path.split("/")[0] for path in wanted if "/" in path}
    there = {
        path.relative_to(folder).as_posix()
        for name in platforms
        for path in (folder / name).rglob("*.ipynb")
        if ".ipynb_checkpoints" not in path.parts
    }
    differing = {path for path, text in wanted.items() if _text(folder / path) != text}
    return sorted(differing | (there - set(wanted)))


def write(folder: Path) -> list[str]:
    """Brings the folder in line with the recipes; returns what was written or removed."""
    wanted, changed = files(), differences(folder)
    for path in changed:
        if path not in wanted:
            (folder / path).unlink()
            continue
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(wanted[path], encoding="utf-8", newline="\n")
    return changed


def _text(path: Path) -> str | None:
    return path.read_bytes().decode("utf-8") if path.is_file() else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the repository's notebooks from their recipes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="write nothing; say what differs")
    options = parser.parse_args(arguments)
    changed = differences(options.folder) if options.check else write(options.folder)
    for path in changed:
        print(options.folder / path)
    if options.check and changed:
        print("These differ from their recipes: run `make notebooks` and commit what it writes.")
    return int(options.check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
