"""`sloth-nb doctor`: what this machine has, what will run on it, and which versions clash.

Each check is a small function from what was found to findings; the finding out is apart, so that every
machine can be pretended in a test.
"""

import argparse
import importlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from sloth_nb.memory.machine import Device, cards_of_the_driver, devices, ram_gib

__all__ = ["Finding", "Machine", "add_arguments", "examine", "look", "run"]

MARKS = {"good": "✓", "note": "·", "bad": "✗"}
SHOWN = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "datasets",
    "accelerate",
    "bitsandbytes",
    "triton",
    "ipywidgets",
)


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``look`` is good, note or bad; bad ones say what to do."""

    look: str
    text: str

    def __str__(self) -> str:
        return f"{MARKS[self.look]} {self.text}"


@dataclass
class Machine:
    """Everything that the checks look at."""

    python: str
    system: str
    versions: dict[str, str]
    cards: list[Device]
    ram_gib: float
    disk_gib: float
    requirements: list[str] = field(default_factory=list)
    torch_cuda: str | None = None
    torch_refusal: str | None = None
    """Why torch can't use the cards, in its own words; None when it can."""
    torch_targets: list[str] = field(default_factory=list)
    """What torch was compiled for: sm_80, compute_90, …"""
    hidden: bool = False
    """Whether CUDA_VISIBLE_DEVICES takes every card away."""
    cpu_bf16: bool = True
    """Whether the processor computes in bf16 itself."""
    torch_triton: str | None = None
    token: bool = False
    shadow: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(options: argparse.Namespace) -> int:
    """Prints what was found. 1 when something must be mended first."""
    findings = list(examine(look()))
    print("\n".join(map(str, findings)))
    return 1 if any(finding.look == "bad" for finding in findings) else 0


def look() -> Machine:
    """What is really here. Imports torch, which alone knows whether it can use the card."""
    versions = {
        name: version for name in (*SHOWN, "kernels", "plotly", "numpy") if (version := _version(name))
    }
    torch = importlib.import_module("torch") if "torch" in versions else None
    cache = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return Machine(
        python=platform.python_version(),
        system=f"{platform.system()} {platform.machine()}",
        versions=versions,
        cards=devices() or cards_of_the_driver(),
        ram_gib=ram_gib(),
        disk_gib=shutil.disk_usage(_existing(cache)).free / 2**30,
        requirements=_requirements("sloth-nb"),
        torch_cuda=torch and torch.version.cuda,
        torch_refusal=torch and _refusal(torch),
        torch_targets=torch.cuda.get_arch_list() if torch else [],
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"),
        cpu_bf16=torch is None or _cpu_bf16(torch),
        torch_triton=next((r for r in _requirements("torch") if Requirement(r).name == "triton"), None),
        token=bool(os.environ.get("HF_TOKEN") or (cache / "token").exists()),
        shadow=_shadowed(),
    )


def _refusal(torch: Any) -> str | None:
    """Why torch can't use a card: its driver is too old, there is none, …; None when it can."""
    if torch.cuda.is_available():
        return None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return (str(error).strip() or "it doesn't say why").split(". ")[0].splitlines()[0]
    return "it finds no card"


def _cpu_bf16(torch: Any) -> bool:
    from sloth_nb.models.precision import is_bf16_supported  # which needs torch

    return is_bf16_supported(torch.device("cpu"))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements(name: str) -> list[str]:
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _shadowed() -> bool:
    """Whether a folder ``kernels`` with an ``__init__.py`` hides Hugging Face's package of that name."""
    spec = importlib.util.find_spec("kernels")
    return bool(spec and spec.origin and _version("kernels") is None)


def examine(machine: Machine) -> Iterator[Finding]:
    """The findings, in the order in which one reads them."""
    yield from _about(machine)
    yield from _about_cards(machine)
    yield from _about_versions(machine)
    yield from _about_the_hub(machine)


def _about(machine: Machine) -> Iterator[Finding]:
    old = Version(machine.python) < Version("3.11")
    yield Finding(
        "bad" if old else "good",
        f"Python {machine.python} on {machine.system}" + (": 3.11 or newer is needed" if old else ""),
    )
    yield Finding("good" if machine.ram_gib >= 8 else "note", f"{machine.ram_gib:.1f} GB of RAM")
    low = machine.disk_gib < 10
    yield Finding(
        "note" if low else "good",
        f"{machine.disk_gib:.0f} GB of disk free for models"
        + (": an 8B model in 16 bits takes 16" if low else ""),
    )
    for name in SHOWN:
        if name in machine.versions:
            yield Finding("good", f"{name} {machine.versions[name]}")


def _about_cards(machine: Machine) -> Iterator[Finding]:
    if not machine.cards:
        precision = "bf16" if machine.cpu_bf16 else "float32 (this one multiplies bf16 many times slower)"
        yield Finding("note", "No NVIDIA card: training runs on the CPU, which is for small models only")
        yield Finding("note", f"The CPU computes in {precision}")
        yield Finding("note", "Attention: torch's flash kernel for CPUs; kernels: plain torch")
        return
    for number, device in enumerate(machine.cards):
        card = device.gpu
        precision = "bf16" if card.bf16 else "fp16 (this card has no bf16)"
        yield Finding(
            "good",
            f"GPU {number}: {card.name}, {device.free / 2**30:.1f} of {card.memory_gib:.1f} GB free, "
            f"compute capability {card.capability:.1f}, computes in {precision}",
        )
    if "torch" in machine.versions and (fault := _out_of_torchs_reach(machine)):
        yield fault
        return
    least = min(device.gpu.capability for device in machine.cards)
    yield Finding("good", f"Attention: {_attention(least)}")
    yield _kernels(machine, least)
    if "bitsandbytes" not in machine.versions:
        yield Finding("note", "No bitsandbytes: no 4-bit and 8-bit weights (pip install 'sloth-nb[gpu]')")
    if len(machine.cards) > 1:
        yield Finding(
            "note", f"{len(machine.cards)} cards: a notebook uses the first; notebook_launcher uses all"
        )


def _out_of_torchs_reach(machine: Machine) -> Finding | None:
    """Why torch can use none of the cards, or not this one; None when it can."""
    torch = f"torch {machine.versions['torch']}"
    if machine.torch_cuda is None:
        return Finding(
            "bad",
            f"{torch} was built without CUDA and can't use the card: install torch for your CUDA from pytorch.org",
        )
    if machine.torch_refusal and machine.hidden:
        return Finding(
            "note", "CUDA_VISIBLE_DEVICES hides every card: training runs on the CPU; unset it to use one"
        )
    if machine.torch_refusal:
        return Finding(
            "bad",
            f"{torch} for CUDA {machine.torch_cuda} can't use the card ({machine.torch_refusal}): update the NVIDIA "
            "driver, or install torch for the CUDA that nvidia-smi shows from pytorch.org",
        )
    for device in machine.cards:
        if machine.torch_targets and not _compiled_for(device.gpu.capability, machine.torch_targets):
            return Finding(
                "bad",
                f"{torch} has no code for {device.gpu.name} (compute capability {device.gpu.capability:.1f}; it has "
                f"{', '.join(machine.torch_targets)}): install another torch from pytorch.org, older for an old card",
            )
    return None


def _compiled_for(capability: float, targets: list[str]) -> bool:
    """Whether one of torch's targets runs on such a card: code of its generation, or PTX, which the driver compiles."""
    card = round(10 * capability)
    for target in targets:
        kind, _, number = target.partition("_")
        least = int("".join(filter(str.isdigit, number)) or 0)
        if least <= card and (kind == "compute" or least // 10 == card // 10):
            return True
    return False


def _attention(capability: float) -> str:
    if capability >= 9.0:
        return "cuDNN for full batches, the flash kernel for packed ones and windows"
    if capability >= 8.0:
        return "the flash kernel"
    return "the memory-efficient kernel (flash needs compute capability 8.0)"


def _kernels(machine: Machine, capability: float) -> Finding:
    if "triton" not in machine.versions:
        return Finding("note", "Kernels: plain torch; Triton isn't installed (pip install 'sloth-nb[gpu]')")
    if capability < 7.0:
        return Finding("note", "Kernels: plain torch; Triton needs compute capability 7.0")
    if capability < 8.0:
        return Finding(
            "good", "Kernels: Triton for norms, rotations, activations and loss; products by cuBLAS"
        )
    return Finding("good", "Kernels: Triton")


def _about_versions(machine: Machine) -> Iterator[Finding]:
    if machine.shadow:
        yield Finding(
            "bad",
            "A folder 'kernels' with an __init__.py is on the path and hides Hugging Face's package of that "
            "name, which breaks every model import: rename it, or start somewhere else",
        )
    for text in machine.requirements:
        wanted = Requirement(text)
        have = machine.versions.get(wanted.name)
        extra = wanted.marker is not None and "extra" in str(wanted.marker)
        if have is None or wanted.specifier.contains(have, prereleases=True):
            if have is None and not extra and wanted.name in SHOWN:
                yield Finding(
                    "bad", f"{wanted.name} is missing: pip install '{wanted.name}{wanted.specifier}'"
                )
            continue
        yield Finding(
            "bad",
            f"{wanted.name} {have} is outside {wanted.specifier}: "
            f"pip install '{wanted.name}{wanted.specifier}'",
        )
    if machine.torch_triton and "triton" in machine.versions:
        pinned = Requirement(machine.torch_triton)
        if not pinned.specifier.contains(machine.versions["triton"], prereleases=True):
            yield Finding(
                "note",
                f"triton {machine.versions['triton']} is not what torch was built for ({pinned.specifier})",
            )


def _about_the_hub(machine: Machine) -> Iterator[Finding]:
    said = "found" if machine.token else "none: gated models (Llama, Gemma) will ask for one"
    yield Finding("good" if machine.token else "note", f"Hugging Face token: {said}")
    if sys.platform == "win32":
        yield Finding("note", "Windows: data is read by one process")
