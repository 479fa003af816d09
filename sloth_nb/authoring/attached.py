"""On Kaggle a notebook may have no internet: then its model comes from an attached input, found here by its config.

Everywhere else, and where the internet is on, a name stays the name that it is.
"""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from sloth_nb.catalog import known
from sloth_nb.errors import NotebookError

__all__ = ["attached_model"]

_INPUTS = Path("/kaggle/input")


def attached_model(name: str, *, inputs: Path = _INPUTS, online: Callable[[], bool] | None = None) -> str:
    """What ``from_pretrained`` shall load: an attached input that is this model, or the name itself.

    Args:
        name: a catalogue name, a hub id or a folder.
        inputs: where Kaggle puts what is attached.
        online: tells whether the hub answers; by default it is asked.
    Raises:
        NotebookError: no internet, and nothing that is attached is this model; says what to attach.
    """
    info = known(name)
    if Path(name).exists() or not inputs.is_dir() or (info is not None and info.offline):
        return name
    fitting = [folder for folder in _folders(inputs) if _is(folder, name)]
    if fitting:
        words = name.lower().replace("/", "-").split("-")  # of two models of one shape the better named
        found = max(fitting, key=lambda folder: sum(word in str(folder).lower() for word in words))
        print(f"Taking the attached input {found}.")
        return str(found)
    if (online or _online)():
        return name
    title = (info.hub_id if info else name).rsplit("/", 1)[-1]
    raise NotebookError(
        f"This notebook has no internet, and no attached input holds {title}. Choose Add Input → Models, search for "
        f"“{title}” and attach its Transformers variant; or switch Internet on under Settings."
    )


def _folders(inputs: Path) -> Iterator[Path]:
    """Folders with a whole model in them."""
    for config in sorted(inputs.glob("**/config.json")):
        if any(config.parent.glob("*.safetensors")) or any(config.parent.glob("*.bin")):
            yield config.parent


def _is(folder: Path, name: str) -> bool:
    """Whether the config there has the shape that the catalogue gives this name; any model will do for a stranger."""
    info = known(name)
    if info is None:
        return name.rsplit("/", 1)[-1].lower() in str(folder).lower()
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False
    config = config.get("text_config", config)
    wanted = info.config.get("text_config", info.config)
    same = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")
    return all(config.get(key) == wanted.get(key) for key in same if key in wanted)


def _online() -> bool:
    try:
        socket.create_connection(("huggingface.co", 443), timeout=5).close()
    except OSError:
        return False
    return True
