"""The input embedding in pinned host memory: a gigabyte or more of the card for a millisecond a step.

Only a frozen embedding that isn't the output head as well can leave. Its weight is no parameter any more, so that
nothing moves it back and the model's device stays the card; it is saved, merged and exported as before.
"""

from __future__ import annotations

from typing import Any

import torch
from sloth_nb_kernels import host_rows
from torch import Tensor, nn

from sloth_nb.errors import ModelError
from sloth_nb.notices import warn

__all__ = ["HostEmbedding", "offload_embedding", "refuse_training", "why_embedding_stays"]


class HostEmbedding(nn.Module):
    """An ``nn.Embedding`` whose weight, (rows, width), lies in pinned host memory and is never trained."""

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.weight.shape
        self.padding_idx = embedding.padding_idx
        self.weight = self._pinned(embedding.weight.detach())

    @staticmethod
    def _pinned(weight: Tensor) -> Tensor:
        host = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=torch.cuda.is_available())
        return host.copy_(weight)

    def forward(self, ids: Tensor) -> Tensor:
        """(...) token ids → (..., width) on the device of the ids."""
        if ids.is_cuda and not self.weight.is_pinned():  # a copied module's isn't
            self.weight = self._pinned(self.weight)
        return host_rows(self.weight, ids)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """What moves or casts modules: the weight stays where it is, and takes a new dtype."""
        dtype = fn(self.weight.new_empty(0)).dtype
        if dtype != self.weight.dtype:
            self.weight = self._pinned(self.weight.to(dtype))
        return super()._apply(fn, recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(
        self, state_dict: Any, prefix: str, local: Any, strict: bool, missing: Any, extra: Any, errors: Any
    ) -> None:
        given = state_dict.get(f"{prefix}weight")
        rest = {key: value for key, value in state_dict.items() if key != f"{prefix}weight"}
        super()._load_from_state_dict(rest, prefix, local, strict, missing, extra, errors)
        if given is None:
            missing.append(f"{prefix}weight")
        elif given.shape != self.weight.shape:
            errors.append(f"{prefix}weight is {tuple(given.shape)}, not {tuple(self.weight.shape)}")
        else:
            self.weight.copy_(given)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, in host memory"


def why_embedding_stays(model: nn.Module) -> str | None:
    """The reason why the model's input embedding can't leave its device; None when it can."""
    embedding = model.get_input_embeddings()
    if isinstance(embedding, HostEmbedding):
        return "it is in host memory already"
    if type(embedding) is not nn.Embedding:
        return f"it is a {type(embedding).__name__}, which does more than look up rows"
    head = model.get_output_embeddings()
    if head is not None and getattr(head, "weight", None) is embedding.weight:
        return "it is the output head as well, which works on the device"
    if embedding.weight.requires_grad:
        return "it is trained"
    if embedding.weight.device.type != "cuda":
        return f"it is on {embedding.weight.device.type} anyway"
    return None


def refuse_training(model: nn.Module, config: Any) -> None:
    """Raises a ModelError when these LoRA settings would train an embedding that is in host memory."""
    if not isinstance(model.get_input_embeddings(), HostEmbedding):
        return
    own = next(name for name, module in model.named_modules() if module is model.get_input_embeddings())
    targets = config.target_modules
    named = {*(config.modules_to_save or ()), *(() if isinstance(targets, str | None) else targets)}
    if getattr(config, "trainable_token_indices", None) or any(own.endswith(name) for name in named):
        raise ModelError(
            f"{own} is in host memory (offload_embedding) and can't be trained there. Load the model without "
            "offload_embedding, or leave the embedding out of what is trained."
        )


def offload_embedding(model: nn.Module) -> int:
    """Moves the input embedding to pinned host memory, or says why not. Bytes of the device that it frees."""
    if reason := why_embedding_stays(model):
        warn(f"offload_embedding: the embedding stays where it is, because {reason}.")
        return 0
    embedding = model.get_input_embeddings()
    freed = embedding.weight.nbytes
    model.set_input_embeddings(HostEmbedding(embedding))
    return freed
