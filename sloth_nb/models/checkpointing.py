"""What a model keeps for its backward: the engine's policies, or transformers' checkpointing where it can't run."""

from typing import Any

from sloth_nb.engine.policy import LayerPolicy, policy_of
from sloth_nb.errors import ModelError

from . import recomputing
from .install import install
from .planning import AutoPlan
from .report import Report
from .settings import settings_of

__all__ = ["check_mode", "set_checkpointing"]

_MODES = (True, False, "unsloth", "sloth", "auto")


def set_checkpointing(model: Any, mode: "bool | str | LayerPolicy | list[str | LayerPolicy]") -> Report:
    """Installs the engine with this checkpointing; the only place that does.

    transformers' own checkpointing is switched alongside: it serves the calls that the engine leaves to the model
    (left padding, say), and all of them where the engine can't be installed. The engine's layers never pass through
    it, so nothing is recomputed twice.

    Args:
        mode: False keeps all activations; True recomputes; "sloth" or "unsloth" also moves them to the host; "auto"
            plans for the room that there is (``AutoPlan``); or a policy of the engine ("keep", "recompute", "lean",
            "offload"), for all layers or one each. A model loaded with ``plan="auto"`` takes True, "sloth" and
            "unsloth" as "auto": what is named more closely goes before the plan.
    Returns:
        The engine's report; the reason is in it when the model is left to transformers.
    Raises:
        ModelError: another mode, or a model whose layers can't be recomputed.
    """
    check_mode(mode)
    if (
        settings_of(model).plan == "auto"
        and not isinstance(mode, list)
        and mode in (True, "sloth", "unsloth")
    ):
        mode = "auto"
    planner = AutoPlan(model) if mode == "auto" else None
    report = install(model, planner or mode)
    report.plan = planner
    if mode is False or mode == "keep":
        recomputing.disable(model)
        return report
    try:
        recomputing.enable(model)
    except ValueError as error:
        if report.installed:
            return report
        raise ModelError(f"{error} Pass use_gradient_checkpointing=False.") from error
    return report


def check_mode(mode: Any) -> None:
    """
    Raises:
        ModelError: not a way of checkpointing that ``set_checkpointing`` takes.
    """
    if not isinstance(mode, list) and mode in _MODES:
        return
    try:
        for one in mode if isinstance(mode, list) else [mode]:
            policy_of(one)
    except (TypeError, ValueError) as error:
        known = ", ".join(map(repr, _MODES))
        raise ModelError(
            f"use_gradient_checkpointing={mode!r} is not known. Known: {known}, or a policy of the engine ({error})."
        ) from error
