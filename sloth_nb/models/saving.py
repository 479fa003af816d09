"""Saving a model: its adapter, or 16-bit weights with the adapter merged in, to a folder or to the Hub."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from sloth_nb.errors import ExportError, ModelError, did_you_mean
from sloth_nb.models.arguments import MERGING, settle
from sloth_nb.models.context import write_positions
from sloth_nb.models.devices import best_device
from sloth_nb.models.merging import merged_model
from sloth_nb.models.precision import is_bf16_supported
from sloth_nb.models.settings import settings_of
from sloth_nb.models.sources import ADAPTER_FILE
from sloth_nb.models.weights import write_form
from sloth_nb.models.writing import written_folder
from sloth_nb.notices import warn

__all__ = ["push_to_hub_merged", "refuse_export", "save_pretrained", "save_pretrained_merged"]

_METHODS = ("merged_16bit", "lora")
_COMPRESSED = ("merged_4bit", "merged_4bit_forced")


def save_pretrained(self: Any, save_directory: str, *args: Any, **kwargs: Any) -> Any:
    """As the model's own ``save_pretrained``, but a save that fails leaves what was there before."""
    own = type(self).save_pretrained
    if not kwargs.get("is_main_process", True):
        return own(self, save_directory, *args, **kwargs)
    if kwargs.get("push_to_hub"):
        kwargs.setdefault("repo_id", Path(save_directory).name)
    with written_folder(save_directory) as folder:
        result = own(self, str(folder), *args, **kwargs)
        _note_base(self, folder)
    return result


def save_pretrained_merged(
    self: Any,
    save_directory: str,
    tokenizer: Any = None,
    save_method: str = "merged_16bit",
    push_to_hub: bool = False,
    token: str | bool | None = None,
    is_main_process: bool = True,
    state_dict: dict[str, Any] | None = None,
    save_function: Any = torch.save,
    max_shard_size: int | str = "5GB",
    safe_serialization: bool = True,
    variant: str | None = None,
    save_peft_format: bool = True,
    tags: list[str] | None = None,
    temporary_location: str = "_unsloth_temporary_saved_buffers",
    maximum_memory_usage: float = 0.75,
    datasets: Any = None,
    calibration_dataset: Any = None,
    num_calibration_samples: int = 512,
    max_seq_length: int = 2048,
) -> None:
    """Writes the model to a folder that any tool reads.

    Args:
        save_directory: the folder; other files in it stay.
        tokenizer: saved beside the weights, when given.
        save_method: "merged_16bit" for plain 16-bit weights with the adapter merged in (in fp32, then
            rounded once; a quantised base is dequantised first), or "lora" for the adapter alone.
        push_to_hub, token, tags: also upload it, to the repository named like the folder.
        is_main_process: False writes nothing (in a run of several processes).
        max_shard_size, variant: as in transformers.
        state_dict: only with "lora": the weights to take instead of the model's own.
        save_function, safe_serialization, save_peft_format, temporary_location, maximum_memory_usage,
        datasets,
            calibration_dataset, num_calibration_samples, max_seq_length: have no effect here, or are
            refused; another value than the default says why.
    Raises:
        ExportError: a method that isn't offered, or an adapter that can't be merged.
        ModelError: the folder can't be written, or holds an adapter that would hide the merged model.
    """
    settle(locals(), MERGING)
    _check_method(save_method)
    if not is_main_process:
        return
    target = Path(save_directory).expanduser()
    if save_method == "lora":
        _save_adapter(self, target, tokenizer, state_dict)
    else:
        if state_dict is not None:
            raise ExportError(
                "state_dict can't be combined with save_method='merged_16bit': it is computed here."
            )
        _save_merged(self, target, tokenizer, max_shard_size, variant)
    if push_to_hub:
        _upload(target, target.name, token=token, tags=tags)


def push_to_hub_merged(
    self: Any,
    repo_id: str,
    tokenizer: Any = None,
    save_method: str = "merged_16bit",
    token: str | bool | None = None,
    private: bool | None = None,
    commit_message: str = "Trained with sloth_nb",
    commit_description: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "5GB",
    tags: list[str] | None = None,
    **kwargs: Any,
) -> None:
    """As ``save_pretrained_merged``, straight to a repository on the Hub.

    Args:
        repo_id: "owner/name"; made when it doesn't exist.
        private, commit_message, commit_description, revision, create_pr: as in huggingface_hub.
        kwargs: further arguments of ``save_pretrained_merged``.
    Raises:
        ExportError, ModelError: as there, or the upload was refused.
    """
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained_merged(self, folder, tokenizer, save_method, max_shard_size=max_shard_size, **kwargs)
        _upload(
            Path(folder),
            repo_id,
            token=token,
            tags=tags,
            private=private,
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )


def refuse_export(name: str, self: Any, *args: Any, **kwargs: Any) -> None:
    """In the place of a method for a form that can't be written yet: says which can."""
    raise ExportError(
        f"{name} isn't offered yet. What can be written: save_pretrained_merged(folder, tokenizer) for "
        "16-bit weights, from which llama.cpp's convert_hf_to_gguf.py makes a GGUF file, or "
        "save_pretrained(folder) for the adapter."
    )


def _check_method(save_method: str) -> None:
    if save_method in _METHODS:
        return
    if save_method in _COMPRESSED:
        raise ExportError(
            f"save_method={save_method!r} rounds the merged weights to 4 bits a second time, which costs "
            "quality, and isn't offered. Use 'merged_16bit' and load that with load_in_4bit=True."
        )
    hint = did_you_mean(save_method, _METHODS, 0.7)
    raise ExportError(f"save_method={save_method!r} isn't offered.{hint} Offered: {', '.join(_METHODS)}.")


def _save_adapter(model: Any, target: Path, tokenizer: Any, state_dict: dict[str, Any] | None) -> None:
    from peft import PeftModel

    if not isinstance(model, PeftModel):
        raise ExportError("save_method='lora' saves an adapter, and this model has none. Use 'merged_16bit'.")
    with written_folder(target) as folder:
        more = {} if state_dict is None else {"state_dict": state_dict}
        type(model).save_pretrained(model, str(folder), **more)
        _note_base(model, folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def _note_base(model: Any, folder: Path) -> None:
    """Beside an adapter: as what its base must be loaded, so that it finds again what it was trained on."""
    if (folder / ADAPTER_FILE).is_file():
        write_form(model, folder)
        write_positions(settings_of(model).stretched_positions, folder)


def _save_merged(
    model: Any, target: Path, tokenizer: Any, max_shard_size: int | str, variant: str | None
) -> None:
    if (target / ADAPTER_FILE).is_file():
        raise ModelError(
            f"{target} holds an adapter, which would be loaded instead of the merged model. Choose another "
            "folder."
        )
    if getattr(model, "is_quantized", False):
        warn(
            "The adapter is merged into the quantised weights that it was trained on, written out in 16 "
            "bits. They differ from the original 16-bit model by what the quantisation rounded."
        )
    empty, weights = merged_model(model, _dtype_of(model))
    with written_folder(target) as folder:
        empty.save_pretrained(folder, state_dict=weights, max_shard_size=max_shard_size, variant=variant)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def _dtype_of(model: Any) -> torch.dtype:
    """The 16-bit type the base was loaded in; for fp32 weights fp16 on a GPU that has no bf16."""
    config = model.config.get_text_config()
    for dtype in (getattr(config, "dtype", None), getattr(model, "dtype", None)):
        if dtype in (torch.float16, torch.bfloat16):
            return dtype
    device = best_device()
    return torch.float16 if device.type == "cuda" and not is_bf16_supported(device) else torch.bfloat16


def _upload(
    folder: Path,
    repo_id: str,
    *,
    token: Any,
    tags: list[str] | None,
    private: bool | None = None,
    **commit: Any,
) -> None:
    from huggingface_hub import HfApi, metadata_update
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(token=token)
    revision = commit.get("revision")
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=folder, **commit)
        if tags:
            metadata_update(repo_id, {"tags": tags}, overwrite=True, token=token)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise ExportError(f"{repo_id} could not be uploaded to the Hub: {error}") from error
