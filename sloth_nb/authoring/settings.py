"""The numbers of a notebook: the model's good defaults, and the fastest way that surely fits the machine.

Batch and length are chosen here, from the planner's formulas and with room to spare, because those haven't met every
card yet. What each layer keeps is planned when training begins, for the room that the card then has.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sloth_nb.authoring.platforms import Machine
from sloth_nb.authoring.possible import TEXT_PART, check
from sloth_nb.authoring.tasks import Task
from sloth_nb.catalog import GPU, ModelInfo, gpus, models
from sloth_nb.errors import HardwareError, NotebookError, SlothError, did_you_mean
from sloth_nb.memory import Estimate, Work, estimate_work, step_seconds

__all__ = ["OPTIONS", "Settings", "settle"]

SHARE = 0.92  # of a card's memory that a notebook's settings may take, by the formulas
CPU_SHARE = 0.8
WAYS = ("keep", "recompute", "offload")
SHORTEST = 512
EMBEDDED = 93_000_000  # bytes of the package that holds the offline model
CPU_LENGTH, CPU_SEQUENCES, CPU_STEPS = 512, 4, 30
QUANTISED_FROM = 1_000_000_000  # parameters; below that 4 bits save little

ONE_OF = {"method": ("qlora", "lora"), "activations": ("auto", *WAYS)}
# What a caller may set himself; everything else is worked out.
OPTIONS = {
    "method": str,
    "length": int,
    "batch": int,
    "accumulation": int,
    "rank": int,
    "learning_rate": float,
    "steps": int,
    "activations": str,
    "data": str,
    "offline": bool,
}


@dataclass(frozen=True)
class Settings:
    """What a notebook's parameters cell begins with.

    Attributes:
        model: what is fetched; of a model that also sees, the language part alone may be what is trained.
        activations: what becomes of them: "auto" plans each layer for the room that there is when training begins.
        policy: the one word for all layers ("keep", "recompute", "offload") with which the estimate was made.
        least: bytes with which the same rows still train, one at a time and with everything moved that can be.
        estimate: of memory, all rows being ``length`` long.
        seconds: of a step on the shipped data, roughly.
    """

    model: ModelInfo
    method: str
    length: int
    batch: int
    accumulation: int
    rank: int
    alpha: int
    learning_rate: float
    steps: int
    activations: str
    policy: str
    optimiser: str
    data: str
    least: int
    estimate: Estimate
    seconds: float

    @property
    def adapter_bytes(self) -> int:
        """Of the saved adapter, in fp32."""
        return 4 * self.estimate.trainable

    @property
    def download_bytes(self) -> int:
        """Of the weights that are fetched: 4-bit ones where they are published, else 16-bit ones."""
        if self.model.offline:
            return EMBEDDED
        if self.method == "qlora" and "4bit" in self.model.ids:
            whole = self.estimate.work.but(model=self.model)
            return estimate_work(whole, self.estimate.gpu).kinds["weights"]
        return 2 * self.model.parameters

    @property
    def training_seconds(self) -> float:
        """Of all steps on the shipped data, roughly."""
        return self.steps * self.seconds

    @property
    def merged_bytes(self) -> int:
        return 2 * self.estimate.work.model.parameters


def settle(model: ModelInfo, task: Task, machine: Machine, **options: Any) -> Settings:
    """The settings for this model and task on this machine; what ``options`` gives is taken as given.

    Raises:
        NotebookError: an option that doesn't exist, or isn't of its kind.
        TrainingError: a value that can't be.
        HardwareError: the machine is too small; with what would do, and a smaller model.
    """
    given = _checked(options)
    found = _fastest(model, task, machine, given)
    if found is None:
        raise HardwareError(_too_small(model, task, machine, given))
    work = found.work
    cpu = machine.gpu.is_cpu
    usual = work.but(length=work.length if task.packed else min(task.usual, work.length))
    return Settings(
        model=model,
        method=work.method,
        length=work.length,
        batch=work.batch,
        accumulation=work.accumulation,
        rank=work.rank,
        alpha=round(work.rank * model.training.alpha / model.training.rank),
        learning_rate=given.get("learning_rate", model.training.learning_rate),
        steps=given.get("steps", CPU_STEPS if cpu else task.steps),
        policy=work.policy,
        activations=given.get("activations", work.policy if cpu else "auto"),
        optimiser="adamw_torch" if cpu else work.optimiser,
        data=given.get("data", ""),
        least=_least(work, machine),
        estimate=found,
        seconds=step_seconds(usual, machine.gpu),
    )


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        if name not in OPTIONS:
            hint = did_you_mean(name, OPTIONS)
            raise NotebookError(f"A notebook has no option {name!r}.{hint} It has: {', '.join(OPTIONS)}.")
        kind = OPTIONS[name]
        right = isinstance(value, (int, float) if kind is float else kind)
        right = right and isinstance(value, bool) == (kind is bool)
        if not right or (kind in (int, float) and value <= 0):
            wanted = {
                int: "a whole number above 0",
                float: "a number above 0",
                str: "a text",
                bool: "True or False",
            }[kind]
            raise NotebookError(f"{name} is {value!r}; it must be {wanted}.")
        if name in ONE_OF and value not in ONE_OF[name]:
            raise NotebookError(f"{name} is {value!r}; in a notebook it is one of {', '.join(ONE_OF[name])}.")
    return options


def _fastest(model: ModelInfo, task: Task, machine: Machine, given: dict[str, Any]) -> Estimate | None:
    """The longest that fits up to what the task asks, and of that the fastest."""
    for works in _by_length(model, task, machine, given):
        fitting = [answer for work in works if _fits(answer := estimate_work(work, machine.gpu), machine)]
        if fitting:
            return min(fitting, key=lambda answer: step_seconds(answer.work, machine.gpu))
    return None


def _least(work: Work, machine: Machine) -> int:
    return estimate_work(work.but(batch=1, policy=work.leanest(machine.gpu)), machine.gpu).total


def _fits(answer: Estimate, machine: Machine) -> bool:
    share = CPU_SHARE if machine.gpu.is_cpu else SHARE
    return answer.total <= share * machine.gpu.memory and answer.host <= machine.ram_gib * 2**30 / 2


def _by_length(
    model: ModelInfo, task: Task, machine: Machine, given: dict[str, Any]
) -> Iterator[Iterator[Work]]:
    length = min(task.length, CPU_LENGTH if machine.gpu.is_cpu else task.length, model.context or task.length)
    lengths = (
        [given["length"]] if "length" in given else [length >> n for n in range(8) if length >> n >= SHORTEST]
    )
    for tokens in lengths or [length]:
        yield _works(model, task, machine.gpu, tokens, given)


def _works(model: ModelInfo, task: Task, card: GPU, length: int, given: dict[str, Any]) -> Iterator[Work]:
    """Every micro-batch and every way to hold activations, at one length."""
    sequences = CPU_SEQUENCES if card.is_cpu else task.sequences
    if "batch" in given:
        batches = [given["batch"]]
    else:
        batches = [size for size in range(1, sequences + 1) if sequences % size == 0]
    ways = (
        [given["activations"]]
        if given.get("activations", "auto") != "auto"
        else [w for w in WAYS if not (card.is_cpu and w == "offload")]
    )
    method = given.get("method") or _method(model, card)
    for batch in batches:
        for way in ways:
            yield Work.of(
                model,
                text_only=model.config.get("model_type") in TEXT_PART,
                method=method,
                batch=batch,
                accumulation=given.get("accumulation", max(1, sequences // batch)),
                length=length,
                rank=given.get("rank", max(task.rank, model.training.rank)),
                targets=model.training.targets,
                policy=way,
                packed=task.packed,
                optimiser="adamw_torch" if card.is_cpu else "adamw_8bit",
            )


def _method(model: ModelInfo, card: GPU) -> str:
    return "lora" if card.is_cpu or model.parameters < QUANTISED_FROM else "qlora"


def _too_small(model: ModelInfo, task: Task, machine: Machine, given: dict[str, Any]) -> str:
    shortest = {"length": SHORTEST, **given}
    (works,) = _by_length(model, task, machine, shortest)
    least = min((estimate_work(work, machine.gpu) for work in works), key=lambda answer: answer.total)
    says = (
        f"{model.name} does not fit {machine.gpu.name} ({machine.gpu.memory_gib:.1f} GB): at its leanest it takes "
        f"{least.total_gb:.1f} GB, and some must stay free."
    )
    large = next(
        (
            card
            for card in sorted(gpus(), key=lambda card: card.memory_gib)
            if _fastest(model, task, Machine.own(card), given)
        ),
        None,
    )
    says += f" The smallest card that takes it is {large.name}." if large else " No single card takes it."
    if (other := _smaller(model, task, machine, given)) is not None:
        says += f" {machine.gpu.name} takes {other.name}."
    return says


def _smaller(model: ModelInfo, task: Task, machine: Machine, given: dict[str, Any]) -> ModelInfo | None:
    """The largest model that fits, of the same family if there is one, else of the same kind."""
    best: tuple[bool, int] = (False, 0)
    found = None
    for other in models():
        rank = (other.family == model.family, other.parameters)
        if other.parameters >= model.parameters or other.kind != model.kind or rank <= best:
            continue
        try:
            check(other, task)
            fits = _fastest(other, task, machine, given) is not None
        except SlothError:
            continue
        if fits:
            best, found = rank, other
    return found
