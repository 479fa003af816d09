"""SFTConfig: TRL's, with the field's older names and with defaults that suit a notebook.

What the device can do is decided here once: 16-bit precision by real support, not by what torch emulates.
"""

import dataclasses
import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import trl
from transformers import TrainingArguments

from sloth_nb.errors import TrainingError
from sloth_nb.models.devices import best_device
from sloth_nb.models.precision import is_bf16_supported
from sloth_nb.notices import warn
from sloth_nb.training.compat import CONFIG_NAMES, translate
from sloth_nb.training.options import check_options
from sloth_nb.training.own_state import building_arguments

__all__ = ["SFTConfig", "mixed_precision"]


def mixed_precision(bf16: bool | None, fp16: bool | None, device: torch.device) -> tuple[bool, bool]:
    """(bf16, fp16) autocast that the device truly has.

    A CPU runs the model in its own dtype, without autocast. A GPU gets bf16 where it has it and fp16
    elsewhere: torch calls bf16 supported on a T4 too, because it emulates it, slower than fp32.

    Args:
        bf16, fp16: what was asked; None means "whatever fits".
    """
    if device.type not in ("cuda", "xpu"):
        if bf16 or fp16:
            asked = "bf16" if bf16 else "fp16"
            warn(
                f"{asked}=True asks for autocast, which {device.type} doesn't gain from; the model trains in "
                "the dtype it was loaded in.",
                once="mixed_precision.none",
            )
        return False, False
    has_bf16 = is_bf16_supported(device)
    if bf16 and not has_bf16:
        warn(
            f"bf16=True: {device} only emulates bf16, slowly; fp16 is used instead.",
            once="mixed_precision.bf16",
        )
        return False, True
    if bf16 is None and not fp16:
        return has_bf16, fp16 is None and not has_bf16
    return bool(bf16), bool(fp16)


@dataclass
class SFTConfig(trl.SFTConfig):
    """How a supervised run goes: every option of ``trl.SFTConfig``, and the older names of tutorials.

    Defaults that differ from TRL's:

    - ``output_dir="outputs"``; ``logging_steps=1``, because a person watches.
    - ``bf16`` and ``fp16``: what the device truly has (see ``mixed_precision``).
    - ``gradient_checkpointing``: what the model was prepared with; see ``SFTTrainer``.
    - ``max_length``: the ``max_seq_length`` the model was loaded with, 1024 when it has none.
    - ``train_on="assistant"``: of a conversation only the assistant's tokens are learnt; ``"all"`` is TRL's
      default, ``"last"`` takes only the last answer. Plain text is always learnt whole.
    - ``embedding_learning_rate``: for embeddings and head in ``modules_to_save``; a tenth of ``learning_rate`` is
      usual. None gives them the same.
    - ``logging_nan_inf_filter=False``: a loss that is not a number is shown as such.

    ``on_error="skip"`` leaves broken rows out and counts them; ``mapping`` names the columns of a data set
    that isn't recognised by itself (see ``sloth_nb.data.prepare``).

    Example:
        >>> SFTConfig(max_steps=60, per_device_train_batch_size=2, learning_rate=2e-4)
    """

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [*trl.SFTConfig._VALID_DICT_FIELDS, "mapping"]

    output_dir: str | None = field(default="outputs", metadata={"help": "Where checkpoints and events go."})
    logging_steps: float = field(default=1, metadata={"help": "Log every so many steps."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide a loss that is not a number behind the last average."}
    )
    fp16: bool | None = field(default=None, metadata={"help": "fp16 autocast. Default: what the device has."})
    gradient_checkpointing: bool | str | None = field(
        default=None,
        metadata={"help": "Recompute activations in the backward. Default: the model's way."},
    )
    embedding_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Learning rate of embeddings and output head, where they are trained whole."},
    )
    train_on: str = field(
        default="assistant",
        metadata={
            "help": "Which tokens are learnt: 'assistant', 'last' or 'all'.",
            "choices": ["assistant", "last", "all"],
        },
    )
    on_error: str = field(
        default="raise",
        metadata={"help": "What to do with a broken row: 'raise' or 'skip'.", "choices": ["raise", "skip"]},
    )
    mapping: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Which column means what, when it isn't recognised."}
    )

    def __post_init__(self) -> None:
        check_options(self)
        newer_name = getattr(self, "activation_checkpointing", None)  # transformers >= 5.20
        self.asked_checkpointing = self.gradient_checkpointing if newer_name is None else newer_name
        self.set_checkpointing(None)
        device = torch.device("cpu") if self.use_cpu else best_device()
        self.bf16, self.fp16 = mixed_precision(self.bf16, self.fp16, device)
        if device.type == "cpu":
            self.dataloader_pin_memory = False
        with building_arguments():
            super().__post_init__()

    def set_checkpointing(self, on: bool | None) -> None:
        """Tell transformers' trainer whether to switch checkpointing on, under each name it knows."""
        self.gradient_checkpointing = on
        if hasattr(self, "activation_checkpointing"):
            self.activation_checkpointing = on

    def was_given(self, name: str) -> bool:
        """Whether the user set that option, rather than left it at its default."""
        return name in self._given

    @classmethod
    def of(cls, args: TrainingArguments | Mapping[str, Any] | None, **more: Any) -> "SFTConfig":
        """This class' form of any arguments: ours, TRL's, transformers' own, a dict or none, with ``more`` set in it.

        transformers' own defaults for precision, checkpointing, logging and reports are taken as "not set".

        Raises:
            TrainingError: these are no arguments, or ones that ``check_options`` refuses.
        """
        if isinstance(args, cls):
            if more:
                here, _ = translate(cls.__name__, more, _option_names(cls), CONFIG_NAMES)
                for name, value in here.items():
                    setattr(args, name, value)
                args._given |= frozenset(here)
            check_options(args)
            return args
        given: dict[str, Any] = {}
        if isinstance(args, Mapping):
            given = dict(args)
        elif args is not None and not isinstance(args, TrainingArguments):
            raise TrainingError(
                f"args is of type {type(args).__name__}; it must be an SFTConfig, such as args=SFTConfig(max_steps=60)."
            )
        elif args is not None:
            ours = _option_names(cls) - {"activation_checkpointing"}  # follows gradient_checkpointing
            off_is_default = not isinstance(args, trl.SFTConfig)
            for option in dataclasses.fields(args):
                value = getattr(args, option.name)
                unset = value == option.default or (value is False and off_is_default)
                if option.name in ours and not (unset and option.name in _OURS_TO_DECIDE):
                    given[option.name] = value
        return cls(**(given | more))


_OURS_TO_DECIDE = {
    "assistant_only_loss",
    "bf16",
    "completion_only_loss",
    "dataloader_pin_memory",
    "dataset_text_field",
    "fp16",
    "gradient_checkpointing",
    "logging_nan_inf_filter",
    "logging_steps",
    "max_length",
    "output_dir",
}


def _option_names(cls: type) -> set[str]:
    return {option.name for option in dataclasses.fields(cls) if option.init}


def _accepts_older_names(cls: type) -> None:
    """Let the class' ``__init__`` take the older names, and remember which options were given."""
    init = cls.__init__

    @functools.wraps(init)
    def __init__(self, *args: Any, **given: Any) -> None:
        ratio = given.get("warmup_ratio")
        if ratio is not None and given.get("warmup_steps"):
            del given["warmup_ratio"]  # transformers always let a number of steps win over a share
            warn(
                f"SFTConfig: warmup_ratio={ratio} was left out, because warmup_steps is given.",
                once="SFTConfig.warmup_ratio",
            )
        here, _ = translate(cls.__name__, given, _option_names(cls), CONFIG_NAMES)
        positional = list(inspect.signature(init).parameters)[1 : len(args) + 1]
        self._given = frozenset({*here, *positional})
        init(self, *args, **here)

    cls.__init__ = __init__


_accepts_older_names(SFTConfig)
