"""`sloth-nb notebook MODEL`: writes a fine-tuning notebook for a model, a task and a place; or a script."""

import argparse

from sloth_nb.authoring.platforms import platforms
from sloth_nb.authoring.recipe import Recipe
from sloth_nb.authoring.settings import OPTIONS
from sloth_nb.authoring.tasks import tasks
from sloth_nb.memory import GB

__all__ = ["add_arguments", "run"]

_HELP = {
    "method": "qlora or lora",
    "length": "tokens a row",
    "batch": "rows at a time",
    "accumulation": "batches before the weights are adjusted",
    "rank": "of the LoRA",
    "learning_rate": "instead of the model's usual one",
    "steps": "how often the weights are adjusted",
    "activations": "auto, keep, recompute or offload",
    "offline": "a Kaggle notebook without internet, everything attached",
    "data": "your rows: a file, a folder, an id on the Hub",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    # No choices= on names: an unknown one is answered with the nearest.
    places = ", ".join(one.name for one in platforms())
    parser.add_argument("model", help="a catalogue name, a hub id, or a folder")
    parser.add_argument("--task", default="sft", help=", ".join(one.name for one in tasks()))
    parser.add_argument("--platform", default="colab", help=places)
    parser.add_argument("--card", help="a machine of that platform (default: its usual one)")
    parser.add_argument(
        "-o", "--output", help="the file (default: here, under its own name); a folder for --script"
    )
    parser.add_argument(
        "--script", action="store_true", help="a plain script and accelerate's config instead"
    )
    parser.add_argument("--force", action="store_true", help="write over what exists")
    for name, kind in OPTIONS.items():
        flag = f"--{name.replace('_', '-')}"
        if kind is bool:
            parser.add_argument(flag, action="store_true", default=None, help=_HELP[name])
        else:
            parser.add_argument(flag, type=kind, help=_HELP[name])


def run(options: argparse.Namespace) -> int:
    """Writes it and says where, what it needs, and the command that runs it."""
    given = {name: getattr(options, name) for name in OPTIONS if getattr(options, name) is not None}
    recipe = Recipe.of(options.model, options.task, options.platform, options.card, **given)
    settings = recipe.settings
    if options.script:
        folder = options.output or recipe.name
        for path in recipe.save_script(folder, force=options.force):
            print(path)
        print(f"Run it: accelerate launch --config_file {folder}/accelerate.yaml {folder}/train.py")
        return 0
    print(recipe.save(options.output, force=options.force))
    print(
        f"{recipe.model.name}, {recipe.task.name}, for {recipe.platform.title} with {recipe.machine}: "
        f"{settings.method}, {settings.batch} × {settings.length:,} tokens at a time, "
        f"activations: {settings.activations}; "
        f"up to {settings.estimate.total_gb:.1f} of {recipe.machine.gpu.memory_gib:.1f} GB, "
        f"{settings.least / GB:.1f} GB at the least."
    )
    return 0
