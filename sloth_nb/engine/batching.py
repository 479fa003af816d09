"""From a model call's arguments to a ``Batch``: padded, packed or plain, and the reason when it is none of them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .sequences import Sequences

__all__ = ["Call", "LossNotForEngine", "NotForEngine", "read_call"]


class NotForEngine(Exception):
    """A call that the model's own forward must answer; the message is the reason."""


class LossNotForEngine(NotForEngine):
    """Only the output head and the loss are the model's own: its decoder is answered all the same."""


@dataclass
class Call:
    """Which tokens belong together, and their positions where they are not 0, 1, 2, ..."""

    seqs: Sequences
    position_ids: Tensor | None


# Keywords that say nothing of what is computed, or that are read here.
_UNDERSTOOD = frozenset(
    ("use_cache", "return_dict", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")
)


def read_call(
    shape: tuple[int, int],
    device: torch.device,
    attention_mask: Any,
    position_ids: Tensor | None,
    extras: dict[str, Any],
    *,
    targets: Tensor | None = None,
    cached: bool = False,
) -> Call:
    """Reads (batch, length) tokens and transformers' own keyword arguments.

    Right padding needs no mask under causal attention where no pad is a target. Packed batches are told by
    ``cu_seq_lens_q`` and ``max_length_q``. Without them, and without a mask, explicit positions tell: whatever starts
    anew at 0 is a sequence of its own, also where transformers has made a cache (``cached``) and would let it see its
    neighbours; where it has made none, any leap begins one, as there. Looking at them, or at a mask, waits for the
    device.

    Raises:
        NotForEngine: a cache, a 4-D mask, left padding, a pad that is a target, an argument that isn't known here, or
            outputs that only the model's own modules can give.
    """
    batch, length = shape
    if batch * length == 0:
        raise NotForEngine("there are no tokens")
    for name, value in extras.items():
        if name not in _UNDERSTOOD and value is not None and value is not False:
            raise NotForEngine(f"{name} is given")
    if attention_mask is not None:
        _check_mask(attention_mask, shape, targets)
    cu_seqlens = extras.get("cu_seq_lens_q")
    if cu_seqlens is not None:
        longest = int(extras.get("max_length_q") or length)
        return Call(_packed(cu_seqlens.to(device, torch.int32), longest, batch * length), position_ids)
    if position_ids is None or attention_mask is not None:
        return Call(Sequences(batch, length), position_ids)
    starts = _sequence_starts(position_ids.expand(batch, length), only_at_0=cached)
    if starts is None:
        return Call(Sequences(batch, length), position_ids)
    edges = torch.cat([starts, starts.new_tensor([batch * length])])
    longest = int((edges[1:] - edges[:-1]).max())
    return Call(_packed(edges.to(torch.int32), longest, batch * length), position_ids)


def _packed(cu_seqlens: Tensor, longest: int, tokens: int) -> Sequences:
    return Sequences(1, longest, cu_seqlens, tokens)


def _check_mask(mask: Any, shape: tuple[int, int], targets: Tensor | None) -> None:
    if not isinstance(mask, Tensor) or mask.shape != shape:
        raise NotForEngine("the attention mask is not a plain (batch, length) one")
    there = mask != 0
    on_the_right = (there[:, 1:] <= there[:, :-1]).all() & there[:, 0].all()
    learnt = mask.new_zeros((), dtype=torch.bool)
    if targets is not None and targets.shape == shape:
        learnt = (~there & (targets.to(mask.device) != -100)).any()
    padded_right, learns_pads = torch.stack([on_the_right, learnt]).tolist()
    if not padded_right:
        raise NotForEngine("the batch is padded on the left")
    if learns_pads:
        raise NotForEngine("padded places are learnt: their labels are not -100")


def _sequence_starts(position_ids: Tensor, *, only_at_0: bool) -> Tensor | None:
    """Flat indices where a packed sequence starts; None when every row is one sequence."""
    breaks = torch.diff(position_ids, dim=-1, prepend=position_ids[:, :1] - 1) != 1
    if only_at_0:
        breaks &= position_ids == 0
    if not bool(breaks.any()):
        return None
    breaks[:, 0] = True
    return breaks.flatten().nonzero().flatten()
