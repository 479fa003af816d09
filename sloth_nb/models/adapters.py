"""``get_peft_model``: LoRA adapters on a loaded model, and adapters read back from a folder."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import fields
from typing import Any

from safetensors import SafetensorError

from sloth_nb.errors import ModelError
from sloth_nb.interrupts import put_off, told
from sloth_nb.models import arguments, host_embedding
from sloth_nb.models.binding import bind_methods
from sloth_nb.models.checkpointing import check_mode, set_checkpointing
from sloth_nb.models.seeding import seeded
from sloth_nb.models.settings import settings_of
from sloth_nb.models.sources import HubOptions
from sloth_nb.models.targets import choose_targets, holds_adapter, last_layers, unmatched, unmatched_said
from sloth_nb.notices import warn

__all__ = ["add_adapter", "load_adapter"]

_BIASES = ("none", "all", "lora_only")


@told("Interrupted while the adapter was added, and the model may hold a part of it. Load the model again.")
def add_adapter(
    model: Any,
    r: int = 16,
    target_modules: Sequence[str] | str | None = None,
    lora_alpha: float = 16,
    lora_dropout: float = 0.0,
    bias: str = "none",
    layers_to_transform: Any = None,
    layers_pattern: Any = None,
    finetune_last_n_layers: int | None = None,
    use_gradient_checkpointing: bool | str = "unsloth",
    random_state: int = 3407,
    max_seq_length: int | None = 2048,
    use_rslora: bool = False,
    modules_to_save: Any = None,
    init_lora_weights: Any = True,
    loftq_config: Any = None,
    temporary_location: str = "_unsloth_temporary_saved_buffers",
    qat_scheme: str | None = None,
    target_parameters: Any = None,
    ensure_weight_tying: bool = False,
    finetune_vision_layers: bool = True,
    finetune_language_layers: bool = True,
    finetune_attention_modules: bool = True,
    finetune_mlp_modules: bool = True,
    finetune_audio_layers: bool = False,
    task_type: Any = "CAUSAL_LM",
    **kwargs: Any,
) -> Any:
    """Puts LoRA adapters on a model; only they are trained.

    Args:
        model: from ``from_pretrained``.
        r, lora_alpha, lora_dropout, bias, use_rslora, modules_to_save, init_lora_weights,
        layers_to_transform,
            layers_pattern, target_parameters, ensure_weight_tying, task_type: as in peft's ``LoraConfig``.
        target_modules: names of linear layers, or "all-linear"; None for all linear layers of the parts that
            the ``finetune_…`` switches leave on.
        finetune_last_n_layers: only the last n decoder layers.
        use_gradient_checkpointing: True, "unsloth" or "sloth" recompute activations in the backward, to save
            memory; False keeps them; "auto" plans for the room that there is when training begins.
        random_state: seed of the adapters' first weights.
        max_seq_length: the model's context is fixed by ``from_pretrained``; more than that is refused with a
            warning.
        loftq_config: with ``init_lora_weights="loftq"``, as in peft.
        finetune_vision_layers, finetune_language_layers, finetune_attention_modules, finetune_mlp_modules,
            finetune_audio_layers: which parts get adapters, when ``target_modules`` isn't given.
        temporary_location: without effect here. qat_scheme: refused.
        kwargs: further fields of peft's ``LoraConfig`` (``use_dora``, ``rank_pattern``, …).
    Returns:
        peft's ``PeftModel``, its adapter weights in fp32. The model as it is, with a warning, where every
        weight is trained already, or where it has an adapter of just these settings.
    Raises:
        ModelError: not a model, no layer of that name, another adapter is there already, or settings that peft
            refuses.
    """
    with put_off():
        from peft import LoraConfig, PeftModel

    _refuse_other_than_a_model(model)
    if not isinstance(model, PeftModel) and holds_adapter(model):
        raise ModelError(
            "This model already has an adapter: use the object that get_peft_model returned, or load the model again."
        )
    if bias not in _BIASES:
        raise ModelError(f"bias={bias!r} is not known; it is {', '.join(map(repr, _BIASES))}.")
    check_mode(use_gradient_checkpointing)
    arguments.settle(locals(), arguments.PEFT)
    settings = settings_of(model)
    if settings.full_finetuning:
        warn(
            "The model was loaded with full_finetuning=True: every weight is trained, so no adapters are "
            "added."
        )
        return model
    if max_seq_length and settings.max_seq_length and max_seq_length > max(settings.max_seq_length, 2048):
        warn(
            f"max_seq_length={max_seq_length:,} was not applied: the model was loaded for "
            f"{settings.max_seq_length:,} tokens. Pass it to from_pretrained."
        )
    lora = [field.name for field in fields(LoraConfig)]
    arguments.refuse_unknown(kwargs, lora, "get_peft_model")
    layers_to_transform = last_layers(model, finetune_last_n_layers, layers_to_transform)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    targets = None
    if base is model or target_modules is not None:
        targets = choose_targets(
            base,
            target_modules,
            vision=finetune_vision_layers,
            language=finetune_language_layers,
            audio=finetune_audio_layers,
            attention=finetune_attention_modules,
            mlp=finetune_mlp_modules,
        )
    wanted = {
        "r": r,
        "target_modules": targets,
        "lora_alpha": lora_alpha,
        "lora_dropout": lora_dropout,
        "bias": bias,
        "layers_to_transform": layers_to_transform,
        "layers_pattern": layers_pattern,
        "use_rslora": use_rslora,
        "modules_to_save": list(modules_to_save) if modules_to_save else None,
        "init_lora_weights": init_lora_weights,
        "loftq_config": _loftq(loftq_config, init_lora_weights),
        "target_parameters": target_parameters or settings.target_parameters,
        "ensure_weight_tying": ensure_weight_tying,
        "task_type": task_type,
        **kwargs,
    }
    try:
        config = LoraConfig(**{name: value for name, value in wanted.items() if name in lora})
    except (ValueError, TypeError, ImportError) as error:
        raise ModelError(f"These LoRA settings can't be used: {error}") from error
    host_embedding.refuse_training(model, config)
    if isinstance(model, PeftModel):
        return _same_adapter(model, config, use_gradient_checkpointing)
    missed = [] if isinstance(target_modules, str | None) else unmatched(model, target_modules)
    adapted = _wrap(model, config, random_state, float32=settings.float32_adapters)
    if missed and not config.target_parameters:  # which peft fills itself for experts that it knows
        warn(unmatched_said(model, missed))
    try:
        set_checkpointing(adapted, use_gradient_checkpointing)
    except ModelError:
        adapted.unload()  # whoever corrects the argument and runs the cell again has the model as it was
        raise
    bind_methods(adapted)
    return adapted


def _refuse_other_than_a_model(given: Any) -> None:
    if callable(getattr(given, "get_output_embeddings", None)):
        return
    if isinstance(given, str):
        hint = f"Load it first: model, tokenizer = FastLanguageModel.from_pretrained({given!r})."
    elif isinstance(given, tuple):
        hint = "from_pretrained returns two things: model, tokenizer = FastLanguageModel.from_pretrained(…)."
    else:
        hint = "Pass the first of the two things that from_pretrained returns."
    raise ModelError(f"get_peft_model takes a language model, and got a {type(given).__name__}. {hint}")


def load_adapter(model: Any, adapter: str, options: HubOptions) -> Any:
    """Puts a saved adapter on its base, trainable.

    Raises:
        ModelError: the adapter's files are missing, damaged, or belong to another model.
    """
    from peft import PeftModel

    try:
        with _without_deprecations():
            return PeftModel.from_pretrained(
                model,
                adapter,
                is_trainable=True,
                autocast_adapter_dtype=settings_of(model).float32_adapters,
                **options.arguments(),
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(f"The adapter {adapter} can't be put on its base: {error}") from error


def _wrap(model: Any, config: Any, seed: int, *, float32: bool) -> Any:
    from peft import get_peft_model

    with seeded(seed), _without_deprecations(), _born_on(model, config.init_lora_weights):
        try:
            return get_peft_model(model, config, autocast_adapter_dtype=float32)
        except (ValueError, TypeError, ImportError) as error:
            again = " The model may hold a part of them: load it again." if holds_adapter(model) else ""
            raise ModelError(f"The adapters can't be added: {error}{again}") from error


def _born_on(model: Any, start: Any) -> AbstractContextManager:
    """New matrices are drawn on the model's GPU, where that takes no time; on a CPU it is a second for 8B."""
    places = {p.device for p in model.parameters() if p.device.type != "cpu"}
    plain = start in (True, False, "gaussian")  # others compute from the weights, wherever these are
    return places.pop() if plain and len(places) == 1 else nullcontext()


@contextmanager
def _without_deprecations() -> Iterator[None]:
    """peft asks transformers 5.2x under an older name, which no user can change."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _same_adapter(model: Any, config: Any, checkpointing: bool | str) -> Any:
    """A model read back from an adapter's folder already has what a rerun notebook asks for once more."""
    there = model.peft_config[model.active_adapter]
    compared = ["r", "lora_alpha", "use_rslora", "use_dora", "bias"]
    if not isinstance(config.target_modules, str | None):  # peft made a set of the names
        compared.append("target_modules")
    differing = [name for name in compared if getattr(there, name) != getattr(config, name)]
    if differing:
        shown = ", ".join(f"{name} {getattr(there, name)} ≠ {getattr(config, name)}" for name in differing)
        raise ModelError(
            f"The model already has an adapter with other settings ({shown}). Train it as it is, or load "
            "the base model and add new adapters to that."
        )
    warn("The model already has this adapter, which goes on training; no second one is added.")
    set_checkpointing(model, checkpointing)
    return model


def _loftq(loftq_config: Any, init_lora_weights: Any) -> Any:
    if not loftq_config:
        return {}
    if init_lora_weights != "loftq":
        raise ModelError("loftq_config was given, which needs init_lora_weights='loftq' to be used.")
    from peft import LoftQConfig

    return LoftQConfig(**loftq_config) if isinstance(loftq_config, dict) else loftq_config
