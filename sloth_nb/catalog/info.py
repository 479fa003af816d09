"""ModelInfo: one entry of the catalogue, read from the family files beside this module."""

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from importlib import resources
from typing import Any

from sloth_nb.catalog.readers import read_shape, text_config
from sloth_nb.catalog.shape import Shape

__all__ = ["ModelInfo", "TrainingDefaults", "load_models"]

LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class TrainingDefaults:
    """Good values to begin a LoRA with."""

    rank: int = 16
    alpha: int = 16
    learning_rate: float = 2e-4
    targets: tuple[str, ...] = LLAMA_TARGETS


@dataclass(frozen=True)
class ModelInfo:
    """A model: what it is, where it lives, what it may be used for, and how to begin training it.

    Attributes:
        name: the catalogue's own short name, which ``from_pretrained`` takes too.
        ids: hub repositories: "16bit" always, "4bit" where one with plain NF4 weights is published.
        parameters: the published count, tied weights once. ``shape.parameters`` is the computed one.
        kind: "instruct", "base" or "reasoning".
        modality: "text", "text+image", "text→speech" or "speech→text".
        offline: True when it loads without any network (``catalog.embedded``).
        source: where the shape and the count come from.
    """

    name: str
    family: str
    title: str
    publisher: str
    parameters: int
    ids: dict[str, str]
    licence: str
    gated: bool
    context: int
    template: str | None
    modality: str
    kind: str
    tasks: tuple[str, ...]
    training: TrainingDefaults
    config: dict[str, Any]
    source: str
    offline: bool = False
    aliases: tuple[str, ...] = field(default=())

    @cached_property
    def shape(self) -> Shape:
        return read_shape(self.config)

    @cached_property
    def text_part(self) -> "ModelInfo":
        """The language part alone of a model that also sees, as ``from_pretrained(text_only=True)`` loads it."""
        if not isinstance(self.config.get("text_config"), Mapping):
            return self
        config = text_config(self.config)
        return replace(self, config=config, parameters=read_shape(config).parameters, modality="text")

    @property
    def size(self) -> str:
        """The count as people say it: 135M, 1.7B, 14.8B."""
        return f"{self.parameters / 1e9:.3g}B" if self.parameters >= 1e9 else f"{self.parameters / 1e6:.3g}M"

    @property
    def hub_id(self) -> str:
        """The 16-bit repository, or the name itself for a model without one."""
        return self.ids.get("16bit", self.name)

    def code(self, four_bit: bool = False) -> str:
        """The lines that load it."""
        name = self.name if self.offline else self.ids.get("4bit" if four_bit else "16bit", self.hub_id)
        loader = "FastLanguageModel" if self.modality == "text" else "FastModel"
        return (
            f"from sloth_nb import {loader}\n\n"
            f"model, tokenizer = {loader}.from_pretrained({_literal(name)}, load_in_4bit={four_bit})"
        )


def _literal(text: str) -> str:
    """As Python writes a text, between double quotes: a folder's name may hold quotes and backslashes."""
    return json.dumps(text, ensure_ascii=False)


@lru_cache(maxsize=1)
def load_models() -> tuple[ModelInfo, ...]:
    """Every entry, families by name and sizes as the files list them. Read once."""
    folder = resources.files("sloth_nb.catalog") / "families"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return tuple(info for file in files for info in _family(tomllib.loads(file.read_text("utf-8"))))


def _family(data: dict[str, Any]) -> list[ModelInfo]:
    entries = []
    common = {key: value for key, value in data.items() if key not in ("models", "config", "training")}
    for model in data["models"]:
        variants = model.pop("variants", [])
        config = model.pop("config", {})
        if not model.pop("whole_config", False):  # true where the architecture is another than the family's
            config = _merged(data.get("config", {}), config)
        training = {**data.get("training", {}), **model.pop("training", {})}
        for row in ({}, *variants):
            entries.append(_entry({**common, **model, **row}, config, training))
    return entries


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = {**result[key], **value} if both else value
    return result


def _entry(row: dict[str, Any], config: dict[str, Any], training: dict[str, Any]) -> ModelInfo:
    text = config.get("text_config", config)
    context = row.get("context") or text.get("max_position_embeddings") or text.get("max_target_positions", 0)
    if "targets" in training:
        training = {**training, "targets": tuple(training["targets"])}
    return ModelInfo(
        name=row["name"],
        family=row["family"],
        title=row["title"],
        publisher=row["publisher"],
        parameters=row["parameters"],
        ids=row["ids"],
        licence=row["licence"],
        gated=row["gated"],
        context=context,
        template=row.get("template") if row.get("kind") != "base" else None,
        modality=row["modality"],
        kind=row.get("kind", "instruct"),
        tasks=tuple(row["tasks"]),
        training=TrainingDefaults(**training),
        config=config,
        source=row["source"],
        offline=row.get("offline", False),
        aliases=tuple(row.get("aliases", ())),
    )
