"""Writing a folder so that what lay in it stays whole when the disk fills up or the kernel is interrupted."""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sloth_nb.errors import ModelError

__all__ = ["written_folder"]

# Weights in several files: a new save must not leave shards of an older one beside its own.
_SHARDS = re.compile(r"(adapter_)?model(-\d+-of-\d+\.safetensors|\.safetensors(\.index\.json)?)")


@contextmanager
def written_folder(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary folder beside ``target``; at the end its files are moved in, each by one rename.

    Files of ``target`` that the new ones don't replace stay, except shards of older weights. When anything
    fails or is interrupted before the end, ``target`` is untouched and the temporary folder is removed.

    Raises:
        ModelError: no room on the disk, or no permission.
    """
    target = Path(target).expanduser()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise ModelError(f"Nothing can be written to {target.parent}: {error.strerror or error}.") from error
    try:
        if (target / "README.md").is_file():  # a model card is updated, not replaced
            shutil.copy2(target / "README.md", work)
        yield work
        _move_in(work, target)
    except Exception as error:
        if reason := _disk_trouble(error):
            whole = " What was saved there before is whole." if target.exists() else ""
            raise ModelError(f"{target} could not be saved: {reason}.{whole}") from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _move_in(work: Path, target: Path) -> None:
    target.mkdir(exist_ok=True)
    new = {file.relative_to(work) for file in work.rglob("*") if file.is_file()}
    for file in sorted(new):
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(work / file, target / file)
    kinds = {match[1] for file in new if (match := _SHARDS.fullmatch(file.name))}
    for file in target.iterdir():
        match = _SHARDS.fullmatch(file.name)
        if match and match[1] in kinds and file.relative_to(target) not in new:
            file.unlink()


def _disk_trouble(error: Exception) -> str | None:
    """Why the disk refused, or None when it didn't; safetensors reports the system's errors only in words."""
    code = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if code in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in text or "No space left" in text:
        return "the disk is full"
    if isinstance(error, PermissionError) or "os error 13" in text:
        return f"permission was refused ({text})"
    return None
