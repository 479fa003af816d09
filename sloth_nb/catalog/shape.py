"""Shape: what a model is made of, in numbers: its linear layers, norms, embeddings and towers.

Everything that the memory model needs and nothing that it doesn't. Counting parameters is a method here, so
that the published counts test the shapes themselves.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

__all__ = ["Block", "Linear", "Shape", "Tower"]


@dataclass(frozen=True)
class Linear:
    """One linear layer of a block: a weight of (outputs, inputs), named as in the model's own code."""

    name: str
    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        return self.weights + (self.outputs if self.bias else 0)


@dataclass(frozen=True)
class Block:
    """A run of equal layers.

    Attributes:
        kind: "decoder", "cross" (attends to another modality), "encoder" or "depth" (CSM's second decoder).
        linears: the linear layers of one layer, experts not among them.
        ffn: width of the MLP that each token passes; with experts, of the shared expert (0: none).
        experts, experts_per_token, expert_ffn: a mixture's fused (experts, …) weights.
        norm_parameters: every vector of one layer.
        positions: tokens of one sequence when that isn't the run's own length (Whisper's encoder: 1500).
    """

    count: int
    kind: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    linears: tuple[Linear, ...]
    norm_parameters: int
    gated: bool = True
    qk_norm: bool = False
    post_norms: bool = False
    experts: int = 0
    experts_per_token: int = 0
    expert_ffn: int = 0
    positions: int = 0

    @cached_property
    def linear_weights(self) -> int:
        """Weights of one layer that sit in ordinary linear layers: what a 4-bit load makes small."""
        return sum(linear.weights for linear in self.linears)

    @property
    def expert_weights(self) -> int:
        """Weights of one layer's experts: fused in transformers 5, and a 4-bit load leaves them 16-bit."""
        matrices = 3 if self.gated else 2
        return self.experts * matrices * self.hidden * self.expert_ffn

    @cached_property
    def parameters(self) -> int:
        """Parameters of one layer."""
        return sum(linear.parameters for linear in self.linears) + self.expert_weights + self.norm_parameters

    @property
    def active_ffn(self) -> int:
        """Width of all the MLPs that one token passes."""
        return self.ffn + self.experts_per_token * self.expert_ffn


@dataclass(frozen=True)
class Tower:
    """An encoder of pictures or sound beside the language model, with its projector."""

    name: str
    parameters: int
    linear_weights: int
    hidden: int = 0
    layers: int = 0
    ffn: int = 0
    positions: int = 0


@dataclass(frozen=True)
class Shape:
    """A whole model.

    Attributes:
        extra_parameters: what is neither in a block, a tower nor an embedding.
        learnt_positions: each position was learnt, so that nothing goes beyond the context; else they are computed.
    """

    model_type: str
    hidden: int
    vocab: int
    tied: bool
    context: int
    blocks: tuple[Block, ...]
    towers: tuple[Tower, ...] = ()
    embedding_parameters: int = 0
    head_parameters: int = 0
    extra_parameters: int = 0
    extra_linear_weights: int = 0
    learnt_positions: bool = False

    @cached_property
    def layers(self) -> int:
        return sum(block.count for block in self.blocks)

    @cached_property
    def parameters(self) -> int:
        """All parameters, tied ones once."""
        blocks = sum(block.count * block.parameters for block in self.blocks)
        towers = sum(tower.parameters for tower in self.towers)
        head = 0 if self.tied else self.head_parameters
        return self.embedding_parameters + head + blocks + towers + self.extra_parameters

    @cached_property
    def linear_weights(self) -> int:
        """Weights that ``load_in_4bit`` or ``load_in_8bit`` makes small: every linear layer but the head."""
        blocks = sum(block.count * block.linear_weights for block in self.blocks)
        return blocks + sum(tower.linear_weights for tower in self.towers) + self.extra_linear_weights

    @cached_property
    def largest_linear(self) -> int:
        """Weights of the largest single linear layer of the blocks: a dequantisation buffer's size."""
        return max((linear.weights for block in self.blocks for linear in block.linears), default=0)

    def adapted(self, targets: Iterable[str] | None = None) -> tuple[tuple[Block, Linear], ...]:
        """The linear layers that a LoRA with these target names wraps, one entry a layer kind.

        None means all. The usual names are understood for fused projections too: ``q_proj`` is a part of
        ``qkv_proj``, ``up_proj`` of ``gate_up_proj``. As in peft a name is a whole one or its end, after a dot.
        Routers are never wrapped.
        """
        key = None if targets is None else frozenset(targets)
        if key not in self._adapted:
            names, wanted = {linear.name for block in self.blocks for linear in block.linears}, None
            if key is not None:  # whole paths end with a layer's own name
                ends = {name if name in names else name.rpartition(".")[2] for name in key}
                wanted = ends | {_FUSED.get(name, name) for name in ends}
            self._adapted[key] = tuple(
                (block, linear)
                for block in self.blocks
                for linear in block.linears
                if linear.name != "router"
                and (wanted is None or linear.name in wanted or linear.name.rpartition(".")[2] in wanted)
            )
        return self._adapted[key]

    @cached_property
    def _adapted(self) -> dict[frozenset[str] | None, tuple[tuple[Block, Linear], ...]]:
        return {}


_FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}
