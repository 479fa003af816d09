"""bitsandbytes' 8-bit AdamW without its wait for the device after every parameter.

Same kernels, same states, same checkpoints. The parent's ``step`` synchronises once a parameter, some hundred times
a step with adapters, while the device could still be busy with the backward.
"""

from typing import Any

import bitsandbytes as bnb
import torch

__all__ = ["AdamW", "AdamW8bit", "without_waiting"]


class _WithoutWaiting:
    @torch.no_grad()
    def step(self: Any, closure: Any = None) -> Any:
        """One step, as the parent's, of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self.initialized:
            self.check_overrides()
            self.to_gpu()
            self.initialized = True
        for gindex, group in enumerate(self.param_groups):
            for pindex, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                if not self.state[parameter]:
                    self.init_state(group, parameter, gindex, pindex)
                self.prefetch_state(parameter)
                self.update_step(group, parameter, gindex, pindex)
        if self.is_paged and torch.cuda.is_available():
            torch.cuda.synchronize()  # states move between host and device behind the stream's back
        return loss


class AdamW(_WithoutWaiting, bnb.optim.AdamW):
    """AdamW with block-wise 8-bit or 32-bit states, paged or not (Dettmers et al. 2022, arXiv 2110.02861)."""


class AdamW8bit(_WithoutWaiting, bnb.optim.AdamW8bit):
    """AdamW with block-wise 8-bit states."""


def without_waiting(cls: type) -> type:
    """This module's class in place of bitsandbytes' own, any other optimiser as it is."""
    return {bnb.optim.AdamW: AdamW, bnb.optim.AdamW8bit: AdamW8bit}.get(cls, cls)
