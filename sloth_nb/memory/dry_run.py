"""The dry run: a real step of the real code on fake tensors. Seconds, no weights, no GPU.

Equal layers take equal memory, so only the different ones are run: the first, the last and one of each kind
between, under each policy. What a step's stretch over one layer adds and how far it rises is then put together for
all layers. Imports torch and transformers when it is called.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

from sloth_nb.catalog import GPU
from sloth_nb.errors import ModelError, TrainingError
from sloth_nb.memory.estimate import Estimate
from sloth_nb.memory.formulas import estimate_work
from sloth_nb.memory.libraries import MOVING, fragmentation, library_bytes
from sloth_nb.memory.trace import rounded
from sloth_nb.memory.weights import standing
from sloth_nb.memory.work import Work

if TYPE_CHECKING:
    from torch import nn

    from sloth_nb.memory.fake_allocator import FakeAllocator, Stretch

__all__ = ["dry_run"]

# Layers at either end of a run of one policy that are run themselves: what is on its way to or from the host
# reaches one layer further.
EDGE = 2


def dry_run(work: Work, gpu: GPU) -> Estimate:
    """The same question as ``estimate_work``, answered by the engine's own code.

    Raises:
        ModelError: transformers can't build this model, or the engine doesn't run it.
        TrainingError: the work is not this engine's.
    """
    from sloth_nb.memory.fake_model import layer_kinds, text_config

    if work.engine != "sloth":
        raise TrainingError(
            "The dry run is of this package's engine; for engine='hf' there are the formulas."
        )
    if gpu.is_cpu:  # its plain kernels look at values, which fake tensors have not
        raise TrainingError("The dry run is of a card's kernels; for a CPU there are the formulas.")
    config = text_config(work.model)
    kinds = layer_kinds(config)
    if len(kinds) != work.model.shape.layers:
        raise ModelError(
            f"{work.model.name} is more than one stack of decoder layers; the dry run has no step for it."
        )
    chosen, stands_for = _sample(work.policies(gpu), kinds)
    with ExitStack() as stack:
        allocator = _enter(stack, gpu)
        stretches, per_parameter = _run(work, gpu, config, chosen, allocator)
    base = standing(work)
    start = base.weights + base.adapters + base.optimiser
    start += base.gradients * ((work.accumulation > 1) + work.captured(gpu))
    peak, end, moment = _put_together(start, stretches, stands_for)
    step = end + int(per_parameter * base.trainable)
    if step > peak:
        peak, moment = step, "optimiser step"
    return _explained(estimate_work(work, gpu), peak + library_bytes(gpu, work.captured(gpu)), moment)


def _sample(policies: tuple[Any, ...], kinds: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Layers to run, and for each layer of the model the place in that list of the one that stands for it."""
    chosen: list[int] = []
    stands_for = [0] * len(policies)
    start = 0
    for _, group in groupby(policies):
        end = start + len(list(group))
        between: dict[str, int] = {}
        for i in range(start, end):
            if i < start + EDGE or i >= end - EDGE:
                stands_for[i] = len(chosen)
                chosen.append(i)
            elif kinds[i] in between:
                stands_for[i] = between[kinds[i]]
            else:
                stands_for[i] = between[kinds[i]] = len(chosen)
                chosen.append(i)
        start = end
    return chosen, stands_for


def _enter(stack: ExitStack, gpu: GPU) -> FakeAllocator:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from sloth_nb.memory.fake_allocator import FakeAllocator

    stack.enter_context(_pretending(gpu))
    stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
    return stack.enter_context(FakeAllocator())


@contextmanager
def _pretending(gpu: GPU) -> Iterator[None]:
    """This card's kernels are taken and not launched."""
    from sloth_nb_kernels.launch import pretend

    major = int(gpu.capability)
    with pretend((major, round(10 * (gpu.capability - major)))):
        yield


def _run(
    work: Work, gpu: GPU, config: Any, chosen: list[int], allocator: FakeAllocator
) -> tuple[list[Stretch], float]:
    """One micro-step on the chosen layers, in stretches; and how far the optimiser's step rises, per parameter."""
    from sloth_nb.memory.fake_model import decoder_layers, fake_model

    model = fake_model(work, config, chosen)
    _install(model, work, gpu, chosen, allocator.mark)
    inputs = _inputs(work)
    for last in (False, True) if work.accumulation > 1 else (True,):
        allocator.mark("begin")
        model(**inputs).loss.backward()
        gc.collect()
        allocator.mark(None)
        if not last:
            allocator.stretches.clear()
    trained = [p for p in model.parameters() if p.requires_grad]
    stretches = list(allocator.stretches)
    if work.captured(gpu):
        stretches = [_into_buffers(stretch, decoder_layers(model)) for stretch in stretches]
    return stretches, _optimise(work, trained, allocator) / max(sum(p.numel() for p in trained), 1)


def _inputs(work: Work) -> dict[str, Any]:
    import torch

    if not work.packed:
        ids = torch.zeros(work.sequences, work.length, dtype=torch.int64)
        return {"input_ids": ids, "labels": ids}
    ids = torch.zeros(1, work.tokens, dtype=torch.int64)
    edges = torch.zeros(work.sequences + 1, dtype=torch.int32)
    return {
        "input_ids": ids,
        "labels": ids,
        "position_ids": torch.zeros_like(ids),
        "cu_seq_lens_q": edges,
        "cu_seq_lens_k": edges,
        "max_length_q": work.length,
        "max_length_k": work.length,
    }


def _install(model: nn.Module, work: Work, gpu: GPU, chosen: list[int], mark: Callable[[Any], None]) -> None:
    """The engine with the work's policies, each layer's passes marked.

    Raises:
        ModelError: the engine doesn't run this architecture; with its reason.
    """
    from sloth_nb.engine.policy import LayerPolicy
    from sloth_nb.memory.fake_model import HostMemory
    from sloth_nb.models.install import install

    policies = work.policies(gpu)
    report = install(
        model,
        [LayerPolicy(frozenset(policies[i].device), frozenset(policies[i].host)) for i in chosen],
        mlp_tile=work.tile(policies, gpu),
        loss_chunk_bytes=work.loss_chunk,
        cuda_graphs=False,
    )
    if report.engine is None:
        raise ModelError(f"The engine does not run {work.model.name}: {report.left}.")
    report.engine._offloader = HostMemory()

    def marked(call: Callable[..., Any], name: Any) -> Callable[..., Any]:
        def passing(*args: Any, **kwargs: Any) -> Any:
            mark(name)
            return call(*args, **kwargs)

        return passing

    for place, layer in enumerate(report.engine.layers()):
        layer.forward = marked(layer.forward, ("forward", place))
        layer.backward = marked(layer.backward, ("backward", place))


def _into_buffers(stretch: Stretch, layers: nn.ModuleList) -> Stretch:
    """As a captured step has it, whose gradients go where room for them is kept."""
    way, place = stretch.name if isinstance(stretch.name, tuple) else (None, 0)
    if way != "backward":
        return stretch
    trained = [p for p in layers[place].parameters() if p.requires_grad]
    made = sum(rounded(p.numel() * p.element_size()) for p in trained)
    return replace(stretch, growth=stretch.growth - made, rise=max(0, stretch.rise - made))


def _optimise(work: Work, parameters: list[Any], allocator: FakeAllocator) -> int:
    """What an optimiser's step makes besides its states, by torch's own where it is torch's."""
    import torch

    if work.optimiser not in ("adamw_torch", "adamw_torch_fused"):
        return 0
    # foreach is what CUDA parameters get; for fake ones torch would choose the loop, which makes less.
    way = {"foreach": True} if work.optimiser == "adamw_torch" else {"fused": True}
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, **way)
    optimiser.step()
    allocator.mark("optimiser")
    optimiser.step()
    allocator.mark(None)
    return allocator.stretches[-1].rise


def _put_together(start: int, stretches: list[Stretch], stands_for: list[int]) -> tuple[int, int, str]:
    """The peak of the whole model's step, what is live at its end, and the moment of the peak."""
    by_name = {stretch.name: stretch for stretch in stretches}
    order: list[tuple[str, Any]] = [("forward", "begin")]
    order += [("forward", ("forward", place)) for place in stands_for]
    order += [("backward", ("backward", place)) for place in reversed(stands_for)]
    live, peak, moment = start, start, "forward"
    for name, key in order:
        stretch = by_name[key]
        if live + stretch.rise > peak:
            peak, moment = live + stretch.rise, name
        live += stretch.growth
    return peak, live, moment


def _explained(quick: Estimate, tensors: int, moment: str) -> Estimate:
    """The formulas' kinds under the dry run's sum: what stands stays, what moves is scaled to it."""
    kinds = {kind: size for kind, size in quick.kinds.items() if kind != "fragmentation"}
    moving = [kind for kind in MOVING if kind in kinds]
    stands = sum(size for kind, size in kinds.items() if kind not in (*moving, "context"))
    before = max(sum(kinds[kind] for kind in moving), 1)
    for kind in moving:
        kinds[kind] = kinds[kind] * max(tensors - stands, 0) // before
    largest = max(moving or ["weights"], key=lambda kind: kinds[kind])
    kinds[largest] += tensors - sum(size for kind, size in kinds.items() if kind != "context")
    kinds["fragmentation"] = fragmentation(kinds)
    return replace(quick, kinds=kinds, moment=moment, depth="dry run")
