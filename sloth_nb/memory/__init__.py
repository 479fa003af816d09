"""Bytes: what a run will take, from the model's config alone, and how to spend a budget of them.

``estimate("qwen3-14b", gpu="T4")`` answers without torch, weights or a GPU.
"""

from collections.abc import Mapping
from os import PathLike
from typing import Any

from sloth_nb.catalog import GPU, ModelInfo
from sloth_nb.memory.advice import Change, changes_to_fit
from sloth_nb.memory.budget import Budget
from sloth_nb.memory.estimate import GB, KINDS, Estimate
from sloth_nb.memory.formulas import estimate_work
from sloth_nb.memory.limits import largest_batch, longest_context
from sloth_nb.memory.machine import device_for, devices, ram_gib
from sloth_nb.memory.plan import Plan, plan
from sloth_nb.memory.policy import POLICIES, Policy
from sloth_nb.memory.speed import step_seconds
from sloth_nb.memory.work import METHODS, OPTIMISERS, TASKS, Work

__all__ = [
    "GB",
    "KINDS",
    "METHODS",
    "OPTIMISERS",
    "POLICIES",
    "TASKS",
    "Budget",
    "Change",
    "Estimate",
    "Plan",
    "Policy",
    "Work",
    "changes_to_fit",
    "device_for",
    "devices",
    "estimate",
    "estimate_work",
    "largest_batch",
    "longest_context",
    "plan",
    "ram_gib",
    "step_seconds",
]


def estimate(
    model: "str | PathLike[str] | Mapping[str, Any] | ModelInfo",
    *,
    gpu: "str | GPU | None" = None,
    **options: Any,
) -> Estimate:
    """What fine-tuning this model will take, before anything is loaded.

    Args:
        model: a catalogue name, a hub id of the catalogue, a folder, or a config.
        gpu: a card's name ("T4", "RTX 4090", "cpu"); None is this machine's.
        **options: of ``Work``: method, task, batch, length, rank, targets, policy, optimiser, …
    Raises:
        ModelError: no such model, or its config lacks a field.
        TrainingError: an option that is unknown or can't be.
        HardwareError: no such card.

    Example:
        >>> estimate("qwen3-14b", gpu="T4", length=2048).total_gb
    """
    return estimate_work(Work.of(model, **options), device_for(gpu))
