"""Models that the catalogue doesn't list: their config.json from the hub's cache, or from the hub when asked to.

Nothing here runs at import, and only ``from_hub`` opens a connection.
"""

import os
import socket
from pathlib import Path
from urllib.parse import urlsplit

from sloth_nb.catalog.find import from_config, nearest
from sloth_nb.catalog.info import ModelInfo
from sloth_nb.errors import ModelError

__all__ = ["cached_config", "cached_models", "from_hub"]

PROXIES = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")


def from_hub(repository: str, *, token: str | None = None, revision: str | None = None) -> ModelInfo:
    """An entry for any model of the hub. Fetches its config.json, a few KB.

    Raises:
        ModelError: no such repository (nearest names), a gated one without the right token (what to do), or no
            network (what is here already).
    """
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download

    if _no_such_host():  # huggingface_hub would try it for half a minute
        file = cached_config(repository)
        if file is None:
            raise ModelError(_no_network(repository))
        return from_config(file, name=repository.rpartition("/")[2])
    try:
        file = hf_hub_download(repository, "config.json", token=token, revision=revision)
    except hub.GatedRepoError:
        raise ModelError(_gated(repository)) from None
    except hub.RepositoryNotFoundError:
        near = nearest(repository)
        hint = f" In the catalogue: {', '.join(near)}." if near else ""
        raise ModelError(
            f"The hub has no model {repository!r}, or it is private and the token isn't its.{hint}"
        ) from None
    except hub.EntryNotFoundError as error:
        if isinstance(error, hub.LocalEntryNotFoundError):
            raise ModelError(_no_network(repository)) from None
        raise ModelError(f"{repository} has no config.json: it isn't a transformers model.") from None
    except hub.HFValidationError:
        raise ModelError(f"{repository!r} is no repository's name; one is like 'Qwen/Qwen3-14B'.") from None
    except (hub.HfHubHTTPError, hub.OfflineModeIsEnabled, OSError):
        raise ModelError(_no_network(repository)) from None
    return from_config(file, name=repository.rpartition("/")[2])


def cached_config(repository: str) -> Path | None:
    """The config.json of a repository that was fetched before, or None. Asks nobody."""
    if repository.count("/") != 1 or not all(repository.split("/")):
        return None
    folder = cache_folder() / f"models--{repository.replace('/', '--')}" / "snapshots"
    found = sorted(folder.glob("*/config.json"), key=lambda file: file.stat().st_mtime)
    return found[-1] if found else None


def cached_models() -> list[str]:
    """The repositories whose config is in this machine's cache."""
    folders = cache_folder().glob("models--*--*")
    names = (folder.name.removeprefix("models--").replace("--", "/", 1) for folder in folders)
    return sorted(name for name in names if cached_config(name))


def cache_folder() -> Path:
    """Where huggingface_hub keeps what it fetched."""
    if folder := os.environ.get("HF_HUB_CACHE"):
        return Path(folder)
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"
    )
    return Path(home).expanduser() / "hub"


def _no_such_host() -> bool:
    """Whether the hub's name leads nowhere, because there is no network. A proxy would look it up itself."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or any(os.environ.get(name) for name in PROXIES):
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return True
    return False


def _gated(repository: str) -> str:
    return (
        f"{repository} is gated: accept its licence once at https://huggingface.co/{repository}, then give a token "
        f"of that account (the HF_TOKEN environment variable, or token=…)."
    )


def _no_network(repository: str) -> str:
    here = cached_models()
    said = (
        f"In this machine's cache: {', '.join(here[:8])}." if here else "Nothing of the hub is cached here."
    )
    return (
        f"The hub can't be reached for {repository}. {said} smollm2-135m-instruct always works offline, and the "
        f"catalogue's own models can be estimated without a network."
    )
