"""The optimizer: one that this machine has, and a learning rate of its own for embeddings that are trained whole."""

import importlib.util
from typing import Any

from transformers.training_args import OptimizerNames

from sloth_nb.errors import TrainingError
from sloth_nb.notices import warn
from sloth_nb.training.config import SFTConfig

__all__ = ["separate_embeddings", "usable_optimizer"]


def usable_optimizer(args: SFTConfig) -> None:
    """An 8-bit or paged AdamW where bitsandbytes is missing becomes torch's own."""
    name = str(getattr(args.optim, "value", args.optim))
    needs = "8bit" in name or "paged" in name
    if not needs:
        return
    missing = importlib.util.find_spec("bitsandbytes") is None
    if not missing and args.device.type != "cpu":
        return
    why = "bitsandbytes is not installed" if missing else "a CPU has memory enough for whole optimizer states"
    warn(f"optim={name!r}: {why}; 'adamw_torch' is used, which needs more memory.", once="usable_optimizer")
    args.optim = OptimizerNames.ADAMW_TORCH


def separate_embeddings(optimizer: Any, model: Any, learning_rate: float) -> None:
    """Move embeddings and output head into parameter groups of their own, before the first step.

    Raises:
        TrainingError: neither is trained.
    """
    modules = [model.get_input_embeddings(), model.get_output_embeddings()]
    chosen = {
        id(p) for module in modules if module is not None for p in module.parameters() if p.requires_grad
    }
    if not chosen:
        raise TrainingError(
            "embedding_learning_rate is set, but neither embeddings nor output head are trained. Add them to the "
            'adapter with get_peft_model(modules_to_save=["embed_tokens", "lm_head"]), or leave it out.'
        )
    for group in list(optimizer.param_groups):
        moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if moved:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
            options = {name: value for name, value in group.items() if name != "params"}
            optimizer.add_param_group({**options, "params": moved, "lr": learning_rate})
