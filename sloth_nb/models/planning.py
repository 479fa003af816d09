"""plan="auto": what each layer keeps, recomputes or moves to the host, for the room that is left on the device.

The engine asks before each new shape of batch. A trainer tells more (its optimiser, its largest batch), and is
refused before the first step when nothing fits.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch

from sloth_nb import memory
from sloth_nb.catalog import GPU
from sloth_nb.engine.device import unreserved
from sloth_nb.engine.policy import LayerPolicy
from sloth_nb.engine.rules import StackPlan
from sloth_nb.errors import HardwareError, SlothError
from sloth_nb.memory.machine import devices, free_ram
from sloth_nb.memory.room import plan_for_room

from . import recomputing
from .host_embedding import offload_embedding, why_embedding_stays
from .report import engine_of, report_of
from .workload import work_of

__all__ = ["AutoPlan", "auto_plan_of"]

# Of what is free: the rest is for the other things that a machine does.
HOST_SHARE, CPU_SHARE = 0.5, 0.8
# Kernels are loaded into the driver's memory as they are first used.
LOADED_LATER = 128 << 20
# What is left of the room after a plan that was too optimistic.
TIGHTER = 0.85


class AutoPlan:
    """Plans each shape of batch for the room that was there when it was first asked.

    Example:
        >>> model, tokenizer = FastLanguageModel.from_pretrained("qwen3-14b", plan="auto")
        >>> print(report_of(model))          # after training began: what was planned, and for how much room
    """

    def __init__(self, model: Any):
        self._model = weakref.ref(model)
        self.work: memory.Work | None = None
        self.room = self.host = 0
        self.gpu: GPU | None = None
        self.largest: memory.Plan | None = None
        self.unknown: str | None = None
        """Why nothing can be planned; then the engine's own rule decides."""
        self._optimiser_is_there = False
        self._made: dict[tuple[int, int, bool], StackPlan] = {}

    # -- what a trainer says ------------------------------------------------------------------------------------

    def begin(self, *, optimiser_is_there: bool = False, **options: Any) -> memory.Plan | None:
        """Measures the room and plans the largest batch; None when nothing can be planned.

        Args:
            optimiser_is_there: its states are on the device already.
            **options: of ``Work``: batch, length, packed, optimiser, accumulation, …
        Raises:
            HardwareError: nothing fits; with the three cheapest changes that would.
        """
        self._look(optimiser_is_there, options)
        return self._plan_largest()

    def tighten(self) -> memory.Plan | None:
        """Plans again for less room, after the plan turned out to be too optimistic.

        Raises:
            HardwareError: nothing fits.
        """
        self.room = int(TIGHTER * self.room)
        return self._plan_largest()

    def _plan_largest(self) -> memory.Plan | None:
        self._forget()
        if self.work is None:
            return None
        try:
            self.largest = self._fit(self.work, embeddings=self._may_move_embeddings())
        except HardwareError as refusal:
            by_hand = "offload" if self.host else "lean"
            raise HardwareError(
                f"{refusal}\n  To try all the same, choose how activations are held yourself: "
                f'use_gradient_checkpointing="{by_hand}".'
            ) from None
        self._take(self.largest)
        return self.largest

    def _forget(self) -> None:
        self._made.clear()
        self.largest = None
        if (engine := self._engine()) is not None:
            engine.forget_plans()

    def _take(self, made: memory.Plan) -> None:
        """What a plan says of the whole run, beside the policies."""
        model, engine = self._model(), self._engine()
        if made.work.embedding_offload and self.work is not None and not self.work.embedding_offload:
            self.room += offload_embedding(model)
            self.work = self.work.but(embedding_offload=True)
        if engine is not None:
            engine.settings.loss_chunk_bytes = made.work.loss_chunk
            engine.settings.cuda_graphs = made.work.graphs
        elif made.work.policy == "keep":
            recomputing.disable(model)
        else:
            recomputing.enable(model)

    # -- what the engine asks -----------------------------------------------------------------------------------

    def plan(self, tokens: int, length: int) -> StackPlan | None:
        """The policies of a pass over this many tokens, in sequences of up to ``length``."""
        if self.gpu is None and self.unknown is None:
            self._look(False, {})
        if self.work is None:
            return None
        batch, rest = divmod(tokens, length)
        key = (1, self._rounded(tokens), True) if rest else (batch, self._rounded(length), self.work.packed)
        if key not in self._made:
            self._made[key] = self._stack_plan(*key)
        return self._made[key]

    def _rounded(self, n: int) -> int:
        """Up by a sixteenth at most, so that batches of ever new lengths share their plans."""
        step = max(64, 1 << max(0, n.bit_length() - 5))
        rounded = -(-n // step) * step
        if self.largest is not None:  # never beyond what was planned for
            for most in (self.largest.work.length, self.largest.work.tokens):
                if n <= most:
                    return min(rounded, most)
        return rounded

    def _stack_plan(self, batch: int, length: int, packed: bool) -> StackPlan:
        assert self.work is not None and self.gpu is not None
        work = self.work.but(batch=batch, length=length, packed=packed)
        if self.largest is not None and work.tokens == self.largest.work.tokens:
            made = self.largest.work
        else:
            try:
                made = self._fit(work).work
            except HardwareError:  # of no use in the middle of a run: nothing leaner is known
                made = work.but(policy="offload" if self.host else "lean")
        if not made.graphs and (engine := self._engine()) is not None:
            engine.settings.cuda_graphs = False
        policies = made.policies(self.gpu)
        return StackPlan(
            [LayerPolicy(frozenset(policy.device), frozenset(policy.host)) for policy in policies],
            made.tile(policies, self.gpu),
        )

    # -- the room -----------------------------------------------------------------------------------------------

    def _look(self, optimiser_is_there: bool, options: dict[str, Any]) -> None:
        """What is trained, on what, with how much room."""
        model = self._model()
        self.work, self.unknown, self._optimiser_is_there = None, None, optimiser_is_there
        try:
            work = work_of(model, **options)
        except SlothError as reason:
            self.unknown = str(reason).splitlines()[0]
            return
        places = _devices_of(model)
        if len(places) != 1 or (device := places.pop()).type not in ("cuda", "cpu"):
            self.unknown = "the model is spread over several devices" if places else f"it is on {device}"
            return
        if device.type == "cuda":
            self.gpu = devices()[device.index or 0].gpu
            cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
            self.room, self.host = unreserved(device) + cached - LOADED_LATER, int(HOST_SHARE * free_ram())
            if work.embedding_offload:  # there already, and counted once more by every estimate
                self.host += 2 * work.model.shape.embedding_parameters
        else:
            self.gpu = memory.device_for("cpu")
            self.room, self.host = int(CPU_SHARE * free_ram()), 0
        # The memory model counts 16-bit activations.
        self.room = self.room * 2 // max(2, model.dtype.itemsize)
        self.work = work.but(policy="recompute")

    def _may_move_embeddings(self) -> bool:
        return self.host > 0 and why_embedding_stays(self._model()) is None

    def _fit(self, work: memory.Work, embeddings: bool = False) -> memory.Plan:
        """The plan that fits; for transformers' own modules, whether they recompute.

        With ``embeddings`` it may want them in host memory, which is done once, before the first step.

        Raises:
            HardwareError: nothing fits.
        """
        assert self.gpu is not None
        return plan_for_room(
            work,
            room=self.room,
            host=self.host,
            gpu=self.gpu,
            optimiser_is_there=self._optimiser_is_there,
            embeddings=embeddings,
        )

    def _engine(self) -> Any:
        model = self._model()
        return None if model is None else engine_of(model)

    def __str__(self) -> str:
        if self.unknown:
            return f"chosen for each batch by the engine's rule (nothing was planned: {self.unknown})"
        if self.work is None:
            return "planned for the room that there is when training begins"
        said = f"planned for {self.room / memory.GB:.1f} GB of room"
        if self.largest is not None:
            said += f": {self.largest.summary()}; {self.largest.estimate.total_gb:.1f} GB predicted"
        return said


def _devices_of(model: Any) -> set[torch.device]:
    return {parameter.device for parameter in model.parameters()} - {torch.device("meta")}


def auto_plan_of(model: Any) -> AutoPlan | None:
    """The plan of a model that was prepared with "auto", or None."""
    report = report_of(model)
    return report.plan if report is not None and isinstance(report.plan, AutoPlan) else None
