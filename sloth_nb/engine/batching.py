"""From a model call's arguments to a ``Batch``: padded, packed or plain, and the reason when it is none of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .sequences import Sequences

__all__ = ["Call", "NotForEngine", "read_call"]


class NotForEngine(Exception):
    """A call that the model's own forward must answer; the message is the reason."""


@dataclass
class Call:
    """Which tokens belong together, and their positions where they are not 0, 1, 2, ..."""

    seqs: Sequences
    position_ids: Tensor | None


def read_call(
    shape: tuple[int, int],
    device: torch.device,
    attention_mask: Any,
    position_ids: Tensor | None,
    extras: dict[str, Any],
) -> Call:
    """Reads (batch, length) tokens and transformers' own keyword arguments.

    Right padding needs no mask under causal attention: no trained token sees a pad. Packed batches are told by
    ``cu_seq_lens_q`` and ``max_length_q``; without them explicit positions are looked at, which waits for the device.

    Raises:
        NotForEngine: a cache, a 4-D mask, left padding, or outputs that only the model's own modules can give.
    """
    batch, length = shape
    for name in ("past_key_values", "output_attentions", "output_hidden_states"):
        if extras.get(name):
            raise NotForEngine(f"{name} is asked for")
    if attention_mask is not None:
        _check_mask(attention_mask)
    cu_seqlens = extras.get("cu_seq_lens_q")
    if cu_seqlens is not None:
        longest = int(extras.get("max_length_q") or length)
        return Call(_packed(cu_seqlens.to(device, torch.int32), longest, batch * length), position_ids)
    if position_ids is None or attention_mask is not None:
        return Call(Sequences(batch, length), position_ids)
    starts = _sequence_starts(position_ids.expand(batch, length))
    if starts is None:
        return Call(Sequences(batch, length), position_ids)
    edges = torch.cat([starts, starts.new_tensor([batch * length])])
    longest = int((edges[1:] - edges[:-1]).max())
    return Call(_packed(edges.to(torch.int32), longest, batch * length), position_ids)


def _packed(cu_seqlens: Tensor, longest: int, tokens: int) -> Sequences:
    return Sequences(1, longest, cu_seqlens, tokens)


def _check_mask(mask: Any) -> None:
    if not isinstance(mask, Tensor) or mask.dim() != 2:
        raise NotForEngine("the attention mask is not a plain (batch, length) one")
    if mask.shape[1] > 1 and not bool((mask[:, 1:] <= mask[:, :-1]).all() & mask[:, 0].all()):
        raise NotForEngine("the batch is padded on the left")


def _sequence_starts(position_ids: Tensor) -> Tensor | None:
    """Flat indices where a packed sequence starts; None when every row is one sequence."""
    steps = torch.diff(position_ids, dim=-1, prepend=position_ids[:, :1] - 1)
    if bool((steps == 1).all()):
        return None
    breaks = steps != 1
    breaks[:, 0] = True
    return breaks.flatten().nonzero().flatten()
