"""The byte counts of one decoder layer's tensors in our engine, that both its passes are made of."""

from functools import cache

from sloth_nb.catalog import Block
from sloth_nb.memory.attention import attention_cost, attention_kernel
from sloth_nb.memory.layout import HOLD_FROM, room_beside
from sloth_nb.memory.policy import tape_bytes
from sloth_nb.memory.work import Work

__all__ = ["Sizes"]


class Sizes:
    """Of one layer of ``block`` under this work, with MLP tiles of ``tile`` tokens."""

    def __init__(self, block: Block, work: Work, capability: float, tile: int | None):
        self.block, self.work = block, work
        item = self.item = 2
        tokens = self.tokens = work.tokens_in(block)
        self.tile = min(tokens, tile or tokens)
        hidden, heads = block.hidden, block.heads * block.head_dim
        narrow = block.kv_heads * block.head_dim
        self.hidden = tokens * hidden * item
        self.query, self.narrow = tokens * heads * item, tokens * narrow * item
        self.qkv = self.query + 2 * self.narrow
        self.rows = tokens * 4
        self.tile_hidden = self.tile * hidden * item

        kernel = attention_kernel(block, capability, work.packed, windowed=False)
        self.attention = attention_cost(block, kernel, tokens, item)
        self.tape = tape_bytes(block, tokens, item)
        self.ffns = 2 if block.gated else 1

        groups = ("qkv", "output", "gate_up", "down")
        wrapped = work.model.shape.adapted(work.targets) if work.lora else []
        mine = [linear for owner, linear in wrapped if owner is block]
        self.ranks = dict.fromkeys(groups, 0)
        for linear in mine:
            self.ranks[_group(linear.name)] += work.rank
        sides = {group: [0, 0] for group in groups}
        for linear in block.linears:
            side = sides[_group(linear.name)]
            side[0], side[1] = linear.inputs, side[1] + linear.outputs
        small = work.method in ("qlora", "lora-8bit")
        # The adapters' B stands beside a dequantised weight and A beneath it; what meets them has as many columns
        # beside its own.
        self.room = {g: room_beside(rank, small) for g, rank in self.ranks.items()}
        self.buffer = {
            g: (o + (self.ranks[g] if self.room[g] else 0)) * (i + self.room[g]) * item if small else 0
            for g, (i, o) in sides.items()
        }
        self.low_kept = tokens * sum(self.ranks.values()) * item
        self.tape["gate_up"] += tokens * self.room["gate_up"] * item
        self.ffn = self.tile * block.active_ffn * item
        self.gated = self.ffn + self.tile * self.room["down"] * item
        self.gate_up = self.ffns * self.ffn + self.tile * self.room["gate_up"] * item
        # With few tokens the MLP's weights are dequantised for each use, not held between them.
        self.holds = tokens > HOLD_FROM
        self.tiles = -(-tokens // max(self.tile, 1))
        # Copies of the adapters in 16 bits, where they don't lie around the weights; and the gradients: of an adapter's
        # A and B, or of the whole weights. The A of a group stand one upon the other.
        pieces: dict[str, list[int]] = {group: [] for group in groups}
        self.copies: list[int] = []
        if work.lora:
            for linear in mine:
                pieces[_group(linear.name)].append(work.rank * linear.outputs)
            for group, rank in self.ranks.items():
                if rank:
                    stacked = rank * sides[group][0]
                    if not self.room[group]:
                        self.copies += [item * size for size in (stacked, *pieces[group])]
                    pieces[group].append(stacked)
        else:
            for linear in block.linears:
                pieces[_group(linear.name)].append(linear.weights)
            pieces["gate_up"] += [block.expert_weights] if block.expert_weights else []
        self.gradients = {
            group: [size * (4 if work.lora else item) for size in sizes] for group, sizes in pieces.items()
        }
        self.adds = not work.lora or capability >= 8.0

    def low(self, group: str, tokens: int) -> int:
        """The low-rank input of a group's projections, or its gradient."""
        return tokens * self.ranks[group] * self.item

    def apart(self, group: str, tokens: int) -> int:
        """The same, where it doesn't stand beside something wider."""
        return 0 if self.room[group] else self.low(group, tokens)

    def beside(self, group: str, tokens: int) -> int:
        """The room for it beside something of this many tokens."""
        return tokens * self.room[group] * self.item


@cache
def _group(name: str) -> str:
    name = name.rsplit(".", 1)[-1]
    if name in ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value"):
        return "qkv"
    if name in ("o_proj", "out_proj", "dense"):
        return "output"
    return "down" if name in ("down_proj", "fc2", "c_proj", "dense_4h_to_h") else "gate_up"
