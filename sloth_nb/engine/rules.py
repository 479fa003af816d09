"""The rule that picks policies when nobody planned the run, and the settings that a plan can drive."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

from sloth_nb_kernels.launch import on_gpu
from torch import Tensor

from sloth_nb.memory import moving
from sloth_nb.memory.machine import free_ram

from .device import DeviceSpeed, speed_of
from .policy import KEEP, LEAN, RECOMPUTE, LayerPolicy, activation_bytes, policy_of, widths

__all__ = ["Planner", "Settings", "StackPlan", "offload_policies"]

# Up to so much a CPU keeps all activations rather than computing them twice.
_CPU_KEEPS = 1 << 30
# Of the host's free memory so much may be pinned.
_HOST_SHARE = 0.4


@dataclass(frozen=True, eq=False)
class StackPlan:
    """A policy a layer, and the tokens of an MLP tile (None: all at once). One plan is no other, even if it says the
    same: what was captured by it is known by it."""

    policies: list[LayerPolicy]
    mlp_tile: int | None = None


@runtime_checkable
class Planner(Protocol):
    """Whoever knows how much room there is, and plans each shape of batch for it."""

    def plan(self, tokens: int, length: int) -> StackPlan | None:
        """Of a pass over this many tokens, in sequences of up to ``length``; None leaves it to the "sloth" rule."""


@dataclass
class Settings:
    """How the engine spends memory.

    ``checkpointing``: ``False`` keeps everything; ``True`` recomputes; ``"sloth"`` or ``"unsloth"`` recomputes and
    moves to the host what can be copied while the device computes (on a CPU: keeps everything up to 1 GiB); a
    policy's name or a ``LayerPolicy`` for all layers; a list, one a layer; or a ``Planner``, which is asked.
    """

    checkpointing: "bool | str | LayerPolicy | list[str | LayerPolicy] | Planner" = "sloth"
    mlp_tile: "int | str | None" = "auto"
    loss_chunk_bytes: int = 256 << 20
    cuda_graphs: bool = True

    def plan(self, config: Any, layers: int, tokens: int, length: int, like: Tensor) -> StackPlan:
        """What a pass over this many tokens, in sequences of ``length``, does, layer by layer."""
        chosen = self.checkpointing
        if isinstance(chosen, Planner):
            planned = chosen.plan(tokens, length)
            if planned is not None:
                return planned
            chosen = "sloth"
        if isinstance(chosen, list):
            if len(chosen) != layers:
                raise ValueError(f"{len(chosen)} policies were given for {layers} layers")
            policies = [policy_of(p) for p in chosen]
        elif chosen in ("sloth", "unsloth"):
            policies = self._sloth(config, layers, tokens, length, like)
        else:
            policies = [self._one(chosen)] * layers
        return StackPlan(policies, self._tile(config, policies, tokens, like))

    def captures(
        self, config: Any, tokens: int, length: int, like: Tensor, within: float = moving.HOST_BOUND
    ) -> bool:
        """Whether a pass over this many tokens, in sequences of ``length``, is bound by launches rather than work: a
        layer's forward takes less than ``within``, in seconds."""
        if not self.cuda_graphs or not like.is_cuda:
            return False
        return _layer_seconds(config, tokens, length, speed_of(like.device.index)) < within

    def _one(self, chosen: "bool | str | LayerPolicy") -> LayerPolicy:
        if chosen is False or chosen is None:
            return KEEP
        if chosen is True:
            return RECOMPUTE
        return policy_of(chosen)

    def _sloth(self, config: Any, layers: int, tokens: int, length: int, like: Tensor) -> list[LayerPolicy]:
        sizes = activation_bytes(config, tokens, like.element_size())
        if not like.is_cuda:  # memory is rarely what a CPU is short of
            return [KEEP if layers * sum(sizes.values()) <= _CPU_KEEPS else LEAN] * layers
        if tokens < moving.OFFLOAD_FROM:
            return [LEAN] * layers
        speed = speed_of(like.device.index)
        seconds = _layer_seconds(config, tokens, length, speed)
        again = _seconds_again(config, tokens, speed)
        return offload_policies(sizes, again, seconds, layers, speed.link, _host_budget())

    def _tile(self, config: Any, policies: list[LayerPolicy], tokens: int, like: Tensor) -> int | None:
        if self.mlp_tile != "auto":
            return self.mlp_tile
        if not on_gpu(like) or all("gate_up" in p.held for p in policies):
            return None
        return moving.even_tile(tokens, config.intermediate_size, like.element_size())


@lru_cache(maxsize=1)
def _host_budget() -> int:
    # Read once: what the engine itself pins later must not shrink the next step's plan.
    return int(_HOST_SHARE * free_ram())


def _layer_seconds(config: Any, tokens: int, length: int, speed: DeviceSpeed) -> float:
    return moving.layer_seconds(*widths(config), config.intermediate_size, tokens, length, speed.flops)


def _seconds_again(config: Any, tokens: int, speed: DeviceSpeed) -> tuple[float, float]:
    return moving.seconds_again(*widths(config), tokens, speed.flops)


def offload_policies(
    sizes: dict[str, int],
    again: tuple[float, float],
    seconds: float,
    layers: int,
    link: float,
    host_bytes: int,
) -> list[LayerPolicy]:
    """What each layer moves to the host, by ``moving.moved_by_layers``; the last one's stays on the device."""
    ordered = (sizes["input"], sizes["qkv"], sizes["attention"], sizes["middle"], sizes["gate_up"])
    moved, wide = moving.moved_by_layers(ordered, again, seconds, layers, link, host_bytes)
    narrow, wider = (LayerPolicy(frozenset(), frozenset(names)) for names in (moved, (*moved, "gate_up")))
    policies = [wider if i in wide else narrow for i in range(layers - 1)]
    return [*policies, LayerPolicy(frozenset(moved))]
