"""The head and the loss: chunks of logits under a byte budget, the gradient made in the forward."""

from dataclasses import dataclass

from sloth_nb.memory.work import Work

__all__ = ["LossCost", "loss_cost"]


@dataclass(frozen=True)
class LossCost:
    """``peak`` while it runs, ``kept`` through the layers' backward, ``gradients`` of a trained head."""

    peak: int
    kept: int
    gradients: int


def loss_cost(work: Work) -> LossCost:
    """Bytes of the fused linear cross-entropy: normed hidden states, their gradient, a chunk of logits."""
    shape = work.model.shape
    hidden = 2 * work.tokens * shape.hidden
    row = shape.vocab * 2
    chunk = max(1, min(work.tokens, work.loss_chunk // row)) * row
    # A trained head's gradient is summed in fp32 over the chunks, then rounded to the weight's dtype.
    head = 0 if work.lora else shape.head_parameters
    gradients = 2 * head * (1 if shape.tied else 2) if head else 0
    return LossCost(peak=2 * hidden + chunk + 4 * head, kept=0, gradients=gradients)
