"""Errors of a training that a user can mend, in a sentence that says how."""

import torch

from sloth_nb.errors import HardwareError

__all__ = ["explained"]


def explained(error: BaseException, step: int) -> BaseException:
    """The same error, or a sentence that says what to do about it."""
    text = str(error)
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in text:
        return HardwareError(
            f"Out of memory at step {step + 1} ({text.splitlines()[0]}).\n  Lower "
            "per_device_train_batch_size (and raise gradient_accumulation_steps by as much: the same "
            'result), or max_length, or let a plan find what fits: gradient_checkpointing="auto".'
        )
    return error
