"""Which models this package's engine runs: what ``sloth_nb.engine.spec`` says by layer class, without torch.

By the config's ``model_type``. A model that also sees isn't among them, though its language part alone may be.
"""

from sloth_nb.catalog import ModelInfo

__all__ = ["ENGINE_RUNS", "engine_for", "engine_runs"]

ENGINE_RUNS = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"})


def engine_runs(model: ModelInfo) -> bool:
    kind = model.config.get("model_type")
    return isinstance(kind, str) and kind in ENGINE_RUNS  # a config may hold anything there


def engine_for(model: ModelInfo) -> str:
    """Who computes when nothing else is asked for: "sloth" where that engine runs the model, else "hf"."""
    return "sloth" if engine_runs(model) else "hf"
