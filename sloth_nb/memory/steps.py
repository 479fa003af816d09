"""What may be changed of a run, step by step: each with its cost in words, and a weight by which they are ordered."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sloth_nb.catalog import GPU, ModelInfo, models
from sloth_nb.memory.engines import engine_runs
from sloth_nb.memory.formulas import host_bytes
from sloth_nb.memory.work import Work

__all__ = ["TAKES_RAM", "Step", "another_result", "back_on_the_card", "options_of", "same_result"]

SMALL_CHUNK = 64 << 20
TAKES_RAM = "takes RAM"
TILE = 2048


@dataclass(frozen=True)
class Step:
    weight: float
    say: str
    cost: str
    options: dict[str, object]

    @property
    def takes_ram(self) -> bool:
        return TAKES_RAM in self.cost

    def changes(self, work: Work) -> bool:
        """Whether the work isn't so already."""
        return any(getattr(work, name) != value for name, value in self.options.items())

    def replaces(self, other: "Step") -> bool:
        """Whether it is another value of the same options."""
        return self.options.keys() == other.options.keys()

    def is_as_strong_as(self, other: "Step") -> bool:
        """Whether it is that step, or a stronger value of the same options."""
        return self.replaces(other) and self.weight >= other.weight


def options_of(steps: tuple[Step, ...]) -> dict[str, Any]:
    return {key: value for step in steps for key, value in step.options.items()}


# Each is without effect on work that doesn't move that. Never weighed: they have to be.
_KEPT_ON_THE_CARD = (
    Step(0.0, "keep each layer's input on the card (policy='lean')", "same result", {"policy": "lean"}),
    Step(0.0, "keep the embeddings on the card", "same result", {"embedding_offload": False}),
    Step(
        0.0,
        "keep the optimiser's states on the card (optim='adamw_8bit')",
        "same result",
        {"optimiser": "adamw_8bit"},
    ),
)


def back_on_the_card(work: Work, gpu: GPU, host: int) -> tuple[Step, ...]:
    """What has to change because there is too little RAM for it: what frees most of it first."""
    steps: tuple[Step, ...] = ()
    while (now := host_bytes(work.but(**options_of(steps)), gpu)) > host:
        left, way = min(
            ((host_bytes(work.but(**options_of((*steps, way))), gpu), way) for way in _KEPT_ON_THE_CARD),
            key=lambda answer: answer[0],
        )
        if left >= now:
            break
        steps = (*steps, way)
    return steps


def same_result(work: Work) -> Iterator[Step]:
    """How things are held and in what portions they are computed."""
    same, policies = "same result", {work.policy} if isinstance(work.policy, str) else set(work.policy)
    plain = work.engine == "hf" and not engine_runs(work.model)  # which have no other way than to recompute
    if work.engine == "hf" and not plain:
        yield Step(
            0.1, "use this package's engine (engine='sloth')", "same result, faster", {"engine": "sloth"}
        )
    if work.loss_chunk > SMALL_CHUNK and not plain:
        yield Step(0.2, "hold 64 MB of logits at a time (loss_chunk)", same, {"loss_chunk": SMALL_CHUNK})
    if work.tokens > TILE and not plain and (work.mlp_tile in (None, "auto") or int(work.mlp_tile) > TILE):
        say = f"run the MLP in tiles of {TILE:,} tokens (mlp_tile)"
        yield Step(0.3, say, "same result, a little slower", {"mlp_tile": TILE})
    for part in (2, 4, 8):
        if work.batch >= part and work.task != "grpo":
            batch, steps = -(-work.batch // part), work.accumulation * part
            say = f"batch {batch} with {steps} steps accumulated"
            yield Step(part / 4, say, "same result, a little slower", {"batch": batch, "accumulation": steps})
    if work.engine == "sloth" and work.lora and not work.model.shape.tied and not work.embedding_offload:
        say = "keep the embeddings in host memory (offload_embedding=True)"
        yield Step(0.6, say, f"same result, {TAKES_RAM}", {"embedding_offload": True})
    if "keep" in policies:
        say = "recompute activations (policy='recompute')"
        yield Step(1.0, say, "same result, about a quarter slower", {"policy": "recompute"})
    if policies & {"keep", "recompute"} and not plain:
        say = "keep only each layer's input (policy='lean')"
        yield Step(1.4, say, "same result, slower by the attention's forward", {"policy": "lean"})
    if policies != {"offload"} and not plain:
        say = "move activations to host memory (policy='offload')"
        yield Step(1.5, say, f"same result, {TAKES_RAM}", {"policy": "offload"})


def another_result(work: Work) -> Iterator[Step]:
    """Less to train, coarser weights and states, shorter rows."""
    if work.method == "full":
        yield Step(4.0, "train a LoRA instead (method='lora')", "fewer weights trained", {"method": "lora"})
    if work.method != "qlora":
        weight = 3.0 if work.lora else 6.0
        yield Step(
            weight, "load in 4 bits (method='qlora')", "slightly different weights", {"method": "qlora"}
        )
    if not engine_runs(work.model) and engine_runs(work.model.text_part):
        say = "train its language part alone (text_only=True), which this package's engine runs"
        yield Step(2.0, say, "no pictures", {"model": work.model.text_part})
    nearly = "nearly the same result"
    if work.optimiser not in ("adamw_8bit", "paged_adamw_8bit", "sgd"):
        yield Step(1.2, "8-bit AdamW (optim='adamw_8bit')", nearly, {"optimiser": "adamw_8bit"})
    if work.optimiser not in ("paged_adamw_8bit", "sgd"):
        say = "page an 8-bit optimiser to RAM (optim='paged_adamw_8bit')"
        yield Step(1.6, say, f"{nearly}, {TAKES_RAM}", {"optimiser": "paged_adamw_8bit"})
    for rank in (16, 8):
        if work.lora and work.rank > rank:
            yield Step(2.5 + 8 / rank, f"rank {rank}", "fewer weights trained", {"rank": rank})
    length = work.length // 2
    while length >= 256:
        say = f"cut sequences to {length:,} tokens"
        yield Step(5.0 + work.length / length, say, "longer rows are cut", {"length": length})
        length //= 2
    for place, smaller in enumerate(_smaller_kin(work.model)):
        yield Step(12.0 + place, f"train {smaller.name} instead", "a smaller model", {"model": smaller})


def _smaller_kin(info: ModelInfo) -> list[ModelInfo]:
    """The next three smaller models of the same family, kind and modality, the largest first."""
    kin = [
        other
        for other in models()
        if (other.family, other.kind, other.modality) == (info.family, info.kind, info.modality)
        and other.parameters < info.parameters
    ]
    return sorted(kin, key=lambda other: -other.parameters)[:3]
