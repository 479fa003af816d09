"""A layer's RMSNorm, forward and backward without autograd."""

from __future__ import annotations

from sloth_nb_kernels.rms_norm import rms_norm_backward, rms_norm_forward
from torch import Tensor, nn

from .grads import Grads
from .linear import Group
from .spec import LayerSpec, Unsupported

__all__ = ["Norm", "norm_weight"]


def norm_weight(module: nn.Module, name: str) -> Tensor:
    """The weight of an RMSNorm, or of the copy of it that peft trains.

    Raises:
        Unsupported: another norm, or one with an adapter on it.
    """
    norm = module.get_submodule(name)
    plain = getattr(norm, "original_module", norm)
    if not type(plain).__name__.endswith("RMSNorm"):
        raise Unsupported(f"{name} is a {type(plain).__name__}")
    return norm.weight


class Norm:
    """Over the hidden states' width; the weight stays in the module."""

    def __init__(self, weight: Tensor, spec: LayerSpec):
        self.weight, self.spec = weight, spec

    @classmethod
    def of(cls, module: nn.Module, name: str, spec: LayerSpec) -> Norm:
        return cls(norm_weight(module, name), spec)

    def forward(self, x: Tensor, into: Group | None = None) -> tuple[Tensor, Tensor]:
        """x's norm, as the input of the group ``into`` when given, and the reciprocals that its backward takes."""
        width = x.shape[1]
        buffer = x.new_empty(x.shape) if into is None else into.input_buffer(x.shape[0], x)
        _, rstd = rms_norm_forward(
            x, self.weight.detach(), self.spec.eps, zero_centred=self.spec.zero_centred, out=buffer[:, :width]
        )
        return buffer, rstd

    def backward(
        self, dy: Tensor, x: Tensor, rstd: Tensor, grads: Grads, *, out: Tensor, add: bool = False
    ) -> None:
        """The input's gradient, written into ``out`` or, with ``add``, added to it: the residual's gradient."""
        _, dw = rms_norm_backward(
            dy, x, self.weight.detach(), rstd, zero_centred=self.spec.zero_centred,
            residual_grad=out if add else None, out=None if add else out, weight_grad=grads.wants(self.weight),
        )  # fmt: skip
        if dw is not None:
            grads.add(self.weight, dw)
