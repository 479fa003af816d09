"""The index of the notebooks: a table a task, the easiest first, with a badge that opens each where it runs."""

from collections.abc import Sequence

from sloth_nb.authoring.recipe import Recipe
from sloth_nb.authoring.render import gib, minutes
from sloth_nb.authoring.tasks import COMING, Task

__all__ = ["index"]

_TOP = """<!-- Written by `make notebooks` from the recipes in sloth_nb/authoring: change those, not this file. -->
# Notebooks

**New here?** Take the first one, [quickstart.ipynb](quickstart.ipynb): it needs no GPU and three minutes. Then, with a
free card, the first row of the first table. To understand what happens in them: [the classroom](classroom/README.md),
eight lessons for any laptop.

Each notebook says on top what it makes, what it needs and how long it takes; then it installs, lets you pick a model,
looks at the data, estimates, trains with live curves, lets you talk to the model before and after, and saves. They run
with widgets and, started from a command line, without.

A badge opens the published repository. Until your copy is published, upload the file itself: Colab and Kaggle both take
an `.ipynb`.

Memory is by the memory model: the least that will do, and what a run uses on the card that is named, to be faster. Time
is worked out from data sheets, downloads included. Neither was measured on that card. Another model, card or length:
`sloth-nb notebook qwen3-8b --task sft --platform colab --card L4`.

How a run looks: [with Colab's versions](images/colab-run.png) of the widgets, the plots and the kernel (in the classic
notebook), and [with Kaggle's](images/kaggle-run.png) (in JupyterLab); on a CPU, ten steps.
"""
_END = """
## Not here yet

{coming}: their trainers are not in this version, so no notebook pretends to use them.
"""


def index(recipes: Sequence[Recipe]) -> str:
    """Markdown of the whole index."""
    tasks = sorted({one.task.name: one.task for one in recipes}.values(), key=lambda task: task.order)
    parts = [
        _TOP,
        *(_section(task, [one for one in recipes if one.task.name == task.name]) for task in tasks),
    ]
    coming = ", ".join(f"{says} ({name})" for name, (says, _) in COMING.items())
    return "\n".join(parts) + _END.format(coming=coming[:1].upper() + coming[1:])


def _section(task: Task, recipes: list[Recipe]) -> str:
    """One task: what it is for, and a row a model."""
    rows: dict[str, list[Recipe]] = {}
    for one in recipes:
        rows.setdefault(one.model.name, []).append(one)
    lines = [
        f"## {task.title}",
        "",
        task.learns,
        "",
        "| model | card | memory | time | open |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *(_row(name, ones) for name, ones in rows.items()), ""])


def _row(name: str, recipes: list[Recipe]) -> str:
    first = recipes[0]
    used, least = gib(first.settings.estimate.total), gib(first.settings.least)
    need = used if used == least else f"{least}; uses up to {used}"
    links = " ".join(_link(one) for one in recipes)
    card = f"{first.machine.gpu.name} ({first.machine.gpu.memory_gib:.1f} GB)"
    return f"| {name} ({first.model.size}) | {card} | {need} | about {minutes(first.seconds)} | {links} |"


def _link(recipe: Recipe) -> str:
    path = f"{recipe.platform.name}/{recipe.name}.ipynb"
    return recipe.platform.link(f"notebooks/{path}") or f"[{recipe.platform.title}]({path})"
