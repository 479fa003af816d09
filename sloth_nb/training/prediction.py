"""What the memory model expects of a run, to be stored beside what the run really takes."""

from typing import Any

from sloth_nb import memory
from sloth_nb.errors import SlothError
from sloth_nb.models.install import engine_of
from sloth_nb.training.config import SFTConfig

__all__ = ["predicted_bytes"]

# transformers' names for what the memory model knows; others hold fp32 states like torch's own AdamW.
_OPTIMISERS = {
    "adamw_8bit": "adamw_8bit",
    "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
    "adamw_torch_fused": "adamw_torch_fused",
    "sgd": "sgd",
}


def predicted_bytes(model: Any, args: SFTConfig, rows: Any, gpu: str | None = None) -> int | None:
    """The peak that ``torch.cuda.max_memory_allocated`` should show, or None where nothing can be said.

    Args:
        rows: tokenised rows, whose longest one is taken for all.
        gpu: a card by name; None is the one that trains (and says nothing on a CPU).
    """
    if gpu is None and args.device.type != "cuda":
        return None
    adapter = getattr(model, "active_peft_config", None)
    options: dict[str, Any] = {
        "method": _method(model, adapter),
        "batch": args.per_device_train_batch_size,
        "length": _longest(rows),
        "packed": args.packing or args.padding_free,
        "accumulation": args.gradient_accumulation_steps,
        "optimiser": _OPTIMISERS.get(str(getattr(args.optim, "value", args.optim)), "adamw_torch"),
        **_how(model),
    }
    if adapter is not None:
        options["rank"] = adapter.r
        if not isinstance(adapter.target_modules, str):
            options["targets"] = tuple(sorted(adapter.target_modules))
    try:
        return int(memory.estimate(model.config.to_dict(), gpu=gpu, **options).tensors)
    except SlothError:  # a card or an architecture that the memory model doesn't know
        return None


def _method(model: Any, adapter: Any) -> str:
    if getattr(model, "is_loaded_in_4bit", False):
        return "qlora"
    if getattr(model, "is_loaded_in_8bit", False):
        return "lora-8bit"
    return "full" if adapter is None else "lora"


def _how(model: Any) -> dict[str, str]:
    """Who computes, and what becomes of activations."""
    if (engine := engine_of(model)) is not None:
        chosen = engine.settings.checkpointing
        named = {True: "recompute", False: "keep", None: "keep", "unsloth": "sloth"}
        return {
            "engine": "sloth",
            "policy": named.get(chosen, chosen) if not isinstance(chosen, list) else "sloth",
        }
    newer = hasattr(model, "is_activation_checkpointing")
    recomputes = model.is_activation_checkpointing if newer else model.is_gradient_checkpointing
    return {"engine": "hf", "policy": "recompute" if recomputes else "keep"}


def _longest(rows: Any) -> int:
    """Tokens of the longest row, from the table's own lengths, without reading the tokens."""
    import pyarrow.compute

    if hasattr(rows, "data"):
        return pyarrow.compute.max(pyarrow.compute.list_value_length(rows.data.column("input_ids"))).as_py()
    return max(len(row["input_ids"]) for row in rows)
