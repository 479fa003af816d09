"""What a model was loaded with, remembered on the model itself for the steps that come after."""

from dataclasses import dataclass
from typing import Any

__all__ = ["Settings", "attach", "settings_of"]

_ATTRIBUTE = "_sloth_nb"


@dataclass(frozen=True)
class Settings:
    """How ``from_pretrained`` was called, as far as later calls need to know."""

    name: str = ""
    max_seq_length: int | None = None
    full_finetuning: bool = False
    float32_adapters: bool = True
    target_parameters: Any = None
    tokenizer: Any = None
    stretched_positions: dict[str, Any] | None = None
    plan: str | None = None


def attach(model: Any, settings: Settings) -> None:
    setattr(model, _ATTRIBUTE, settings)
    model.max_seq_length = settings.max_seq_length  # tutorials read it


def settings_of(model: Any) -> Settings:
    """A model's settings, also through the adapters around it; defaults if it was loaded elsewhere."""
    return getattr(model, _ATTRIBUTE, None) or Settings()
