"""What a model's kind decides: whether this package's engine runs it, and how long its sequences can be at all.

By the config's ``model_type``, which says without torch what ``sloth_nb.engine.spec`` says by layer class. A model that
also sees isn't among them, though its language part alone may be.
"""

from sloth_nb.catalog import ModelInfo

__all__ = ["ENGINE_RUNS", "engine_for", "engine_runs", "learnt_positions"]

ENGINE_RUNS = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"})


def engine_runs(model: ModelInfo) -> bool:
    kind = model.config.get("model_type")
    return isinstance(kind, str) and kind in ENGINE_RUNS  # a config may hold anything there


def engine_for(model: ModelInfo) -> str:
    """Who computes when nothing else is asked for: "sloth" where that engine runs the model, else "hf"."""
    return "sloth" if engine_runs(model) else "hf"


def learnt_positions(model: ModelInfo) -> int:
    """Tokens beyond which no sequence can go, for each has a learnt position; 0 where positions are computed."""
    return model.context if model.config.get("model_type") == "whisper" else 0
