"""The dry run: a real step of the real code on fake tensors. Seconds, no weights, no GPU.

Equal layers take equal memory, so only the different ones are run: the first, the last and one of each kind
between, under each policy. What comes and goes in a step's stretch over one layer is then replayed for all layers,
through the rules of torch's allocator. Imports torch and transformers when it is called.
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
from sloth_nb.memory.caching_allocator import CachingAllocator, OutOfRoom
from sloth_nb.memory.estimate import Estimate
from sloth_nb.memory.formulas import estimate_work
from sloth_nb.memory.libraries import MOVING, context_bytes, library_bytes
from sloth_nb.memory.weights import standing
from sloth_nb.memory.whole_step import Stretch, WholeStep
from sloth_nb.memory.work import Work

if TYPE_CHECKING:
    from torch import nn

    from sloth_nb.memory.fake_allocator import FakeAllocator

__all__ = ["dry_run", "runs_within"]

# Layers at either end of a run of one policy that are run themselves: what is on its way to or from the host
# reaches one layer further.
EDGE = 2
STEPS = 2


def dry_run(work: Work, gpu: GPU) -> Estimate:
    """The same question as ``estimate_work``, answered by the engine's own code.

    Raises:
        ModelError: transformers can't build this model, or the engine doesn't run it.
        TrainingError: the work is not this engine's.
    """
    allocator = CachingAllocator()
    moment = _two_steps(allocator, work, gpu, *_recorded(work, gpu))
    return _explained(estimate_work(work, gpu), allocator, moment)


def runs_within(work: Work, gpu: GPU, memory: int) -> bool:
    """Whether two steps run with no more than this of the card, the driver's own included.

    Before it runs out the allocator gives back what is wholly free, so that this may be less than what a step
    reserves when nobody stops it. Raises as ``dry_run`` does.
    """
    allocator = CachingAllocator(memory - context_bytes(gpu))
    recorded = _recorded(work, gpu)
    try:
        _two_steps(allocator, work, gpu, *recorded)
    except OutOfRoom:
        return False
    return True


def _recorded(work: Work, gpu: GPU) -> tuple[WholeStep, list[int]]:
    """One step, and what the optimiser's own makes meanwhile."""
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
        recorder = _enter(stack, gpu)
        stretches, optimised = _run(work, gpu, config, chosen, stands_for, recorder)
    return WholeStep(stretches, stands_for, buffers=work.captured(gpu)), optimised


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
    work: Work, gpu: GPU, config: Any, chosen: list[int], stands_for: list[int], allocator: FakeAllocator
) -> tuple[list[Stretch], list[int]]:
    """One micro-step on the chosen layers, in stretches; and what the optimiser's step makes for the whole model."""
    from sloth_nb.memory.fake_model import decoder_layers, fake_model

    model = fake_model(work, config, chosen)
    _install(model, work, gpu, chosen, allocator.mark)
    inputs = _inputs(work)
    for last in (False, True) if work.accumulation > 1 else (True,):
        allocator.mark("begin")
        output = model(**inputs)  # held by its caller, as in a loop written by hand
        output.loss.backward()
        gc.collect()
        allocator.mark(None)
        del output
        if not last:
            allocator.stretches.clear()
    trained = [p for p in model.parameters() if p.requires_grad]
    stretches = list(allocator.stretches)
    each = _optimise(work, trained, allocator) / max(sum(p.numel() for p in trained), 1)
    if not each:
        return stretches, []
    layers = [[p.numel() for p in layer.parameters() if p.requires_grad] for layer in decoder_layers(model)]
    inside = {id(p) for layer in decoder_layers(model) for p in layer.parameters()}
    counts = [p.numel() for p in trained if id(p) not in inside]
    counts += [count for place in stands_for for count in layers[place]]
    return stretches, [int(each * count) for count in counts]


def _two_steps(
    allocator: CachingAllocator, work: Work, gpu: GPU, step: WholeStep, optimised: list[int]
) -> str:
    """Through the allocator; the second step finds the first's segments. Returns the fullest moment."""
    base = standing(work)
    gradients = base.gradients * ((work.accumulation > 1) + work.captured(gpu))
    for size in (base.weights, base.adapters, base.optimiser, gradients):
        if size:
            allocator.allocate(size)
    workspaces = 3 if work.captured(gpu) else 2
    for _ in range(workspaces):
        allocator.allocate(library_bytes(gpu, work.captured(gpu)) // workspaces)
    moment = "forward"
    for _ in range(STEPS):
        peak = allocator.allocated_peak
        fullest, left = step.run(allocator)
        if allocator.allocated_peak > peak:
            moment, peak = fullest, allocator.allocated_peak
        made = [allocator.allocate(size) for size in optimised]
        if allocator.allocated_peak > peak:
            moment = "optimiser step"
        for block in [*made, *left]:
            allocator.free(block)
    return moment


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
    from sloth_nb.memory.fake_model import FakeOffloader
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
    report.engine.offloader = FakeOffloader()

    def marked(call: Callable[..., Any], name: Any) -> Callable[..., Any]:
        def passing(*args: Any, **kwargs: Any) -> Any:
            mark(name)
            return call(*args, **kwargs)

        return passing

    for place, layer in enumerate(report.engine.layers()):
        layer.forward = marked(layer.forward, ("forward", place))
        layer.backward = marked(layer.backward, ("backward", place))


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


def _explained(quick: Estimate, allocator: CachingAllocator, moment: str) -> Estimate:
    """The formulas' kinds under the dry run's sum: what stands stays, what moves is scaled to it."""
    tensors = allocator.allocated_peak
    kinds = {kind: size for kind, size in quick.kinds.items() if kind != "fragmentation"}
    moving = [kind for kind in MOVING if kind in kinds]
    stands = sum(size for kind, size in kinds.items() if kind not in (*moving, "context"))
    before = max(sum(kinds[kind] for kind in moving), 1)
    for kind in moving:
        kinds[kind] = kinds[kind] * max(tensors - stands, 0) // before
    largest = max(moving or ["weights"], key=lambda kind: kinds[kind])
    kinds[largest] += tensors - sum(size for kind, size in kinds.items() if kind != "context")
    kinds["fragmentation"] = allocator.reserved_peak - tensors
    kinds = {kind: size for kind, size in kinds.items() if size}
    return replace(quick, kinds=kinds, moment=moment, depth="dry run")
