"""The rule that picks policies when nobody planned the run, and the settings that a plan can drive."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

from sloth_nb_kernels.launch import on_gpu
from torch import Tensor

from sloth_nb.memory.machine import free_ram

from .device import DeviceSpeed, speed_of
from .policy import KEEP, LEAN, RECOMPUTE, LayerPolicy, activation_bytes, policy_of

__all__ = ["Planner", "Settings", "StackPlan", "offload_policies"]

# Below this many tokens a layer's tensors are too small to be worth a trip to the host.
_OFFLOAD_FROM = 1024
# Up to so much a CPU keeps all activations rather than computing them twice.
_CPU_KEEPS = 1 << 30
# A tile of gate and up: big enough to keep the matrix units busy, small beside the weights.
_TILE_BYTES = 128 << 20
# A step is captured while a layer's forward takes the device less than this: about as long as a slow host launches it.
# A captured one holds its gradients' buffers all the time, and is no faster where the device is behind anyway.
_HOST_BOUND = 1e-3
# A layer's forward runs at this share of the measured matrix rate (norms, gates and dequantisation are between);
# of that time copying may fill this much; of the host's free memory so much may be pinned.
_EFFICIENCY, _LINK_SHARE, _HOST_SHARE = 0.75, 0.95, 0.4
# One layer that moves gate_up costs as much memory as many do, so that few are not worth it: at least this share of
# all layers does, or none; and none where it is larger than this, as with long sequences.
_WIDE_FROM, _WIDE_BYTES = 0.25, 1 << 30


@dataclass(frozen=True)
class StackPlan:
    """A policy a layer, and the tokens of an MLP tile (None: all at once)."""

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

    def captures(self, config: Any, tokens: int, length: int, like: Tensor) -> bool:
        """Whether a pass over this many tokens, in sequences of ``length``, is bound by launches rather than work."""
        if not self.cuda_graphs or not like.is_cuda:
            return False
        return _layer_seconds(config, tokens, length, speed_of(like.device.index)) < _HOST_BOUND

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
        if tokens < _OFFLOAD_FROM:
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
        most = max(1024, _TILE_BYTES // (2 * config.intermediate_size * like.element_size()))
        if tokens <= most:
            return None
        # Equal tiles, in steps that fill the matrix units: no short one at the end.
        even = -(-tokens // -(-tokens // most))
        return -(-even // 128) * 128


@lru_cache(maxsize=1)
def _host_budget() -> int:
    # Read once: what the engine itself pins later must not shrink the next step's plan.
    return int(_HOST_SHARE * free_ram())


def _layer_flops(config: Any, tokens: int, length: int) -> float:
    """Of a layer's forward: its products, and causal attention's."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    weights = config.hidden_size * (
        2 * heads * head_dim + 2 * kv_heads * head_dim + 3 * config.intermediate_size
    )
    return 2.0 * tokens * (weights + length * heads * head_dim)


def _layer_seconds(config: Any, tokens: int, length: int, speed: DeviceSpeed) -> float:
    return _layer_flops(config, tokens, length) / (_EFFICIENCY * speed.flops)


def _seconds_again(config: Any, tokens: int, speed: DeviceSpeed) -> dict[str, float]:
    """What computing ``middle`` and ``qkv`` a second time takes: the output product, and the q, k, v products."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    each = 2.0 * tokens * config.hidden_size * head_dim / (_EFFICIENCY * speed.flops)
    return {"middle": each * heads, "qkv": each * (heads + 2 * kv_heads)}


def offload_policies(
    sizes: dict[str, int],
    again: dict[str, float],
    seconds: float,
    layers: int,
    link: float,
    host_bytes: int,
) -> list[LayerPolicy]:
    """What each layer moves to the host: what makes the device wait less than computing it ``again`` would take.

    Copies run beside a layer's forward, ``seconds`` of it, at ``link`` bytes a second; what they take longer shows.
    gate_up goes along where there is time left and the host can hold it. The last layer's backward comes at once: what
    it holds stays on the device, but for the wide gate_up.
    """
    moved = ["input", "attention"]
    carried = sum(sizes[name] for name in moved)
    for name in ("middle", "qkv"):
        more = carried + sizes[name]
        shows = max(0.0, more / link - seconds) - max(0.0, carried / link - seconds)
        if shows <= again[name] and more * layers <= host_bytes:
            moved.append(name)
            carried = more
    room = min(seconds * link * _LINK_SHARE, host_bytes / max(layers, 1)) - carried
    wide = 0
    if len(moved) == 4 and room > 0:
        wide = min(layers - 1, int(room * layers // sizes["gate_up"]))
    if wide < _WIDE_FROM * layers or sizes["gate_up"] > _WIDE_BYTES:
        wide = 0
    policies = [LayerPolicy(frozenset(), frozenset(moved))] * (layers - 1)
    for n in range(wide):  # spread evenly, so that the link never has two in a row
        i = n * (layers - 1) // wide
        policies[i] = LayerPolicy(frozenset(), frozenset([*moved, "gate_up"]))
    return [*policies, LayerPolicy(frozenset(moved))]
