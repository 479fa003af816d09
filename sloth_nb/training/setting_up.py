"""What a trainer settles before it trains: GPU, tokenizer, collator, adapter, checkpointing, and what TRL would change.

Each function decides one thing in one place and says so when it differs from what was asked.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from sloth_nb.data import Collator
from sloth_nb.data.collate import overwrites_labels
from sloth_nb.errors import TrainingError
from sloth_nb.models import recomputing
from sloth_nb.models.checkpointing import set_checkpointing
from sloth_nb.models.settings import settings_of
from sloth_nb.notices import warn
from sloth_nb.training.config import SFTConfig

__all__ = [
    "adapted",
    "decide_checkpointing",
    "keeping_what_trl_changes",
    "loaded",
    "name_of",
    "one_gpu",
    "the_collator",
    "the_tokenizer",
]


def loaded(name: str, args: SFTConfig, here: dict[str, Any]) -> tuple[Any, Any]:
    """A model given by name, and its tokenizer unless one was given. Without an adapter every weight is trained."""
    from sloth_nb.models import FastLanguageModel

    whole = here.get("peft_config") is None
    options = {"load_in_4bit": False, "full_finetuning": whole, **(args.model_init_kwargs or {})}
    if (quantization := here.pop("quantization_config", None)) is not None:
        options["quantization_config"] = quantization
    model, tokenizer = FastLanguageModel.from_pretrained(name, max_seq_length=args.max_length, **options)
    args.model_init_kwargs = None
    return model, here.get("processing_class") or tokenizer


def name_of(model: Any) -> str:
    """What a person called the model, without the folders of this machine."""
    given = settings_of(model).name or str(getattr(model.config, "_name_or_path", ""))
    return Path(given).name or model.config.model_type


def the_tokenizer(given: Any, model: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that was given (or within the processor that was), or the model's own by its name.

    Raises:
        TrainingError: none was given and the model's name leads to none.
    """
    if isinstance(given, ProcessorMixin):
        given = given.tokenizer
    if given is None:
        from transformers import AutoTokenizer

        name = getattr(model.config, "_name_or_path", "")
        try:
            given = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise TrainingError(
                f"No tokenizer was given and {name or 'the model'!r} leads to none: pass tokenizer=tokenizer."
            ) from error
    if given.pad_token_id is None:
        given.pad_token = given.eos_token
    return given


def the_collator(given: Any, tokenizer: Any, args: SFTConfig) -> Any:
    """The collator that was given, or ours; ours too for one that would overwrite the labels."""
    if overwrites_labels(given):
        warn(
            f"data_collator={type(given).__name__}(…) would overwrite the labels and learn every token; "
            "sloth_nb's own Collator is used, which keeps them. Leave data_collator out (SFTConfig(train_on='all') "
            "learns every token)."
        )
        given = None
    return given or Collator(
        tokenizer.pad_token_id,
        padding_free=args.packing or args.padding_free,
        pad_to_multiple_of=args.pad_to_multiple_of,
    )


def one_gpu(args: SFTConfig) -> None:
    """With several GPUs in sight and no launcher, train on one, and say how to use all.

    transformers would copy the model to each one at every step (``nn.DataParallel``), which TRL refuses.
    """
    if args.n_gpu > 1:
        warn(
            f"{args.n_gpu} GPUs are visible; this process trains on {args.device}. To use all of them from a "
            "notebook, put loading and training in one function and start it with "
            f"accelerate.notebook_launcher(function, num_processes={args.n_gpu}).",
            once="one_gpu",
        )
        args._n_gpu = 1


def decide_checkpointing(model: Any, args: SFTConfig) -> None:
    """Decide whether activations are recomputed; how is the model's own matter (``models.checkpointing``).

    Never twice: transformers' trainer is told to leave it alone. When nothing was asked, a model loaded by
    sloth_nb stays as it was prepared, and so does one that checkpoints already; any other one is checkpointed
    on a GPU, as TRL does, and not on a CPU, where memory is rarely what is short.
    """
    asked = args.asked_checkpointing
    args.set_checkpointing(False)
    if asked is None:
        if recomputing.is_on(model) or args.device.type == "cpu" or settings_of(model).name:
            return
        asked = model.supports_gradient_checkpointing
    set_checkpointing(model, asked)


def adapted(model: Any, peft_config: Any) -> Any:
    """The model with the adapter that ``peft_config`` describes (in fp32), if any.

    Raises:
        TrainingError: both an adapter and a config for one, or nothing at all to train.
    """
    from peft import PeftModel, get_peft_model

    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise TrainingError(
                "The model already has an adapter and peft_config asks for another. Leave peft_config out to "
                "go on training the one it has."
            )
        model = get_peft_model(model, peft_config)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError(
            "There is nothing to train: every weight of the model is frozen. Add an adapter with "
            "FastLanguageModel.get_peft_model(model), or load it with full_finetuning=True."
        )
    return model


@contextlib.contextmanager
def keeping_what_trl_changes(model: Any, args: SFTConfig) -> Iterator[None]:
    """Around TRL's ``__init__``: it gets prepared rows, and leaves model and arguments as they were.

    - Trained weights that are fp16 become fp32 (fp16 gradients can't be unscaled); others keep their dtype:
      TRL casts a quantised model's adapter to bf16, which a GradScaler refuses and which loses digits.
    - ``forward`` is given back: TRL replaces it to fuse the head, which only ``loss_type="dft"`` needs.
    - Packing, padding-free batches and masks are our data room's, which TRL would refuse beside our collator.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for parameter in trained.values():
        if parameter.dtype == torch.float16:
            parameter.data = parameter.data.float()
    kept = {name: p.data for name, p in trained.items()}
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    forward = base.__dict__.get("forward")
    ours = {
        "packing": False,
        "padding_free": False,
        "assistant_only_loss": False,
        "completion_only_loss": None,
        "dataset_kwargs": {**(args.dataset_kwargs or {}), "skip_prepare_dataset": True},
    }
    before = {name: getattr(args, name) for name in ours}
    for name, value in ours.items():
        setattr(args, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)
        for name, parameter in trained.items():
            parameter.data = kept[name].to(parameter.device)
        if args.loss_type != "dft":
            if forward is not None:
                base.forward = forward
            else:
                base.__dict__.pop("forward", None)
