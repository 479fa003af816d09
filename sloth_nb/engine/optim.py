"""bitsandbytes' 8-bit AdamW in one launch, without its wait for the device after every parameter.

Same arithmetic, same states, same checkpoints. The parent's ``step`` launches and synchronises once a parameter, some
hundred times a step with adapters, while the device could still be busy with the backward.
"""

from collections.abc import Iterator
from typing import Any

import bitsandbytes as bnb
import torch
from sloth_nb_kernels import AdamW8bitStep, Moments, Rates, runs_triton

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
        together: dict[tuple, tuple[tuple[torch.Tensor, ...], list[Moments]]] = {}
        for gindex, pindex, group, parameter in self._with_gradients():
            if not self.state[parameter]:
                self.init_state(group, parameter, gindex, pindex)
            config = self.get_config(gindex, pindex, group)
            if self._steps_with_others(parameter, config):
                key, tables, moments = self._prepared(parameter, config)
                together.setdefault(key, (tables, []))[1].append(moments)
            else:
                self.prefetch_state(parameter)
                self.update_step(group, parameter, gindex, pindex)
        self._step_together(together)
        if self.is_paged and torch.cuda.is_available():
            torch.cuda.synchronize()  # states move between host and device behind the stream's back
        return loss

    def _with_gradients(self: Any) -> Iterator[tuple[int, int, dict[str, Any], torch.Tensor]]:
        for gindex, group in enumerate(self.param_groups):
            for pindex, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    yield gindex, pindex, group, parameter

    def _steps_with_others(self: Any, parameter: torch.Tensor, config: dict[str, Any]) -> bool:
        return (
            self.state[parameter]["state1"].dtype == torch.uint8
            and not self.is_paged
            and not config["skip_zeros"]
            and config["max_unorm"] == 0
            and parameter.is_cuda
            and runs_triton(parameter)
        )

    def _prepared(self: Any, parameter: torch.Tensor, config: dict[str, Any]) -> tuple[tuple, tuple, Moments]:
        """Counts the step; (what all that step in one launch have in common, their code tables, this one's tensors)."""
        state = self.state[parameter]
        state["step"] += 1
        parameter.data, parameter.grad = parameter.data.contiguous(), parameter.grad.contiguous()
        for name in ("qmap1", "qmap2"):
            state[name] = self._shared(state[name])
        tables = state["qmap1"], state["qmap2"]
        betas = tuple(config["betas"][:2])
        rates = Rates(config["lr"], betas, config["eps"], config["weight_decay"], state["step"])
        key = (rates, parameter.device, parameter.dtype, parameter.grad.dtype, *map(id, tables))
        moments = Moments(
            parameter.data, parameter.grad,
            state["state1"], state["state2"], state["absmax1"], state["absmax2"],
        )  # fmt: skip
        return key, tables, moments

    def _shared(self: Any, table: torch.Tensor) -> torch.Tensor:
        """The one copy of a code table: a loaded checkpoint brings one for every parameter."""
        known: list[torch.Tensor] = self.__dict__.setdefault("_tables", [])
        for other in known:
            if other is table:
                return other
        for other in known:
            if other.device == table.device and torch.equal(other, table):
                return other
        known.append(table)
        return table

    def _step_together(
        self: Any, together: dict[tuple, tuple[tuple[torch.Tensor, ...], list[Moments]]]
    ) -> None:
        # Groups come in the same order every step, so that each finds its table of addresses again.
        launches: list[AdamW8bitStep] = self.__dict__.setdefault("_launches", [])
        launches += [AdamW8bitStep() for _ in range(len(together) - len(launches))]
        for launch, (key, (tables, moments)) in zip(launches, together.items(), strict=False):
            launch(moments, tables, key[0])


class AdamW(_WithoutWaiting, bnb.optim.AdamW):
    """AdamW with block-wise 8-bit or 32-bit states, paged or not (Dettmers et al. 2022, arXiv 2110.02861)."""


class AdamW8bit(_WithoutWaiting, bnb.optim.AdamW8bit):
    """AdamW with block-wise 8-bit states."""


def without_waiting(cls: type) -> type:
    """This module's class in place of bitsandbytes' own, any other optimiser as it is."""
    return {bnb.optim.AdamW: AdamW, bnb.optim.AdamW8bit: AdamW8bit}.get(cls, cls)
