"""The config, the class and the weights of a model, through transformers."""

from collections.abc import Iterable
from typing import Any

import torch
from safetensors import SafetensorError

from sloth_nb.errors import HardwareError, ModelError
from sloth_nb.models import arguments
from sloth_nb.models.sources import Source
from sloth_nb.notices import warn

__all__ = ["choose_class", "is_multimodal", "load_config", "load_weights"]

# What transformers' own from_pretrained takes besides the arguments below and the attributes of a model's
# config.
_TRANSFORMERS_ARGUMENTS = (
    "attn_implementation",
    "cache_dir",
    "config",
    "experts_implementation",
    "force_download",
    "generation_config",
    "ignore_mismatched_sizes",
    "key_mapping",
    "local_files_only",
    "low_cpu_mem_usage",
    "max_memory",
    "offload_buffers",
    "offload_folder",
    "proxies",
    "quantization_config",
    "subfolder",
    "tp_plan",
    "tp_size",
    "use_kernels",
    "use_safetensors",
    "variant",
)

# Where checkpoints of models that also see or hear keep the text model's weights.
_TEXT_PART = {
    r"^(model\.)?language_model\.model\.": "model.",
    r"^model\.language_model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
}

_FAILURES = (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError, SafetensorError)


def load_config(
    source: Source,
    kwargs: dict[str, Any],
    *,
    trust_remote_code: bool,
    text_only: bool,
    also_known: Iterable[str],
) -> Any:
    """The model's config, changed by the keyword arguments that are attributes of it; these leave ``kwargs``.

    With ``text_only`` it is the text part's, and ``kwargs`` gets the names of that part's weights.

    Raises:
        ModelError: the config can't be read, or an argument is neither transformers', nor ``also_known``,
            nor the config's.
    """
    from transformers import AutoConfig

    config = kwargs.pop("config", None)
    if config is None:
        try:
            config = AutoConfig.from_pretrained(
                source.base, trust_remote_code=trust_remote_code, **source.base_options.arguments()
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"The config of {source.base} can't be read: {error}") from error
    if text_only and is_multimodal(config):
        config = config.get_text_config()
        kwargs["key_mapping"] = {**_TEXT_PART, **kwargs.get("key_mapping", {})}
    overrides = [name for name in kwargs if name not in _TRANSFORMERS_ARGUMENTS]
    known = [*also_known, *_TRANSFORMERS_ARGUMENTS, *config.to_dict()]
    arguments.refuse_unknown(overrides, known, "from_pretrained")
    for name in overrides:
        setattr(config, name, kwargs.pop(name))
    return config


def is_multimodal(config: Any) -> bool:
    """Whether the model sees or hears, too."""
    return any(getattr(config, part, None) is not None for part in ("vision_config", "audio_config")) or (
        config.model_type == "whisper"
    )


def choose_class(auto_model: Any, config: Any) -> Any:
    """The class to load with: the one asked for, or the automatic one of the model's kind."""
    import transformers

    if auto_model is not None:
        return auto_model
    if config.model_type == "whisper":
        return transformers.AutoModelForSpeechSeq2Seq
    if is_multimodal(config):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def load_weights(loader: Any, source: Source, **options: Any) -> Any:
    """The model itself.

    Raises:
        HardwareError: not enough memory on the GPU.
        ModelError: transformers can't load it, with its reason.
    """
    renamed = options.get("key_mapping") is not None
    options = {name: value for name, value in options.items() if value is not None}
    try:
        model, info = loader.from_pretrained(
            source.base, output_loading_info=True, **source.base_options.arguments(), **options
        )
    except torch.OutOfMemoryError as error:
        raise HardwareError(
            f"{source.base} doesn't fit into the GPU's memory ({str(error).split('. ')[0]}). Load it in 4 "
            "bits (load_in_4bit=True, with bitsandbytes), choose a smaller model, or restart kernels that "
            "hold memory."
        ) from error
    except _FAILURES as error:
        raise ModelError(f"{source.base} can't be loaded: {_said(error)}") from error
    if missing := sorted(info["missing_keys"]):
        shown = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        warn(f"{len(missing)} weights are not in {source.base} and start at random: {shown}.")
    if renamed:  # else saving would turn the names back, under which the part alone can't be loaded
        vars(model).pop("_weight_conversions", None)
    return model


def _said(error: Exception) -> str:
    """The beginning of a message that may list all of the model's weights, or all known models."""
    words = " ".join(str(error).split())
    return (
        f"{type(error).__name__}: {words[:297]}…" if len(words) > 300 else f"{type(error).__name__}: {words}"
    )
