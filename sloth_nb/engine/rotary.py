"""The batch's rotary embeddings: cos and sin from the model's own module, so that every scaling it knows is right."""

from dataclasses import dataclass

import torch
from sloth_nb_kernels.qk_norm_rope import qk_norm_rope_backward, qk_norm_rope_forward
from sloth_nb_kernels.rope import rope_backward, rope_forward
from torch import Tensor, nn

__all__ = ["Rotation", "RotationTable"]


@dataclass
class Rotation:
    """cos and sin, (rows, rotary / 2) in fp32; token t uses row t modulo rows."""

    cos: Tensor
    sin: Tensor

    def rotate_(self, q: Tensor, k: Tensor) -> None:
        """Turns q (tokens, heads, head_dim) and k in place."""
        rope_forward(q, k, self.cos, self.sin, q_out=q, k_out=k)

    def backward(self, dq: Tensor, dk: Tensor, into_q: Tensor, into_k: Tensor) -> None:
        """Turns gradients back, into the given buffers."""
        rope_backward(dq, dk, self.cos, self.sin, dq_out=into_q, dk_out=into_k)

    def norm_rotate(
        self, q: Tensor, k: Tensor, weights: tuple[Tensor, Tensor], eps: float, zero_centred: bool
    ) -> tuple[Tensor, Tensor]:
        """Norm over each head, then the rotation (Qwen 3, Gemma 3); q and k stay as they were."""
        return qk_norm_rope_forward(q, k, *weights, eps, self.cos, self.sin, zero_centred=zero_centred)

    def norm_rotate_backward(
        self,
        dq: Tensor,
        dk: Tensor,
        q: Tensor,
        k: Tensor,
        weights: tuple[Tensor, Tensor],
        eps: float,
        zero_centred: bool,
        *,
        into: tuple[Tensor, Tensor],
        weight_grad: bool,
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of q and k as they were before their norms, into the given buffers; the weights' if asked."""
        _, _, dq_weight, dk_weight = qk_norm_rope_backward(
            dq, dk, q, k, *weights, eps, self.cos, self.sin,
            zero_centred=zero_centred, weight_grad=weight_grad, dq_out=into[0], dk_out=into[1],
        )  # fmt: skip
        return dq_weight, dk_weight


class RotationTable:
    """Makes rotations with the model's rotary module; those of plain positions are kept for the next batch."""

    def __init__(self, module: nn.Module, kinds: set[str | None]):
        self.module, self.kinds = module, kinds
        self._plain: dict[tuple[int, torch.device], dict[str | None, Rotation]] = {}

    @property
    def static(self) -> bool:
        """Whether the same positions turn by the same angles in every batch."""
        kinds = self.module.rope_type
        names = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
        return not any("dynamic" in name or name == "longrope" for name in names)

    def for_positions(self, position_ids: Tensor) -> dict[str | None, Rotation]:
        """Rotations of explicit positions, (1 or batch, length)."""
        probe = torch.empty(0, dtype=torch.float32, device=position_ids.device)
        rotations = {}
        for kind in self.kinds:
            arguments = () if kind is None else (kind,)
            cos, sin = self.module(probe, position_ids, *arguments)
            half = cos.shape[-1] // 2
            rotations[kind] = Rotation(
                *(x[..., :half].reshape(-1, half).float().contiguous() for x in (cos, sin))
            )
        return rotations

    def for_length(self, length: int, device: torch.device) -> dict[str | None, Rotation]:
        """Rotations of positions 0, 1, ..., length - 1."""
        key = length, device
        if key not in self._plain:
            made = self.for_positions(torch.arange(length, device=device).unsqueeze(0))
            if not self.static:
                return made
            if len(self._plain) >= 32:
                self._plain.clear()
            self._plain[key] = made
        return self._plain[key]
