"""What models and cards exist: families, shapes, licences, hub ids, good defaults. Data, not code.

Needs neither torch nor a network. ``find("qwen3-14b")``, ``search("apache 8b")``, ``from_config(path)`` for
any other model, ``gpu("T4")``, ``offers()``.
"""

from sloth_nb.catalog.find import find, from_config, known, models, search
from sloth_nb.catalog.gpus import GPU, Offer, cpu, gpu, gpus, offer, offers
from sloth_nb.catalog.hub import cached_models, from_hub
from sloth_nb.catalog.info import ModelInfo, TrainingDefaults
from sloth_nb.catalog.resolve import resolve
from sloth_nb.catalog.shape import Block, Linear, Shape, Tower

__all__ = [
    "GPU",
    "Block",
    "Linear",
    "ModelInfo",
    "Offer",
    "Shape",
    "Tower",
    "TrainingDefaults",
    "cached_models",
    "cpu",
    "find",
    "from_config",
    "from_hub",
    "gpu",
    "gpus",
    "known",
    "models",
    "offer",
    "offers",
    "resolve",
    "search",
]
