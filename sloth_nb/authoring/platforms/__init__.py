"""Where a notebook will run: Colab, Kaggle, a plain Jupyter, a classroom. One data file each, beside this module.

A platform says which machines it lends, what its notebooks' metadata holds, where its badge leads, and where
files outlive the session.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from typing import Any

from sloth_nb import catalog
from sloth_nb.catalog import GPU, cpu, gpu, gpus
from sloth_nb.errors import HardwareError, NotebookError, did_you_mean

__all__ = ["BRANCH", "REPOSITORY", "Machine", "Platform", "platform", "platforms"]

# Where badges lead; a fork changes these two.
REPOSITORY, BRANCH = "sloth-nb/sloth-nb", "main"


@dataclass(frozen=True)
class Machine:
    """What a platform lends: cards and RAM, by the catalogue's offers.

    Attributes:
        name: as a user asks for it ("T4", "T4x2", "CPU").
        gpu: the card, or the CPU seen as one.
        count: how many of that card; a notebook trains on the first.
        says: what it costs, in a word or two.
        warning: what a user should know before choosing it.
    """

    name: str
    gpu: GPU
    count: int
    ram_gib: float
    says: str = ""
    warning: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def own(cls, card: GPU) -> "Machine":
        """A user's own: a usual amount of RAM beside the card."""
        return cls(card.name, card, 1, max(16.0, 2 * card.memory_gib))

    def __str__(self) -> str:
        return f"{self.count} × {self.gpu.name}" if self.count > 1 else self.gpu.name


@dataclass(frozen=True)
class Platform:
    """A place where notebooks run.

    Attributes:
        machines: the first is the one that is taken unless another is asked for.
        any_card: the card that is taken where the user has a machine of his own; then any other may be asked for.
        forms: whether it draws Colab's ``#@param`` comments as a form.
        output: the folder whose files are kept.
        badge, opens, opens_in: the picture, where it leads, and to whom if not to the title; empty where nothing opens
            a notebook from a repository.
        offline: whether its notebooks may be without internet, with everything attached.
        hide: metadata of a cell whose code is folded away at first.
        choose: how another card is chosen, in a sentence.
        secrets: where a token is kept (``says``), and the code that takes it from there into ``HF_TOKEN``.
    """

    name: str
    title: str
    output: str
    metadata: Mapping[str, Any]
    machines: tuple[Machine, ...] = ()
    any_card: str = ""
    forms: bool = False
    badge: str = ""
    opens: str = ""
    opens_in: str = ""
    offline: bool = False
    choose: str = ""
    hide: Mapping[str, Any] = field(default_factory=dict)
    secrets: Mapping[str, str] | None = None

    def machine(self, name: str | None = None) -> Machine:
        """The machine of that name, in any spelling; without one, the usual.

        Raises:
            HardwareError: this platform lends no such machine; with those it does.
        """
        if self.any_card:
            return _own_machine(name or self.any_card)
        if name is None:
            return self.machines[0]
        for machine in self.machines:
            if _plain(name) in map(_plain, (machine.name, str(machine), machine.gpu.name)):
                return machine
        raise HardwareError(
            f"{self.title} lends no {name!r}. It has: {', '.join(machine.name for machine in self.machines)}."
        )

    @property
    def machine_names(self) -> list[str]:
        """What ``machine`` takes: of a platform where any card may be, the catalogue's cards."""
        if self.any_card:
            return [*(card.name for card in gpus()), "CPU"]
        return [machine.name for machine in self.machines]

    def notebook_metadata(self, machine: Machine, *, offline: bool = False) -> dict[str, Any]:
        """The metadata of a notebook for this machine, with or without internet.

        Raises:
            NotebookError: a platform whose notebooks always have internet.
        """
        metadata = {**self.metadata, **machine.metadata}
        if not offline:
            return metadata
        if not self.offline:
            able = ", ".join(one.name for one in platforms() if one.offline)
            raise NotebookError(f"offline is for {able}: {self.title} has no switch for the internet.")
        settings = {**metadata[self.name], "isInternetEnabled": False}
        return {**metadata, self.name: settings}

    def link(self, path: str) -> str:
        """Markdown of the badge that opens this file of the repository; empty where there is none."""
        if not self.opens:
            return ""
        where = self.opens.format(repository=REPOSITORY, branch=BRANCH, path=path)
        return f"[![Open in {self.opens_in or self.title}]({self.badge})]({where})"


def platforms() -> tuple[Platform, ...]:
    """Every platform, by the name of its file."""
    return tuple(_table().values())


def platform(name: "str | Platform") -> Platform:
    """A platform by name.

    Raises:
        NotebookError: no such platform; with the nearest.
    """
    if isinstance(name, Platform):
        return name
    found = _table().get(_plain(name))
    if found is None:
        hint = did_you_mean(_plain(name), _table(), 0.4)
        raise NotebookError(f"No platform named {name!r}.{hint} Known: {', '.join(_table())}.")
    return found


@lru_cache(maxsize=1)
def _table() -> dict[str, Platform]:
    files = (file for file in resources.files(__package__).iterdir() if file.name.endswith(".toml"))
    found = {}
    for file in sorted(files, key=lambda file: file.name):
        name = file.name.removesuffix(".toml")
        row = tomllib.loads(file.read_text("utf-8"))
        machines = tuple(_lent(**machine) for machine in row.pop("machines", ()))
        found[name] = Platform(name=name, machines=machines, **row)
    return found


def _lent(name: str, offer: str, **more: Any) -> Machine:
    lent = catalog.offer(offer)
    return Machine(name, lent.gpu or cpu(lent.ram_gib), max(1, lent.count), lent.ram_gib, **more)


def _own_machine(card: str) -> Machine:
    return Machine("CPU", cpu(16), 1, 16) if _plain(card) == "cpu" else Machine.own(gpu(card))


def _plain(name: str) -> str:
    return "".join(letter for letter in str(name).lower().replace("×", "x") if letter.isalnum())
