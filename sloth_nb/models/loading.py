"""``from_pretrained``: a model and its tokenizer, ready for adapters, full fine-tuning or answering."""

import inspect
from importlib import import_module
from typing import Any

from sloth_nb.catalog.embedded import DEFAULT_MODEL
from sloth_nb.errors import ModelError
from sloth_nb.interrupts import put_off, told
from sloth_nb.models import arguments
from sloth_nb.models.adapters import load_adapter
from sloth_nb.models.architecture import choose_class, is_multimodal, load_config, load_weights
from sloth_nb.models.binding import bind_methods
from sloth_nb.models.checkpointing import check_mode, set_checkpointing
from sloth_nb.models.context import POSITIONS_FILE, apply_context, positions_of, read_positions
from sloth_nb.models.devices import choose_device_map, main_device
from sloth_nb.models.host_embedding import offload_embedding as embedding_to_host
from sloth_nb.models.quantization import keep_trainable
from sloth_nb.models.rehearsal import Rehearsal
from sloth_nb.models.releasing import release_dropped
from sloth_nb.models.seeding import seeded
from sloth_nb.models.settings import Settings, attach
from sloth_nb.models.sources import HubOptions, beside_adapter, find_source
from sloth_nb.models.tokenizers import load_tokenizer, mend_tokenizer, text_tokenizer
from sloth_nb.models.weights import FORM_FILE, choose_weights, read_form
from sloth_nb.notices import warn

__all__ = ["load"]

_LIBRARIES = (
    "accelerate",
    "transformers.generation.utils",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",  # brings what every family's own file imports
)


@told("Interrupted while the model was loaded: nothing is kept of it. Run it again to load it.")
def load(
    model_name: str = DEFAULT_MODEL,
    max_seq_length: int | None = 2048,
    dtype: Any = None,
    load_in_4bit: bool | None = None,
    load_in_8bit: bool = False,
    load_in_16bit: bool = False,
    full_finetuning: bool = False,
    token: str | None = None,
    device_map: Any = "sequential",
    rope_scaling: dict[str, Any] | None = None,
    fix_tokenizer: bool = True,
    trust_remote_code: bool = False,
    use_gradient_checkpointing: bool | str = "unsloth",
    resize_model_vocab: int | None = None,
    revision: str | None = None,
    use_exact_model_name: bool = False,
    offload_embedding: bool = False,
    float32_mixed_precision: bool | None = None,
    fast_inference: bool = False,
    gpu_memory_utilization: float = 0.5,
    float8_kv_cache: bool = False,
    random_state: int = 3407,
    max_lora_rank: int = 64,
    disable_log_stats: bool = True,
    qat_scheme: str | None = None,
    load_in_fp8: bool | str = False,
    unsloth_tiled_mlp: bool = False,
    text_only: bool = False,
    return_logits: bool = False,
    fullgraph: bool = True,
    auto_model: Any = None,
    whisper_language: str | None = None,
    whisper_task: str | None = None,
    unsloth_force_compile: bool = False,
    target_parameters: Any = None,
    plan: str | None = None,
    *args: Any,
    **kwargs: Any,
) -> tuple[Any, Any]:
    """Loads a model and its tokenizer.

    Args:
        model_name: ``"smollm2-135m-instruct"`` (works offline), an id on the Hub, a folder with a model, or
            a folder with an adapter, whose base is then loaded with it and the adapter goes on training.
        max_seq_length: the longest sequence, in tokens. Longer than the model's own context scales RoPE, and
            says how; None is the model's own.
        dtype: None for the best this device truly has (bf16; fp16 on a T4; fp32 on a CPU without AVX-512,
            which has no bf16), or a dtype or its name.
        load_in_4bit: NF4 weights through bitsandbytes. None means True, except for an adapter that was saved
            here: then the base is loaded in the form that the adapter was trained on. True, too, gives way to
            ``load_in_8bit``, ``load_in_16bit``, ``full_finetuning`` and a ``quantization_config``; without
            bitsandbytes the weights are loaded unquantised, with a warning.
        load_in_8bit: LLM.int8 weights through bitsandbytes.
        load_in_16bit: plain weights in ``dtype``.
        full_finetuning: every weight is trained, so none is quantised. Otherwise all weights are frozen until
            ``get_peft_model`` adds trainable ones.
        token: for gated or private models on the Hub.
        device_map: ``"sequential"`` for one device; ``"auto"`` or ``"balanced"`` to split the layers over
            several GPUs; a device; or a dict of placements.
        rope_scaling: transformers' rotary settings, instead of the model's own.
        fix_tokenizer: gives the tokenizer a padding token that isn't the end of a text, where it has one to
            spare, and pads to the right. False leaves it as it comes.
        trust_remote_code: lets the model's repository run its own Python code here. Off.
        use_gradient_checkpointing: for what is trainable after loading (``full_finetuning``, or an adapter's
            folder): True, "unsloth" or "sloth" recompute activations to save memory; False keeps them;
            "auto" as with ``plan``.
        resize_model_vocab: rows of the embeddings, for a tokenizer that got new tokens.
        revision: branch, tag or commit on the Hub.
        use_exact_model_name: no name is ever replaced by another here, so True and False are the same.
        float32_mixed_precision: with ``full_finetuning``, True keeps fp32 weights (computing in 16 bits is
            the trainer's setting). With adapters these are fp32 anyway; False makes them 16-bit like the
            base.
        random_state: seed of weights that a checkpoint doesn't hold.
        text_only: the language part alone of a model that also sees or hears.
        return_logits: a model called directly always returns them, so True and False are the same.
        fullgraph: a setting of torch.compile, which isn't used.
        auto_model: the class to load with, such as ``WhisperForConditionalGeneration``; None chooses.
        whisper_language, whisper_task: written into the generation settings of a Whisper model.
        target_parameters: kept as the default of ``get_peft_model``.
        plan: "auto" chooses when training begins what each layer keeps, recomputes or moves to the host, and whether
            the input embedding goes there, for the room that there is then, wherever checkpointing is asked for as
            True, "sloth" or "unsloth".
        offload_embedding: keeps the input embedding in pinned host memory, which frees its room on the card
            (a gigabyte of Llama 3.1 8B) for about a millisecond a step. Where it is the output head as well or
            is trained, it stays, and a warning says so.
        fast_inference, gpu_memory_utilization, float8_kv_cache, max_lora_rank,
            disable_log_stats, unsloth_tiled_mlp, unsloth_force_compile: without effect here; asked for, a
            warning says why.
        qat_scheme, load_in_fp8: refused, with the reason.
        kwargs: whatever transformers' ``from_pretrained`` takes (``attn_implementation``, …), or attributes
            of the model's config.
    Returns:
        (model, tokenizer); the second is a processor for models that also see or hear.
    Raises:
        ModelError: not found, not allowed, not loadable, or an argument that can't be honoured.
        HardwareError: a device that isn't there, or too little memory.
    """
    arguments.settle(locals(), arguments.LOADING)
    chosen = dtype, load_in_4bit, load_in_8bit, load_in_16bit, full_finetuning, text_only, kwargs
    with Rehearsal(model_name, revision, *chosen) as rehearsal:
        _import_libraries()
        if args:
            raise ModelError(
                f"from_pretrained takes no further positional arguments, and got {args!r}. Name them."
            )
        if plan not in (None, "auto"):
            raise ModelError(f'plan={plan!r} is not known; it is "auto" or None.')
        check_mode(use_gradient_checkpointing)
        dtype = kwargs.pop("torch_dtype", None) if dtype is None else dtype
        hub = HubOptions(
            token, revision, kwargs.pop("cache_dir", None), kwargs.pop("local_files_only", False)
        )
        source = find_source(model_name, hub)
        config = load_config(
            source,
            kwargs,
            trust_remote_code=trust_remote_code,
            text_only=text_only,
            also_known=_own_arguments(),
        )

        if load_in_4bit is None and not (load_in_8bit or load_in_16bit or full_finetuning):
            form = read_form(beside_adapter(source, FORM_FILE))
            load_in_4bit, load_in_8bit = form == "4bit", form == "8bit"
        placement = choose_device_map(device_map)
        weights = choose_weights(
            device=main_device(placement),
            dtype=dtype,
            load_in_4bit=bool(load_in_4bit),
            load_in_8bit=load_in_8bit,
            load_in_16bit=load_in_16bit,
            full_finetuning=full_finetuning,
            float32=float32_mixed_precision is True,
            given=kwargs.pop("quantization_config", None),
            already_quantised=getattr(config, "quantization_config", None) is not None,
        )
        rehearsal.of(
            config,
            method=weights.method(config, full_finetuning),
            dtype=weights.dtype,
            device=main_device(placement),
        )
    own_positions = positions_of(config)
    if source.adapter and rope_scaling is None:
        read_positions(config, beside_adapter(source, POSITIONS_FILE))
    context = apply_context(config, max_seq_length, rope_scaling)
    positions = positions_of(config)
    tokenizer = load_tokenizer(
        *source.tokenizer, processor=is_multimodal(config), trust_remote_code=trust_remote_code
    )
    if fix_tokenizer:
        mend_tokenizer(tokenizer, context)

    release_dropped()
    with seeded(random_state):
        model = load_weights(
            choose_class(auto_model, config),
            source,
            config=config,
            dtype=weights.dtype,
            quantization_config=weights.quantization,
            device_map=placement,
            trust_remote_code=trust_remote_code,
            **kwargs,
        )
        if resize_model_vocab is not None:
            model.resize_token_embeddings(resize_model_vocab)
    keep_trainable(model)
    for parameter in model.parameters():
        parameter.requires_grad_(full_finetuning and parameter.is_floating_point())
    _align(model, tokenizer, whisper_language, whisper_task)
    attach(
        model,
        Settings(
            name=str(model_name),
            max_seq_length=context,
            full_finetuning=full_finetuning,
            float32_adapters=float32_mixed_precision is not False,
            target_parameters=target_parameters,
            tokenizer=tokenizer,
            stretched_positions=positions if positions != own_positions else None,
            plan=plan,
        ),
    )
    if source.adapter:
        model = load_adapter(model, source.adapter, source.adapter_options)
    if offload_embedding:  # after the adapter, which may train it
        embedding_to_host(model)
    if full_finetuning or source.adapter:
        set_checkpointing(model, use_gradient_checkpointing)
    bind_methods(model)
    return model, tokenizer


def _import_libraries() -> None:
    """What loading is going to import, whole: transformers' parts come one by one, wherever first touched."""
    with put_off():
        for name in _LIBRARIES:
            import_module(name)


def _own_arguments() -> list[str]:
    return [
        name
        for name, one in inspect.signature(load).parameters.items()
        if one.kind is one.POSITIONAL_OR_KEYWORD
    ]


def _align(model: Any, tokenizer: Any, whisper_language: str | None, whisper_task: str | None) -> None:
    """The model agrees with its tokenizer on the padding token, and a Whisper model knows its task."""
    inner = text_tokenizer(tokenizer)
    if inner.pad_token_id is not None:
        model.config.get_text_config().pad_token_id = inner.pad_token_id
        if getattr(model, "generation_config", None) is not None:
            model.generation_config.pad_token_id = inner.pad_token_id
    rows = model.get_input_embeddings().weight.shape[0]
    if len(inner) > rows:
        warn(
            f"The tokenizer has {len(inner):,} tokens, the model embeddings for {rows:,}. Load it with "
            f"resize_model_vocab={len(inner)} if your texts use the new ones."
        )
    for name, value in (("language", whisper_language), ("task", whisper_task)):
        if value is None:
            continue
        if model.config.model_type != "whisper":
            raise ModelError(
                f"whisper_{name}={value!r} was given, but this is a {model.config.model_type} model."
            )
        setattr(model.generation_config, name, value)
