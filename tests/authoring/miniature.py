"""A notebook's own model in miniature: its architecture with a few hidden units, and its maker's tokenizer."""

import copy
from pathlib import Path
from typing import Any

from sloth_nb.authoring.parameters import parameter_names
from sloth_nb.authoring.recipe import Recipe
from sloth_nb.catalog import ModelInfo, models
from tests.data import makers

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "patch_size": 14,
    "image_size": 28,
}
# By the catalogue's template (a base model has that of its family): whose tokenizer, and whose template if not its own.
_TOKENIZERS = {
    "qwen3": ("qwen-3", None),
    "llama-3.1": ("llama-3.1", None),
    "gemma-3": ("gemma-3", None),
    "mistral": ("mistral-v3", None),
    "deepseek-r1": ("llama-3.1", "deepseek_r1_distill"),
    "phi-4": ("phi-3", "phi-4"),
    "chatml": ("smollm2", None),
}
# So little that a CPU runs a notebook from its first to its last cell in seconds.
_PARAMETERS = {
    "method": "lora",
    "max_steps": 3,
    "batch_size": 2,
    "accumulation": 1,
    "rank": 4,
    "merge": True,
    "documents": 2,
    "pairs_each": 2,
    "answer_tokens": 24,
    "questions": 3,
}


def tokenizer_for(model: ModelInfo) -> Any:
    """A tokenizer of the model's kind; of a base model, without a template."""
    template = model.template or next(
        other.template for other in models() if other.family == model.family and other.template
    )
    name, other = _TOKENIZERS[template]
    made = copy.deepcopy(makers.tokenizer(name))
    if model.template is None:
        made.chat_template = None
    elif other == "phi-4":
        from sloth_nb import get_chat_template

        made = get_chat_template(made, "phi-4")
    elif other:
        made.chat_template = makers.trl_template(other)
    return made


def tiny_model(model: ModelInfo, folder: Path) -> Path:
    """The folder of a random model of this architecture, made once."""
    if folder.is_dir():
        return folder
    import torch
    import transformers

    tokenizer = tokenizer_for(model)
    config = transformers.AutoConfig.for_model(**_shrunk(model.config, len(tokenizer)))
    for part in (config, config.get_text_config()):
        part.bos_token_id, part.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        part.pad_token_id = tokenizer.pad_token_id
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = getattr(transformers, model.config["architectures"][0])(config)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _shrunk(config: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    if "text_config" in config:
        text = _shrunk({**config["text_config"], "model_type": "x"}, vocabulary)
        del text["model_type"]
        tokens = {"mm_tokens_per_image": 4, "image_token_index": 5}
        return {"model_type": config["model_type"], "text_config": text, "vision_config": _VISION, **tokens}
    heads = _SIZES["num_attention_heads"]
    grouped = config.get("num_key_value_heads", heads) != config["num_attention_heads"]
    own = {key: value for key, value in config.items() if key not in ("architectures", "layer_types")}
    shrunk = {**own, **_SIZES, "vocab_size": vocabulary}
    shrunk["num_key_value_heads"] = _SIZES["num_key_value_heads"] if grouped else heads
    return shrunk


def parameters(recipe: Recipe, notebook: Any, model: Path, output: Path) -> dict[str, Any]:
    """What papermill would put in: the small model, three steps, and a folder of the test's own."""
    wanted = {**_PARAMETERS, "model_name": str(model), "output_dir": str(output)}
    wanted["max_length"] = min(recipe.settings.length, 512)
    names = parameter_names(notebook)
    return {name: value for name, value in wanted.items() if name in names}
