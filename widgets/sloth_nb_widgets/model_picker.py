"""ModelPicker: search the catalogue, see what fits the card, choose, load."""

import time
from collections.abc import Sequence
from typing import Any

import ipywidgets as widgets
import traitlets

from sloth_nb import catalog
from sloth_nb.catalog import GPU, ModelInfo
from sloth_nb.errors import did_you_mean
from sloth_nb.memory import GB, METHODS, Estimate, Work, estimate_work
from sloth_nb.memory.budget import usable_ram

from . import controls
from .cards import THIS_MACHINE, CardName, card_names, card_of
from .estimate_view import notes, why_not
from .html import Markup, element, join, numbers_table, refusal, stylesheet
from .panel import Panel, PanelArgumentError

__all__ = ["ModelPicker"]

ANY = "any"
SIZES = {
    ANY: (0, float("inf")),
    "up to 1B": (0, 1e9),
    "1B to 4B": (1e9, 4.5e9),
    "4B to 9B": (4.0e9, 9e9),
    "9B to 20B": (9e9, 20e9),
    "over 20B": (20e9, float("inf")),
}
# Seconds after an Enter in which letters may still be on their way.
SETTLES = 1.0
FITS, ONE, OFFLOADS, NOT = "fits", "fits at batch 1", "fits with offload", "does not fit"
LOOKS = {FITS: ("✓", "good"), ONE: ("~", "warn"), OFFLOADS: ("~", "warn"), NOT: ("✗", "bad")}


class ModelPicker(Panel):
    """Search as you type, filter, see what fits the card, and take the choice to ``from_pretrained``.

    Example:
        >>> picker = ModelPicker(gpu="T4"); picker                    # shows itself
        >>> model, tokenizer = FastLanguageModel.from_pretrained(picker.value, load_in_4bit=picker.four_bit)
    """

    heading = "Pick a model"

    query = traitlets.Unicode("", help="words that must all be there")
    family = traitlets.Unicode(ANY)
    size = traitlets.Enum(tuple(SIZES), ANY)
    modality = traitlets.Unicode(ANY)
    licence = traitlets.Unicode(ANY)
    task = traitlets.Unicode(ANY)
    gpu = CardName(THIS_MACHINE, help="the card that it must fit")
    method = traitlets.Enum(tuple(METHODS), "qlora", help="how it will be trained")
    length = traitlets.Int(2048, help="tokens a sequence, for the fit")
    chosen = traitlets.Unicode(
        "smollm2-135m-instruct", help="the chosen model: a catalogue name, or a folder"
    )

    _entered = float("-inf")

    def __init__(self, models: Sequence[ModelInfo] | None = None, **arguments: Any):
        self._entries = tuple(catalog.models() if models is None else models)
        self._by_name = {info.name: info for info in self._entries}
        if "chosen" not in arguments and self._entries and self.chosen not in self._by_name:
            arguments["chosen"] = self._entries[0].name
        super().__init__(**arguments)
        self._fits: dict[tuple[Any, ...], tuple[str, Estimate]] = {}
        self._list: widgets.Select | None = None
        self._filling = False
        self._found: list[ModelInfo] = []
        self._search()

    @traitlets.validate("family", "modality", "licence", "task")
    def _of_the_catalogue(self, proposal: Any) -> str:
        """In any case. Refuses what no entry has: a drop-down can't show it."""
        name, value = proposal["trait"].name, proposal["value"]
        known = self._filter_values(name)
        for one in known:
            if one.lower() == value.strip().lower():
                return one
        hint = did_you_mean(value, known)
        raise PanelArgumentError(
            f"No model has the {name} {value!r}.{hint} It is one of: {', '.join(known)}."
        )

    def _filter_values(self, name: str) -> list[str]:
        if name == "task":
            return [ANY, *sorted({task for info in self._entries for task in info.tasks})]
        return [ANY, *sorted({getattr(info, name) for info in self._entries})]

    # The choice, for a script ---------------------------------------------------------------------------

    @property
    def choice(self) -> ModelInfo:
        """The chosen entry.

        Raises:
            ModelError: ``chosen`` was set to what is neither in the catalogue nor a model's folder; with the nearest.
        """
        return self._by_name.get(self.chosen) or catalog.resolve(self.chosen)

    @property
    def value(self) -> str:
        """What ``from_pretrained`` takes: the repository, or the offline model's own name."""
        info = self.choice
        if info.offline:
            return info.name
        return info.ids.get("4bit" if self.four_bit else "16bit", info.hub_id)

    @property
    def four_bit(self) -> bool:
        """Whether to load in 4 bits, as the method says."""
        return self.method == "qlora"

    def fit(self, info: ModelInfo) -> tuple[str, Estimate]:
        """How a model fits the card ("fits", "fits with offload", "fits at batch 1" where nothing can be
        moved, "does not fit"), and that estimate."""
        card = card_of(self.gpu)
        key = (info.name, info.parameters, card.name, card.memory, self.method, self.length)
        if key not in self._fits:
            self._fits[key] = _fit(info, card, self.method, self.length)
        return self._fits[key]

    # The panel -----------------------------------------------------------------------------------------

    def _controls(self) -> Sequence[widgets.Widget]:
        self._list = widgets.Select(rows=12, layout=widgets.Layout(width="100%"), description="Models")
        self._list.add_class("sloth-models")
        self._fill()
        self._list.observe(self._on_select, "value")
        return (
            controls.row(
                controls.text(
                    self,
                    "query",
                    "Search",
                    placeholder="llama 8b, apache, whisper …; Enter takes the first",
                    on_enter=self._enter,
                ),
                controls.choice(self, "gpu", "Card", card_names()),
                controls.choice(self, "method", "Method", tuple(METHODS)),
            ),
            controls.row(
                controls.choice(self, "family", "Family", self._filter_values("family")),
                controls.choice(self, "size", "Size", tuple(SIZES)),
                controls.choice(self, "modality", "Modality", self._filter_values("modality")),
                controls.choice(self, "licence", "Licence", self._filter_values("licence")),
                controls.choice(self, "task", "Task", self._filter_values("task")),
            ),
        )

    def _body(self) -> Sequence[widgets.Widget]:
        # JupyterLab takes the arrow keys from a list in an output; these two, Home and End work everywhere.
        steps = controls.row(
            controls.button("Previous", lambda: self._step(-1), help="choose the model above"),
            controls.button("Next", lambda: self._step(1), help="choose the model below"),
        )
        return (self._list, steps, *super()._body())

    def _step(self, by: int) -> None:
        """Chooses the model that stands so many lines below the chosen one; 0 is the first of the list."""
        if by:
            self._entered = float("-inf")
        if self._found:
            names = [info.name for info in self._found]
            at = names.index(self.chosen) + by if by and self.chosen in names else 0
            self.chosen = names[max(0, min(at, len(names) - 1))]

    def _changed(self, change: Any) -> None:
        if change["name"] == "chosen":
            self._mark()
        else:
            self._search()
            self._fill()
            if change["name"] == "query" and time.monotonic() - self._entered < SETTLES:
                self._step(0)

    def _enter(self) -> None:
        """Takes the first. To a busy kernel the last letters may come after the Enter that followed them."""
        self._entered = time.monotonic()
        self._step(0)

    def _search(self) -> None:
        low, high = SIZES[self.size]
        self._found = catalog.search(
            self.query,
            self._entries,
            family=_wish(self.family),
            modality=_wish(self.modality),
            licence=_wish(self.licence),
            task=_wish(self.task),
            min_parameters=low,
            max_parameters=high,
        )

    def _fill(self) -> None:
        """The list's lines, the chosen one marked when it is among them."""
        if self._list is None:
            return
        self._filling = True  # new options select their first, which nobody chose
        try:
            self._list.options = [(_wide(self._line(info)), info.name) for info in self._found]
            self._mark()
        finally:
            self._filling = False

    def _mark(self) -> None:
        if self._list is not None:
            shown = any(info.name == self.chosen for info in self._found)
            self._list.value = self.chosen if shown else None

    def _line(self, info: ModelInfo) -> str:
        how, estimate = self.fit(info)
        offline = ", offline" if info.offline else ""
        columns = (
            f"{LOOKS[how][0]} {info.name}".ljust(38),
            info.size.rjust(6),
            f"{estimate.total_gb:.1f} GB".rjust(9),
            how.ljust(17),
            f"{info.licence}{offline}",
        )
        return "  ".join(columns)

    def _on_select(self, change: Any) -> None:
        if change["new"] and not self._filling:
            self.chosen = change["new"]

    def _view(self) -> Markup:
        try:
            info, card = self.choice, card_of(self.gpu)
            how, estimate = self.fit(info)
        except Exception as error:  # a folder's config may hold anything; the panel must stay
            return refusal(why_not(self.chosen, error))
        count = f"{len(self._found)} of {len(self._entries)} models"
        return join(
            [
                stylesheet("models"),
                element("p", count, class_="quiet", role="status", aria_live="polite"),
                element(
                    "div",
                    element("b", info.name),
                    element(
                        "span",
                        f"{how} {card.name}: {estimate.total_gb:.1f} of {card.memory_gib:.1f} GB{_ram(estimate)}",
                        class_=f"sloth-badge {LOOKS[how][1]}",
                    ),
                    element(
                        "span",
                        f"{self.method}, {estimate.work.batch} × {self.length:,} tokens",
                        class_="quiet",
                    ),
                    class_="sloth-head",
                ),
                notes(estimate),
                element("pre", element("code", info.code(self.four_bit)), class_="sloth-code"),
                element("div", _details(info), class_="sloth-about"),
                element("p", _gate(info), class_="quiet") if info.gated else None,
            ]
        )

    def _text(self) -> str:
        lines = [f"{len(self._found)} of {len(self._entries)} models; chosen: {self.chosen}"]
        return "\n".join([*lines, *(f"  {self._line(info)}" for info in self._found)])


def _wide(line: str) -> str:
    """Browsers fold spaces in a list's lines together, but not these."""
    return line.replace(" ", "\N{NO-BREAK SPACE}")


def _wish(value: str) -> str | None:
    return None if value == ANY else value


def _fit(info: ModelInfo, card: GPU, method: str, length: int) -> tuple[str, Estimate]:
    """The usual way first; then with everything that makes room and leaves the result alone, the RAM's, too."""
    work = Work(info, method=method, batch=2, length=min(length, info.context or length))
    usual = estimate_work(work, card)
    if usual.fits:
        return FITS, usual
    one = work.but(batch=1, accumulation=2)
    if work.engine == "sloth":
        one = one.but(loss_chunk=64 << 20)
    for policy in dict.fromkeys((work.leanest(card), "lean" if work.engine == "sloth" else "recompute")):
        way = OFFLOADS if policy == "offload" else ONE
        tight = estimate_work(one.but(policy=policy), card)
        if tight.fits and tight.host <= usable_ram():
            return way, tight
    return NOT, usual


def _ram(estimate: Estimate) -> str:
    return f", takes {estimate.host / GB:.1f} GB of RAM" if estimate.host else ""


def _details(info: ModelInfo) -> Markup:
    rows = [
        ("What it is", f"{info.title} by {info.publisher}, {info.kind}, {info.modality}"),
        ("Parameters", f"{info.parameters:,}"),
        ("Context", f"{info.context:,} tokens"),
        ("Trains for", ", ".join(info.tasks)),
        ("Licence", info.licence + (" (gated)" if info.gated else "")),
        ("Chat template", info.template or "none: a base model"),
        ("Begin with", f"rank {info.training.rank}, learning rate {info.training.learning_rate:g}"),
        ("Facts from", info.source),
    ]
    return numbers_table("About it", ("", ""), rows)


def _gate(info: ModelInfo) -> str:
    return (
        f"Its owner asks you to accept the licence once at huggingface.co/{info.hub_id}; after that a token "
        f"of your account (the HF_TOKEN environment variable, or huggingface_hub's login) lets you load it."
    )
