"""Work: what a user wants to run, checked. An estimate answers it, a plan makes it possible."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any

from sloth_nb.catalog import GPU, Block, ModelInfo, resolve
from sloth_nb.errors import TrainingError, did_you_mean
from sloth_nb.memory.engines import engine_for
from sloth_nb.memory.moving import HOST_BOUND
from sloth_nb.memory.policy import (
    NAMED,
    POLICIES,
    Policy,
    automatic_tile,
    layer_seconds,
    sloth_policies,
)

__all__ = ["METHODS", "OPTIMISERS", "TASKS", "Work"]

METHODS = {
    "qlora": "LoRA over 4-bit weights",
    "lora-8bit": "LoRA over 8-bit weights",
    "lora": "LoRA over 16-bit weights",
    "full": "every weight trained",
}
TASKS = {"sft": "supervised fine-tuning", "dpo": "preference pairs", "grpo": "rewards on generated answers"}
OPTIMISERS = ("adamw_8bit", "paged_adamw_8bit", "adamw_torch", "adamw_torch_fused", "adamw_fp32", "sgd")
ENGINES = {"sloth": "this package's engine", "hf": "transformers and peft as they come"}


@dataclass(frozen=True)
class Work:
    """One training run.

    Attributes:
        batch: sequences a device and a step. For DPO, pairs; for GRPO, answers (all generations together).
        length: tokens a sequence; a packed batch is ``batch * length`` tokens whatever is in it.
        policy: one of POLICIES for all layers, or one a layer ("sloth" apart) or ``Policy``, bottom to top.
        engine: who computes, one of ENGINES; None is this package's engine where it runs the model, else transformers
            and peft as they come. These keep or recompute: any policy but "keep" is torch's checkpointing.
        loss_chunk: bytes of logits that the loss holds at a time.
        mlp_tile: tokens that pass an MLP at a time; None is all of them, "auto" the engine's own choice.
        ram: bytes of host memory that offloading may take; None leaves it open.
        embedding_offload: the input embedding stays in host memory.
        accumulation: micro-steps a step; above 1 the gradients of all layers outlive a backward.
        graphs: short steps are captured and replayed, as the engine does unless told otherwise.
        targets: names of the linear layers that the LoRA wraps; None, or "all-linear", is all of them.
        generate: GRPO's (prompt tokens, answer tokens) while it generates; None is a prompt of half the length, of 512
            at the most, and an answer of the rest.
        strategy: "ddp" copies the model to every GPU, "fsdp" cuts it into shards.
    """

    model: ModelInfo
    method: str = "qlora"
    task: str = "sft"
    batch: int = 2
    length: int = 2048
    rank: int = 16
    targets: tuple[str, ...] | None = None
    policy: "str | tuple[str | Policy, ...]" = "recompute"
    engine: str | None = None
    optimiser: str = "adamw_8bit"
    packed: bool = False
    accumulation: int = 1
    graphs: bool = True
    loss_chunk: int = 256 << 20
    mlp_tile: int | str | None = "auto"
    ram: int | None = None
    embedding_offload: bool = False
    gpus: int = 1
    strategy: str = "ddp"
    generate: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        _one_of("method", self.method, METHODS)
        _one_of("task", self.task, TASKS)
        _one_of("optimiser", self.optimiser, OPTIMISERS)
        if self.engine is None:
            object.__setattr__(self, "engine", engine_for(self.model))
        _one_of("engine", self.engine, ENGINES)
        _one_of("strategy", self.strategy, ("ddp", "fsdp"))
        for name in ("batch", "length", "accumulation", "gpus", "loss_chunk"):
            _at_least_one(name, getattr(self, name))
        if self.method != "full":
            _at_least_one("rank", self.rank)
        if self.mlp_tile not in (None, "auto"):
            _at_least_one("mlp_tile", self.mlp_tile)
        object.__setattr__(self, "targets", _checked_targets(self))
        if self.generate is not None:
            _checked_generate(self.generate)
        if isinstance(self.policy, list):
            object.__setattr__(self, "policy", tuple(self.policy))
        if not isinstance(self.policy, tuple):
            _one_of("policy", self.policy, POLICIES)
        elif len(self.policy) != self.model.shape.layers:
            raise TrainingError(
                f"policy has {len(self.policy)} entries; "
                f"{self.model.name} has {self.model.shape.layers} layers."
            )
        else:
            for policy in self.policy:
                if not isinstance(policy, Policy):
                    _one_of("a layer's policy", policy, NAMED)

    @classmethod
    def of(cls, model: "str | PathLike[str] | Mapping[str, Any] | ModelInfo", **options: Any) -> "Work":
        """Work on whatever names a model, with misspelt options named.

        ``text_only=True`` is the language part alone of a model that also sees, as ``from_pretrained`` can load it.

        Raises:
            ModelError: no such model. TrainingError: an option is unknown or can't be.
        """
        text_only = options.pop("text_only", False)
        known = cls.__dataclass_fields__.keys() - {"model"}
        for name in options.keys() - known:
            hint = did_you_mean(name, known) or f" Known: {', '.join(sorted(known))}."
            raise TrainingError(f"An estimate has no option {name!r}.{hint}")
        info = resolve(model)
        return cls(info.text_part if text_only else info, **options)

    def but(self, **changes: Any) -> "Work":
        """The same work with some options changed.

        Another model has the engine that runs it, and where policies were named layer by layer and it has other layers,
        recomputes in all, unless these are named, too.
        """
        model = changes.get("model", self.model)
        if model is not self.model and self.engine == engine_for(self.model):
            changes.setdefault("engine", None)
        if isinstance(self.policy, tuple) and model.shape.layers != self.model.shape.layers:
            changes.setdefault("policy", "recompute")
        return replace(self, **changes)

    @property
    def tokens(self) -> int:
        """Tokens that pass the model at once: a pair counts both its answers."""
        return self.batch * self.length * (2 if self.task == "dpo" else 1)

    @property
    def rollout(self) -> tuple[int, int]:
        """GRPO's (prompt tokens, answer tokens)."""
        prompt = min(512, self.length // 2)
        return (prompt, self.length - prompt) if self.generate is None else self.generate

    @property
    def sequences(self) -> int:
        return self.batch * (2 if self.task == "dpo" else 1)

    def tokens_in(self, block: Block) -> int:
        """Tokens that pass a layer: an encoder of sound has as many a sequence whatever the text's length."""
        return block.positions * self.sequences if block.positions else self.tokens

    def policies(self, gpu: GPU) -> tuple[Policy, ...]:
        """One policy a layer, bottom to top; the engine's own rule depends on the card."""
        shape = self.model.shape
        if not isinstance(self.policy, str):
            return tuple(name if isinstance(name, Policy) else NAMED[name] for name in self.policy)
        if self.policy != "sloth":
            return (NAMED[self.policy],) * shape.layers
        block = max(shape.blocks, key=lambda block: block.count)
        room = float("inf") if self.ram is None else self.ram
        return sloth_policies(block, shape.layers, self.tokens, self.length, gpu, room)

    def leanest(self, gpu: GPU) -> str:
        """The policy of all layers with which the card holds least. From a CPU's memory nothing can be moved away."""
        if self.engine == "hf":
            return "recompute"
        return "lean" if gpu.is_cpu else "offload"

    def tile(self, policies: tuple[Policy, ...], gpu: GPU) -> int | None:
        """Tokens that pass an MLP at a time; None is all of them."""
        if self.mlp_tile != "auto":
            return self.mlp_tile
        block = max(self.model.shape.blocks, key=lambda block: block.count)
        return None if gpu.is_cpu else automatic_tile(block, self.tokens, policies)

    def captured(self, gpu: GPU) -> bool:
        """Whether the engine replays this step from a CUDA graph once its shape has come a few times."""
        if not (self.graphs and self.lora and self.engine == "sloth") or gpu.is_cpu:
            return False
        block = max(self.model.shape.blocks, key=lambda block: block.count)
        return layer_seconds(block, self.tokens, self.length, gpu) < HOST_BOUND

    @property
    def lora(self) -> bool:
        return self.method != "full"

    def __str__(self) -> str:
        policy = self.policy if isinstance(self.policy, str) else "mixed"
        rank = f", rank {self.rank}" if self.lora else ""
        return (
            f"{self.model.name}, {self.method}{rank}, {self.task}, {self.batch} × {self.length:,}, {policy}"
        )


def _one_of(name: str, value: Any, known: Any) -> None:
    if not isinstance(value, str) or value not in known:
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        raise TrainingError(f"{name} is {value!r}; it is one of {', '.join(known)}.{hint}")


def _at_least_one(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise TrainingError(f"{name} is {value!r}; it must be a whole number of at least 1.")


def _checked_targets(work: Work) -> tuple[str, ...] | None:
    """The targets as a tuple; None is every linear layer."""
    given: Any = work.targets
    if given is None or given == "all-linear":
        return None
    if not isinstance(given, (tuple, list, set, frozenset)) or not all(isinstance(x, str) for x in given):
        raise TrainingError(
            f'targets is {given!r}; it is a list of layer names such as ["q_proj"], or "all-linear".'
        )
    found = tuple(sorted(given)) if isinstance(given, (set, frozenset)) else tuple(given)
    if work.lora and not work.model.shape.adapted(found):
        names = dict.fromkeys(linear.name for _, linear in work.model.shape.adapted())
        raise TrainingError(
            f"targets is {found!r}, and {work.model.name} has no such layer. Its linear layers: {', '.join(names)}."
        )
    return found


def _checked_generate(given: Any) -> None:
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise TrainingError(f"generate is {given!r}; it is (prompt tokens, answer tokens).")
    for what, tokens in zip(("prompt", "answer"), given, strict=True):
        _at_least_one(f"generate's {what}", tokens)
