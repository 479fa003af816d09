"""What the memory model expects of a run: the plan it is given, and bytes to be stored beside what it really takes."""

from typing import Any

from sloth_nb import memory
from sloth_nb.errors import SlothError, TrainingError
from sloth_nb.memory.policy import Policy
from sloth_nb.models.planning import auto_plan_of
from sloth_nb.models.report import engine_of
from sloth_nb.models.workload import work_of
from sloth_nb.training.config import SFTConfig
from sloth_nb.training.preparing import is_stream

__all__ = ["plan_run", "predicted_bytes", "shape_of"]

# transformers' names for what the memory model knows; others hold fp32 states like torch's own AdamW.
_OPTIMISERS = {
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adamw_torch_fused": "adamw_torch_fused",
    "sgd": "sgd",
}


def shape_of(args: SFTConfig, rows: Any) -> dict[str, Any]:
    """Options of ``Work`` that a trainer's arguments and rows say; of the rows the longest is taken for all."""
    return {
        "batch": args.per_device_train_batch_size,
        "length": _longest(rows, args),
        "packed": args.packing or args.padding_free,
        "accumulation": args.gradient_accumulation_steps,
        "optimiser": _OPTIMISERS.get(str(getattr(args.optim, "value", args.optim)), "adamw_torch"),
        "gpus": args.world_size,
    }


def plan_run(model: Any, args: SFTConfig, rows: Any, optimizer: Any = None) -> memory.Plan | None:
    """Plans the run of a model that was prepared with "auto", for the room that there is now; None for others.

    Raises:
        HardwareError: it doesn't fit; with the three cheapest changes that would make it.
    """
    planner = auto_plan_of(model)
    if planner is None:
        return None
    shape = shape_of(args, rows) | _who_computes(model, args)
    return planner.begin(optimiser_is_there=_has_states(optimizer), **shape)


def predicted_bytes(model: Any, args: SFTConfig, rows: Any, gpu: str | None = None) -> int | None:
    """The peak that ``torch.cuda.max_memory_allocated`` should show, or None where nothing can be said.

    Args:
        rows: tokenised rows, whose longest one is taken for all.
        gpu: a card by name; None is the one that trains (and says nothing on a CPU).
    """
    if gpu is None and args.device.type != "cuda":
        return None
    try:
        work = work_of(model, **shape_of(args, rows), **_who_computes(model, args))
        if gpu is None:
            work = _as_the_engine_will(model, work)
        return int(memory.estimate_work(work, memory.device_for(gpu)).tensors)
    except SlothError:  # a card or an architecture that the memory model doesn't know
        return None


def _who_computes(model: Any, args: SFTConfig) -> dict[str, Any]:
    """fp32 weights that are to be computed with in 16 bits are left to transformers' own modules."""
    return {"engine": "hf"} if (args.bf16 or args.fp16) and model.dtype.itemsize > 2 else {}


def _as_the_engine_will(model: Any, work: memory.Work) -> memory.Work:
    """The work with the very policies that the engine takes on this card for its largest batch."""
    engine = engine_of(model)
    if engine is None or work.engine != "sloth":
        return work
    made = engine.plan(work.tokens, work.length)
    policies = tuple(Policy(tuple(policy.device), tuple(policy.host)) for policy in made.policies)
    return work.but(policy=policies, mlp_tile=made.mlp_tile)


def _has_states(optimizer: Any) -> bool:
    inner = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
    return bool(getattr(inner, "state", None))


def _longest(rows: Any, args: SFTConfig) -> int:
    """Tokens of the longest row, from the table's own lengths, without reading the tokens; padded as it will be."""
    import pyarrow.compute

    multiple = args.pad_to_multiple_of
    if is_stream(rows):
        if args.max_length is None:
            raise TrainingError(
                "How much memory a stream's rows take can't be told without max_length: set it."
            )
        longest = args.max_length
    elif hasattr(rows, "data"):
        column = rows.data.column("input_ids")
        longest = pyarrow.compute.max(pyarrow.compute.list_value_length(column)).as_py()
    else:
        longest = max(len(row["input_ids"]) for row in rows)
    return -(-longest // (multiple or 1)) * (multiple or 1)
