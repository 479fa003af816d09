"""NotebookMaker: model × task × place × card, what the notebook will hold, and a button that writes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import traitlets

from sloth_nb import catalog
from sloth_nb.authoring.platforms import platform, platforms
from sloth_nb.authoring.recipe import Recipe
from sloth_nb.authoring.settings import ONE_OF
from sloth_nb.authoring.tasks import tasks
from sloth_nb.errors import SlothError

from . import controls
from .html import Markup, element, join, numbers_table, refusal
from .panel import Panel

__all__ = ["NotebookMaker"]

USUAL = "its usual one"
AUTO = "worked out"


class NotebookMaker(Panel):
    """Choose what to teach which model, and where; see the outline and the settings; save the notebook.

    Args:
        picker: a ``ModelPicker``, whose model and method are taken over, now and when they change.
        estimator: a ``VramEstimator``, whose model, method, batch, length, rank and activations are.

    Example:
        >>> maker = NotebookMaker(model="qwen3-14b", platform="kaggle"); maker      # shows itself
        >>> maker.save()                                                            # what the button does
        >>> print(maker.as_code())                                                  # the same without a widget
    """

    heading = "Make a notebook"

    model = traitlets.Unicode("smollm2-135m-instruct", help="catalogue name, hub id or folder")
    task = traitlets.Enum(tuple(one.name for one in tasks()), "sft", help="what it learns")
    platform = traitlets.Enum(tuple(one.name for one in platforms()), "colab", help="where it will run")
    card = traitlets.Unicode(USUAL, help="a machine of that place")
    method = traitlets.Enum((AUTO, "qlora", "lora"), AUTO, help="how the weights are held")
    length = traitlets.Int(0, help="tokens a row; 0 is worked out")
    batch = traitlets.Int(0, help="rows at a time; 0 is worked out")
    rank = traitlets.Int(0, help="of the adapters; 0 is the model's usual one")
    activations = traitlets.Unicode("", help="what becomes of them; empty is worked out")
    data = traitlets.Unicode("", help="your rows; empty is the example")
    path = traitlets.Unicode("", help="where it is saved; empty is here, under its own name")
    overwrite = traitlets.Bool(False, help="write over a file that exists")

    def __init__(self, picker: Any = None, estimator: Any = None, **arguments: Any):
        super().__init__(**arguments)
        self._cards: widgets.Dropdown | None = None
        self._recipe: Recipe | None = None
        self._error = ""
        if picker is not None:
            self._follow(picker, {"chosen": "model", "method": "method"})
        if estimator is not None:
            names = ("model", "method", "batch", "length", "rank")
            same = dict(zip(names, names, strict=True))
            self._follow(estimator, {**same, "policy": "activations", "gpu": "card"})
        self._compute()

    # The answer, for a script --------------------------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        """What is chosen, as a recipe.

        Raises:
            SlothError: the choice makes no notebook, as the panel says.
        """
        if self._recipe is None:
            raise SlothError(self._error)
        return self._recipe

    def as_code(self) -> str:
        """The call that makes this notebook."""
        return f"import sloth_nb\n\n{self.recipe.code(self.path or None)}"

    def save(self) -> Path:
        """Writes the notebook.

        Raises:
            SlothError: there is none to write, or the file exists and ``overwrite`` is off.
        """
        return self.recipe.save(self.path or None, force=self.overwrite)

    # Following other panels ------------------------------------------------------------------------------

    def _follow(self, other: traitlets.HasTraits, names: dict[str, str]) -> None:
        """Takes over the other panel's traits, now and whenever they change."""

        for theirs, mine in names.items():

            def take(change: Any = None, theirs: str = theirs, mine: str = mine) -> None:
                setattr(self, mine, self._translated(mine, getattr(other, theirs)))

            take()
            other.observe(take, names=theirs)

    def _translated(self, name: str, value: Any) -> Any:
        """Another panel's value in this one's words; what a notebook has no word for is left to be worked out."""
        if name == "method":
            return value if value in ("qlora", "lora") else AUTO
        if name == "activations":
            return value if value in ONE_OF["activations"] else ""
        if name == "card":
            return value if self._lends(value) else USUAL
        return value

    def _lends(self, card: str) -> bool:
        try:
            platform(self.platform).machine(card)
        except SlothError:
            return False
        return True

    # The panel -----------------------------------------------------------------------------------------

    def _controls(self) -> Sequence[widgets.Widget]:
        models = [info.name for info in catalog.models()]
        self._cards = controls.choice(self, "card", "Card", self._card_names())
        return (
            controls.row(
                controls.combobox(
                    self, "model", "Model", models, help="type to search; any folder works too"
                ),
                controls.choice(self, "task", "Task", [(one.title, one.name) for one in tasks()]),
            ),
            controls.row(
                controls.choice(self, "platform", "Place", [(one.title, one.name) for one in platforms()]),
                self._cards,
                controls.choice(self, "method", "Method", self.traits()["method"].values),
            ),
            controls.fold(
                "More settings",
                controls.row(
                    controls.number(self, "length", "Length", 0, 1 << 20, 64, help="0: worked out"),
                    controls.number(self, "batch", "Batch", 0, 1024, help="0: worked out"),
                    controls.number(self, "rank", "Rank", 0, 1024, help="0: the model's usual one"),
                ),
                controls.text(
                    self, "data", "Data", placeholder="a file, a folder, an id on the Hub", live=False
                ),
                help="shows or hides what is worked out otherwise",
            ),
            controls.row(
                controls.text(self, "path", "File", placeholder="here, under its own name", live=False),
                controls.checkbox(self, "overwrite", "Write over it"),
                controls.button("Save", self._save, help="writes the notebook", look="primary"),
            ),
        )

    def _card_names(self) -> list[str]:
        names = [USUAL, *platform(self.platform).machine_names]
        return names if self.card in names else [*names, self.card]

    def _save(self) -> None:
        try:
            self.say(f"Saved {self.save()}.")
        except SlothError as error:
            self.say(str(error), "bad")

    def _changed(self, change: Any) -> None:
        if change["name"] == "platform" and self.card != USUAL:
            self.card = USUAL  # another place lends other cards
        if change["name"] == "platform" and self._cards is not None:
            self._cards.options = self._card_names()
        if change["name"] not in ("path", "overwrite"):
            self._compute()

    def _compute(self) -> None:
        if not hasattr(self, "_error"):  # a trait that the constructor sets
            return
        given = {name: getattr(self, name) for name in ("length", "batch", "rank", "activations", "data")}
        if self.method != AUTO:
            given["method"] = self.method
        card = None if self.card == USUAL else self.card
        try:
            options = {name: value for name, value in given.items() if value}
            self._recipe, self._error = Recipe.of(self.model, self.task, self.platform, card, **options), ""
        except SlothError as error:
            self._recipe, self._error = None, str(error)

    def _view(self) -> Markup:
        if self._recipe is None:
            return refusal(self._error)
        recipe, settings = self._recipe, self._recipe.settings
        title, *headings = recipe.outline()
        used = f"{settings.estimate.total_gb:.1f} of {recipe.machine.gpu.memory_gib:.1f} GB"
        return join(
            [
                element(
                    "div",
                    element("b", title),
                    element("span", f"fits {recipe.machine}: up to {used}", class_="sloth-badge good"),
                    class_="sloth-head",
                ),
                element("p", recipe.machine.warning, class_="sloth-status warn")
                if recipe.machine.warning
                else None,
                element("ul", [element("li", line) for line in headings], aria_label="Outline"),
                _settings_table(recipe),
                element(
                    "pre",
                    element("code", f"{self.as_code()}\n\n# or, in a shell\n# {recipe.command()}"),
                    class_="sloth-code",
                ),
            ]
        )

    def _text(self) -> str:
        if self._recipe is None:
            return self._error
        title, *headings = self._recipe.outline()
        return "\n".join([title, *(f"  {line}" for line in headings), self.as_code(), self._recipe.command()])


def _settings_table(recipe: Recipe) -> Markup:
    settings = recipe.settings
    rows = [
        ("Method", f"{settings.method}, rank {settings.rank}"),
        ("A step", f"{settings.batch} × {settings.accumulation} rows of up to {settings.length:,} tokens"),
        ("Steps", f"{settings.steps}, learning rate {settings.learning_rate:g}"),
        ("Activations", settings.activations),
        ("Data", settings.data or recipe.task.data),
        ("File", f"{recipe.name}-{recipe.platform.name}.ipynb"),
    ]
    return numbers_table("What it begins with", ("", ""), rows)
