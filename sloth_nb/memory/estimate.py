"""Estimate: the answer. Bytes by kind at the fullest moment, and what else would fit."""

from dataclasses import dataclass, field, replace
from typing import Any

from sloth_nb.catalog import GPU
from sloth_nb.memory.work import Work

__all__ = ["GB", "KINDS", "Estimate"]

GB = 2**30

# In the order in which a bar stacks them, from what can't be helped to what can.
KINDS = {
    "context": "Driver and process",
    "libraries": "Library workspaces",
    "weights": "Weights",
    "adapters": "Adapters",
    "optimiser": "Optimiser states",
    "gradients": "Gradients",
    "activations": "Activations kept",
    "workspace": "One layer's work",
    "attention": "Attention's workspace",
    "dequantised": "Dequantised weights",
    "loss": "Logits and loss",
    "generation": "KV cache and sampling",
    "fragmentation": "Unused pieces",
}


@dataclass(frozen=True)
class Estimate:
    """Predicted bytes of one device at the fullest moment of a step.

    Attributes:
        kinds: bytes by kind (keys of KINDS); their sum is ``total``.
        moment: when that is: "forward", "loss", "backward", "optimiser step" or "generation".
        host: bytes of the machine's RAM that the plan's offloading takes.
        trainable: parameters that are trained.
        depth: "formulas" or "dry run".
        notes: what a reader should know (a length beyond the model's context, …).
    """

    work: Work
    gpu: GPU
    kinds: dict[str, int]
    moment: str
    host: int = 0
    trainable: int = 0
    depth: str = "formulas"
    notes: tuple[str, ...] = field(default=())

    @property
    def tensors(self) -> int:
        """What ``torch.cuda.max_memory_allocated`` will say."""
        return self.reserved - self.kinds.get("fragmentation", 0)

    @property
    def reserved(self) -> int:
        """What ``torch.cuda.max_memory_reserved`` will say."""
        return self.total - self.kinds.get("context", 0)

    @property
    def total(self) -> int:
        """What the process takes from the card, as nvidia-smi says."""
        return sum(self.kinds.values())

    @property
    def total_gb(self) -> float:
        return self.total / GB

    @property
    def fits(self) -> bool:
        """Whether it fits the card it was made for."""
        return self.total <= self.gpu.memory

    def on(self, card: GPU) -> "Estimate":
        """The same bytes against another card; right for cards of the same generation."""
        return replace(self, gpu=card)

    def longest_context(self) -> int:
        """The longest sequence that fits this card with everything else as it is; 0 when none does."""
        from sloth_nb.memory.limits import longest_context

        return longest_context(self.work, self.gpu)

    def largest_batch(self) -> int:
        """The largest batch that fits this card with everything else as it is; 0 when none does."""
        from sloth_nb.memory.limits import largest_batch

        return largest_batch(self.work, self.gpu)

    def changes(self) -> "list[Any]":
        """The cheapest changes that make it fit this card and half of this machine's RAM; empty when it does."""
        from sloth_nb.memory.advice import changes_to_fit

        return changes_to_fit(self.work, self.gpu)

    def rows(self) -> list[tuple[str, str, int]]:
        """(kind, label, bytes) of every kind that is there, in the order of KINDS."""
        return [(kind, label, self.kinds[kind]) for kind, label in KINDS.items() if self.kinds.get(kind)]

    def __str__(self) -> str:
        width = max(len(label) for label in KINDS.values())
        verdict = f"{'fits' if self.fits else 'does not fit'} {self.gpu.name}"
        lines = [
            f"{self.work}",
            f"{self.total_gb:.2f} GB at the {self.moment}: {verdict} of {self.gpu.memory_gib:.1f} GB",
        ]
        lines += [f"  {label:<{width}} {size / GB:7.2f} GB" for _, label, size in self.rows()]
        if self.host:
            lines.append(f"  {'(in host memory)':<{width}} {self.host / GB:7.2f} GB")
        return "\n".join([*lines, *self.notes])
