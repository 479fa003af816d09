"""Backwards by hand have no backward of their own, and say so."""

import functools
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["once"]


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A ``torch.autograd.Function``'s backward that refuses to be recorded.

    torch's own ``once_differentiable`` lets a gradient that is a constant pass, and a penalty on it would be left out
    of the sum without a word.
    """

    @functools.wraps(backward)
    def checked(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "This backward is written by hand and can't be differentiated again (create_graph=True). "
                "Run the model without the engine: report.undo()."
            )
        return backward(ctx, *grads)

    return checked
