"""In which form a model's weights are loaded: what the several arguments about it come to."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sloth_nb.errors import ModelError
from sloth_nb.models.precision import choose_dtype
from sloth_nb.models.quantization import choose_quantization
from sloth_nb.notices import warn

__all__ = ["FORM_FILE", "Weights", "choose_weights", "read_form", "write_form"]

FORM_FILE = "sloth_nb_base.json"
_FORMS = ("4bit", "8bit", "16bit")


@dataclass(frozen=True)
class Weights:
    dtype: torch.dtype
    quantization: Any | None

    def method(self, config: Any, full_finetuning: bool) -> str:
        """How a model of these weights will be trained, in the words of ``memory.Work``."""
        if full_finetuning:
            return "full"
        form = _form(self.quantization or getattr(config, "quantization_config", None))
        return {"16bit": "lora", "8bit": "lora-8bit"}.get(form, "qlora")


def choose_weights(
    *,
    device: torch.device,
    dtype: Any,
    load_in_4bit: bool,
    load_in_8bit: bool,
    load_in_16bit: bool,
    full_finetuning: bool,
    float32: bool,
    given: Any,
    already_quantised: bool,
) -> Weights:
    """The dtype and the quantisation that the several arguments about them come to."""
    if load_in_8bit and load_in_16bit:
        raise ModelError("load_in_8bit=True and load_in_16bit=True exclude each other. Choose one.")
    chosen = choose_dtype(dtype, device)
    if full_finetuning:
        if already_quantised:
            raise ModelError(
                "full_finetuning=True trains every weight, but this checkpoint's are quantised and can't "
                "be trained. Load the original 16-bit model, or leave full_finetuning out and add adapters."
            )
        if load_in_8bit or given is not None:
            warn(
                "full_finetuning=True trains every weight, and a quantised weight can't be trained: the "
                "weights are loaded unquantised. To keep a quantised base and train adapters on it, leave "
                "full_finetuning out."
            )
        if float32:
            chosen = torch.float32
        elif chosen is torch.float16:
            chosen = torch.float32
            warn(
                "full_finetuning=True in float16 loses small gradients; the weights are loaded in float32. "
                "fp16=True in the trainer's arguments still computes in float16."
            )
        return Weights(chosen, None)
    if given is not None or already_quantised:
        return Weights(chosen, given)
    four = load_in_4bit and not load_in_8bit and not load_in_16bit
    quantization = choose_quantization(
        load_in_4bit=four, load_in_8bit=load_in_8bit, device=device, dtype=chosen
    )
    return Weights(chosen, quantization)


def write_form(model: Any, folder: Path) -> None:
    """Beside an adapter: in which form the weights were that it was trained on, of which its own files say nothing.

    Nothing where a library other than bitsandbytes quantised them: then the base's own files say so.
    """
    form = _form(getattr(model.config, "quantization_config", None))
    if form in _FORMS:
        (folder / FORM_FILE).write_text(json.dumps({"load_in": form}) + "\n", encoding="utf-8")


def read_form(file: Path | None) -> str:
    """The form that an adapter's file names: "4bit", which is the default also without a file, "8bit" or "16bit".

    Raises:
        ModelError: the file can't be read, or names another.
    """
    if file is None:
        return "4bit"
    try:
        form = json.loads(file.read_text(encoding="utf-8"))["load_in"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{file} doesn't say in which form the adapter's base is loaded ({error!r}). Pass load_in_4bit=True or "
            "False."
        ) from error
    if form not in _FORMS:
        raise ModelError(
            f"{file} says load_in {form!r}; known are {', '.join(_FORMS)}. Pass load_in_4bit=True or False."
        )
    return form


def _form(quantisation: Any) -> str:
    if quantisation is None:
        return "16bit"
    fields = quantisation if isinstance(quantisation, dict) else quantisation.to_dict()
    return "8bit" if fields.get("load_in_8bit") else "4bit" if fields.get("load_in_4bit") else "other"
