"""Older argument names of this field's tutorials, and what became of each: renamed, moved or dropped.

One table a class. Every older name is answered with one warning a process, and a name that nobody knows is
refused with the nearest right one, so that nothing is silently ignored.
"""

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sloth_nb.errors import TrainingError
from sloth_nb.notices import warn

__all__ = ["CONFIG_NAMES", "TRAINER_NAMES", "Older", "translate"]


@dataclass(frozen=True)
class Older:
    """What became of one older name.

    Args:
        new: the name that took its place, or None when nothing did.
        why: a clause for the warning, after the names.
        turn: old value → new value; ``None`` as a result leaves the new option alone.
        in_config: the new name is an option of the config (for an older argument of the trainer).
    """

    new: str | None
    why: str = ""
    turn: Callable[[Any], Any] | None = None
    in_config: bool = False


def _if_true(value: Any) -> Callable[[Any], Any]:
    return lambda old: value if old else None


_LENGTHS = "rows are packed by their real lengths, so it has nothing to set"
_PROMPTS = "it belongs to preference and reward training; here whole conversations are cut at max_length"

CONFIG_NAMES: Mapping[str, Older] = {
    "max_seq_length": Older("max_length"),
    "evaluation_strategy": Older("eval_strategy"),
    "warmup_ratio": Older("warmup_steps", "a value below 1 is a share of all steps"),
    "group_by_length": Older("train_sampling_strategy", turn=_if_true("group_by_length")),
    "no_cuda": Older("use_cpu"),
    "push_to_hub_token": Older("hub_token"),
    "push_to_hub_model_id": Older("hub_model_id"),
    "per_gpu_train_batch_size": Older("per_device_train_batch_size"),
    "per_gpu_eval_batch_size": Older("per_device_eval_batch_size"),
    "include_inputs_for_metrics": Older("include_for_metrics", turn=_if_true(["inputs"])),
    "use_liger": Older("use_liger_kernel"),
    "overwrite_output_dir": Older(
        None, "a folder's older checkpoints stay until save_total_limit removes them; pass another output_dir"
    ),
    "logging_dir": Older(None, "set the environment variable TENSORBOARD_LOGGING_DIR instead"),
    "save_safetensors": Older(None, "weights are always saved as safetensors"),
    "use_mps_device": Older(None, "the device is found by itself"),
    "use_ipex": Older(None, "transformers gave it up"),
    "jit_mode_eval": Older(None, "transformers gave it up"),
    "half_precision_backend": Older(None, "torch's own autocast is the only one left"),
    "fp16_backend": Older(None, "torch's own autocast is the only one left"),
    "fp16_opt_level": Older(None, "torch's own autocast has no levels"),
    "tpu_num_cores": Older(None, "start the script with `accelerate launch` instead"),
    "mp_parameters": Older(None, "it belonged to a launcher that is gone"),
    "past_index": Older(None, "transformers gave it up"),
    "ray_scope": Older(None, "transformers gave it up"),
    "torchdynamo": Older(None, "use torch_compile_backend"),
    "dataset_batch_size": Older(None, "rows are read and tokenised in one pass"),
    "num_of_sequences": Older(None, _LENGTHS),
    "chars_per_token": Older(None, _LENGTHS),
    "max_prompt_length": Older(None, _PROMPTS),
    "max_completion_length": Older(None, _PROMPTS),
}

TRAINER_NAMES: Mapping[str, Older] = {
    "tokenizer": Older("processing_class"),
    "max_seq_length": Older("max_length", in_config=True),
    "dataset_text_field": Older("dataset_text_field", in_config=True),
    "packing": Older("packing", in_config=True),
    "eval_packing": Older("eval_packing", in_config=True),
    "dataset_num_proc": Older("dataset_num_proc", in_config=True),
    "dataset_kwargs": Older("dataset_kwargs", in_config=True),
    "neftune_noise_alpha": Older("neftune_noise_alpha", in_config=True),
    "model_init_kwargs": Older("model_init_kwargs", in_config=True),
    "dataset_batch_size": CONFIG_NAMES["dataset_batch_size"],
    "num_of_sequences": CONFIG_NAMES["num_of_sequences"],
    "chars_per_token": CONFIG_NAMES["chars_per_token"],
    "max_prompt_length": CONFIG_NAMES["max_prompt_length"],
    "infinite": Older(None, "set max_steps instead"),
}


def translate(
    owner: str, given: Mapping[str, Any], known: Collection[str], older: Mapping[str, Older]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Today's arguments for what was given, older names and all.

    Args:
        owner: the class that was called, for the messages.
        given: keyword arguments as a user wrote them.
        known: names that ``owner`` takes today.
        older: what became of the others.

    Returns:
        (arguments of ``owner``, options that moved into its config).

    Raises:
        TrainingError: a name that is neither known nor older, with the nearest right one; or an older and
            its newer name with two different values.
    """
    here: dict[str, Any] = {name: value for name, value in given.items() if name in known}
    config: dict[str, Any] = {}
    for name, value in given.items():
        if name in known:
            continue
        if name not in older:
            raise TrainingError(f"{owner} has no argument {name!r}{_nearest(name, [*known, *older])}")
        entry = older[name]
        warn(_sentence(owner, name, entry), once=f"{owner}.{name}")
        new_value = entry.turn(value) if entry.turn else value
        if entry.new is None or new_value is None:
            continue
        target = config if entry.in_config else here
        if target.get(entry.new, new_value) != new_value:
            raise TrainingError(
                f"{owner} was given {name}={value!r} and {entry.new}={target[entry.new]!r}, which are the "
                f"same option. Keep {entry.new}."
            )
        target[entry.new] = new_value
    return here, config


def _sentence(owner: str, name: str, entry: Older) -> str:
    if entry.new is None:
        return f"{owner}: {name} has no effect any more: {entry.why}. Leave it out."
    why = f" ({entry.why})" if entry.why else ""
    if entry.in_config:
        return f"{owner}: {name} moved into SFTConfig, as {entry.new}{why}; it was passed on."
    return f"{owner}: {name} is called {entry.new} now{why}; it was passed on."


def _nearest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else "."
