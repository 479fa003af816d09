"""From a model's name to where it lies: the embedded default, a folder, an adapter on a base, or the Hub.

What can't be found is said in one sentence, with the nearest names and what is already on this machine.
"""

import difflib
import json
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sloth_nb.catalog.embedded import DEFAULT_MODEL, default_model_path
from sloth_nb.catalog.find import known, nearest
from sloth_nb.errors import ModelError

__all__ = ["ADAPTER_FILE", "HubOptions", "Source", "beside_adapter", "find_source"]

ADAPTER_FILE = "adapter_config.json"
_MODEL_FILE = "config.json"
_TOKENIZER_FILE = "tokenizer_config.json"


@dataclass(frozen=True)
class HubOptions:
    """How the Hub is asked, as transformers and huggingface_hub name it."""

    token: str | bool | None = None
    revision: str | None = None
    cache_dir: str | None = None
    local_files_only: bool = False

    def arguments(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Source:
    """Where a model's parts come from: each a folder, or an id on the Hub."""

    base: str
    base_options: HubOptions = field(default_factory=HubOptions)
    adapter: str | None = None
    adapter_options: HubOptions = field(default_factory=HubOptions)
    adapter_has_tokenizer: bool = False

    @property
    def tokenizer(self) -> tuple[str, HubOptions]:
        """An adapter often brings its own tokenizer, with the template it was trained with."""
        if self.adapter and self.adapter_has_tokenizer:
            return self.adapter, self.adapter_options
        return self.base, self.base_options


def find_source(name: str, options: HubOptions) -> Source:
    """Finds a model by name.

    Args:
        name: a folder with a model or an adapter; a name of the catalogue, such as
            ``smollm2-135m-instruct``; or an id on the Hub. A folder wins over the others.
        options: for the Hub; its revision is that of ``name`` itself, not of an adapter's base.
    Raises:
        ModelError: nothing of that name, access refused, no network, or a folder that holds no model.
    """
    if not isinstance(name, (str, Path)) or not str(name).strip():
        raise ModelError(f"model_name={name!r} is not a name. Try {DEFAULT_MODEL!r}, which works offline.")
    name = str(name)
    path = Path(name).expanduser()
    if path.is_dir() and _holds_model(path):
        return _in_folder(path, options)
    if entry := known(name) if "/" not in name else None:
        return Source(str(default_model_path())) if entry.offline else _on_hub(entry.hub_id, options)
    if path.is_dir():
        return _in_folder(path, options)
    if _is_path(name):
        raise ModelError(_no_such_folder(path))
    return _on_hub(name, options)


def beside_adapter(source: Source, file: str) -> Path | None:
    """A file that was saved beside a model's adapter, here or on the Hub; None where there is none.

    Raises:
        ModelError: the Hub couldn't be asked.
    """
    if source.adapter is None:
        return None
    if Path(source.adapter).is_dir():
        return path if (path := Path(source.adapter) / file).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(source.adapter, file, **source.adapter_options.arguments()))
    except EntryNotFoundError:
        return None
    except Exception as error:
        raise ModelError(_hub_says(source.adapter, source.adapter_options, error)) from error


def _in_folder(folder: Path, options: HubOptions) -> Source:
    if (folder / ADAPTER_FILE).is_file():
        config = _read_json(folder / ADAPTER_FILE)
        return _with_base(str(folder), config, options, (folder / _TOKENIZER_FILE).is_file())
    if (folder / _MODEL_FILE).is_file():
        return Source(str(folder), options)
    checkpoints = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    if checkpoints:
        latest = max(checkpoints, key=lambda path: int(path.name.rpartition("-")[2]))
        raise ModelError(
            f"{folder} is a run's folder, not a model's. Its latest checkpoint is {latest}: load that."
        )
    found = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    raise ModelError(f"{folder} holds neither {_MODEL_FILE} nor {ADAPTER_FILE}; it holds {found}.")


def _with_base(adapter: str, config: dict[str, Any], options: HubOptions, has_tokenizer: bool) -> Source:
    base = config.get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"The adapter {adapter} doesn't say which model it belongs to (base_model_name_or_path)."
        )
    if _is_embedded(base) and not Path(base).is_dir():
        base = DEFAULT_MODEL  # trained on another machine, where the default model lay elsewhere
    base_options = HubOptions(
        options.token, config.get("revision"), options.cache_dir, options.local_files_only
    )
    try:
        found = find_source(base, base_options)
    except ModelError as error:
        raise ModelError(
            f"The adapter {adapter} belongs to the model {base!r}, and that failed: {error}"
        ) from error
    if found.adapter:
        raise ModelError(f"The adapter {adapter} says its base is {base!r}, which is itself an adapter.")
    return Source(found.base, found.base_options, adapter, options, has_tokenizer)


def _is_embedded(base: str) -> bool:
    return re.fullmatch(rf"{re.escape(DEFAULT_MODEL)}-\d+", re.split(r"[/\\]", base)[-1]) is not None


def _on_hub(name: str, options: HubOptions) -> Source:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    options = _reached(name, options)
    try:
        config = _read_json(Path(hf_hub_download(name, ADAPTER_FILE, **options.arguments())))
        try:
            hf_hub_download(name, _TOKENIZER_FILE, **options.arguments())
            has_tokenizer = True
        except EntryNotFoundError:
            has_tokenizer = False
        return _with_base(name, config, options, has_tokenizer)
    except LocalEntryNotFoundError:
        pass  # no network: a cached model has a cached config, looked for below
    except EntryNotFoundError:
        pass  # the usual case: a model, not an adapter
    except ModelError:
        raise
    except Exception as error:
        raise ModelError(_hub_says(name, options, error)) from error
    try:
        hf_hub_download(name, _MODEL_FILE, **options.arguments())
    except Exception as error:
        raise ModelError(_hub_says(name, options, error)) from error
    return Source(name, options)


def _reached(name: str, options: HubOptions) -> HubOptions:
    """The same options; or, where the Hub can't be reached, those that look on this machine only.

    Asked once and briefly: a download asks six times for each file, half a minute in all, and reports each.
    """
    import httpx
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import OfflineModeIsEnabled

    if options.local_files_only:
        return options
    try:
        get_hf_file_metadata(hf_hub_url(name, _MODEL_FILE, revision=options.revision), token=options.token)
    except (httpx.TransportError, OfflineModeIsEnabled):
        return replace(options, local_files_only=True)
    except Exception:  # it answered: what it says of each file is asked for below
        pass
    return options


def _hub_says(name: str, options: HubOptions, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        why = (
            f"{name!r} is gated: accept its licence at https://huggingface.co/{name}, then log in "
            "(huggingface_hub.login()) or pass token=."
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = (
            f"there is no model {name!r} on the Hub, or it is private and no token that may read it was "
            "given."
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        why = f"{name!r} has no revision {options.revision!r} on the Hub."
    elif isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        why = (
            f"{name!r} is not on this machine, and the Hub can't be reached (no network, or offline mode is "
            "on)."
        )
    elif isinstance(error, errors.EntryNotFoundError):
        why = (
            f"{name!r} on the Hub holds neither {_MODEL_FILE} nor {ADAPTER_FILE}, so it is no model to load."
        )
    elif isinstance(error, errors.HFValidationError):
        why = f"{name!r} is neither a folder here nor a possible id on the Hub (owner/name)."
    else:
        why = f"the Hub could not be asked for {name!r}: {error}"
    return f"{why[0].upper()}{why[1:]}{_what_now(name)}"


def _what_now(name: str) -> str:
    cached = _cached_models()
    folders = [path.name for path in Path().iterdir() if path.is_dir() and _holds_model(path)]
    near = difflib.get_close_matches(name, [*cached, *folders], n=3, cutoff=0.6)
    lines = ""
    if listed := nearest(name):
        lines += f"\n  Nearest in the catalogue: {', '.join(map(repr, listed))}."
    if near:
        lines += f"\n  Nearest on this machine: {', '.join(map(repr, near))}."
    if others := [model for model in cached if model not in near][:5]:
        lines += f"\n  Also downloaded before: {', '.join(map(repr, others))}."
    return f"{lines}\n  {DEFAULT_MODEL!r} always works offline."


def _cached_models() -> list[str]:
    from huggingface_hub import scan_cache_dir

    try:
        return sorted(repo.repo_id for repo in scan_cache_dir().repos if repo.repo_type == "model")
    except Exception:  # no cache yet, or one that is damaged: not what the user asked about
        return []


def _no_such_folder(path: Path) -> str:
    if path.is_file():
        return f"{path} is a file. Pass the folder of a model in Hugging Face's form (with {_MODEL_FILE})."
    parent = path.parent
    if not parent.is_dir():
        return f"There is no folder {path}: {parent} doesn't exist either."
    names = [child.name for child in parent.iterdir() if child.is_dir()]
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    models = [child.name for child in parent.iterdir() if child.is_dir() and _holds_model(child)]
    hint = (
        f" Nearest: {', '.join(near)}." if near else f" Models there: {', '.join(models)}." if models else ""
    )
    return f"There is no folder {path}.{hint}"


def _holds_model(folder: Path) -> bool:
    return any((folder / file).is_file() for file in (_MODEL_FILE, ADAPTER_FILE))


def _is_path(name: str) -> bool:
    """Whether a name can only be meant as a place on this machine; ``owner/name`` may be either."""
    return name.startswith((".", "~", "/")) or "\\" in name or name.count("/") > 1 or Path(name).is_file()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} can't be read: {error}") from error
