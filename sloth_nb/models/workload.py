"""A loaded model as the memory model's ``Work``: what is trained of it, in which format, and who computes."""

from typing import Any

from sloth_nb.catalog import from_config
from sloth_nb.engine.policy import NAMES, LayerPolicy
from sloth_nb.engine.rules import Planner
from sloth_nb.memory.policy import Policy
from sloth_nb.memory.work import Work

from . import recomputing
from .host_embedding import HostEmbedding
from .report import engine_of
from .settings import settings_of

__all__ = ["work_of"]


def work_of(model: Any, **options: Any) -> Work:
    """The work of training this model as it stands, with ``options`` of ``Work`` (batch, length, …) set in it.

    Raises:
        ModelError: an architecture that the memory model doesn't know. TrainingError: an option that can't be.
    """
    adapter = getattr(model, "active_peft_config", None)
    found: dict[str, Any] = {"method": _method(model, adapter), **_how(model, options.get("engine"))}
    if adapter is not None:
        found["rank"] = adapter.r
        if not isinstance(adapter.target_modules, str):
            found["targets"] = tuple(sorted(adapter.target_modules))
    if isinstance(model.get_input_embeddings(), HostEmbedding):
        found["embedding_offload"] = True
    name = settings_of(model).name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return Work.of(from_config(model.config.to_dict(), name or None), **(found | options))


def _method(model: Any, adapter: Any) -> str:
    if getattr(model, "is_loaded_in_4bit", False):
        return "qlora"
    if getattr(model, "is_loaded_in_8bit", False):
        return "lora-8bit"
    return "full" if adapter is None else "lora"


def _how(model: Any, asked: str | None) -> dict[str, Any]:
    """Who computes, and what becomes of activations."""
    engine = engine_of(model)
    if engine is None or asked == "hf":
        return {"engine": "hf", "policy": "recompute" if recomputing.is_on(model) else "keep"}
    settings = engine.settings
    here = {"engine": "sloth", "graphs": settings.cuda_graphs, "loss_chunk": settings.loss_chunk_bytes}
    if settings.mlp_tile != "auto":
        here["mlp_tile"] = settings.mlp_tile
    return here | {"policy": _policy(settings.checkpointing)}


def _policy(chosen: Any) -> Any:
    """The engine's word for what it holds as the memory model's."""
    if isinstance(chosen, list):
        return tuple(one if isinstance(one, str) else _one(one) for one in chosen)
    if isinstance(chosen, LayerPolicy):
        return _one(chosen)
    if isinstance(chosen, Planner):
        return "sloth"
    return {True: "recompute", False: "keep", None: "keep", "unsloth": "sloth"}.get(chosen, chosen)


def _one(policy: LayerPolicy) -> Policy:
    kept, moved = (tuple(name for name in NAMES if name in where) for where in (policy.device, policy.host))
    return Policy(kept, moved)
