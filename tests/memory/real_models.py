"""Real models of the catalogue's shapes on the GPU, with random weights: what tests/memory/measure.py runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sloth_nb import catalog
from sloth_nb.catalog import GPU, ModelInfo
from sloth_nb.memory import Work
from sloth_nb.memory.policy import Policy

__all__ = ["build", "inputs_of", "install", "optimiser_of", "text_only", "work_of"]

DEVICE = "cuda"


def text_only(name: str) -> ModelInfo:
    """The entry of the language model alone: towers play no part in these steps."""
    info = catalog.find(name)
    text = info.config.get("text_config")
    if text is None:
        return info
    return replace(catalog.from_config(text, name=info.name), ids=info.ids)


def work_of(row: dict[str, Any]) -> Work:
    """The work that a row of a measured file ran: a policy a layer is by name, or by what it keeps and moves."""
    names = Work.__dataclass_fields__.keys() - {"model"}
    options = {name: row[name] for name in names if name in row}
    if not isinstance(options["policy"], str):
        same: dict[str, Policy] = {}
        options["policy"] = tuple(
            layer
            if isinstance(layer, str)
            else same.setdefault(str(layer), Policy(tuple(layer["device"]), tuple(layer["host"])))
            for layer in options["policy"]
        )
    return Work.of(text_only(row["model"]), **options)


def build(work: Work) -> Any:
    """The model on the GPU: random weights in the method's format by bitsandbytes, adapters by peft."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    from sloth_nb.memory.fake_model import text_config

    torch.manual_seed(0)
    config = text_config(work.model)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    layers = model.get_decoder().layers
    for path, module in list(layers.named_modules()):
        if isinstance(module, nn.Linear):
            parent, _, leaf = path.rpartition(".")
            setattr(layers.get_submodule(parent), leaf, _stored(module, work.method))
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                value = torch.randn(parameter.shape, device=DEVICE, dtype=torch.bfloat16).mul_(0.02)
                if parameter.dim() == 1 and name == "weight" and "gemma" not in config.model_type:
                    value += 1.0  # a norm's
                setattr(module, name, nn.Parameter(value, requires_grad=work.method == "full"))
    decoder = model.get_decoder()
    decoder.rotary_emb = type(decoder.rotary_emb)(config).to(DEVICE)
    if hasattr(decoder.embed_tokens, "embed_scale"):
        decoder.embed_tokens.embed_scale = torch.tensor(config.hidden_size**0.5, device=DEVICE)
    model.tie_weights()
    model.config.use_cache = False
    model.is_loaded_in_4bit, model.is_loaded_in_8bit = work.method == "qlora", work.method == "lora-8bit"
    if work.lora:
        from peft import LoraConfig, get_peft_model

        names = sorted({linear.name for _, linear in work.model.shape.adapted(work.targets)})
        settings = LoraConfig(r=work.rank, lora_alpha=work.rank, target_modules=names, task_type="CAUSAL_LM")
        with torch.device(DEVICE):  # its first weights are drawn there, not on the host
            model = get_peft_model(model, settings)
    return model.train()


def _stored(linear: Any, method: str) -> Any:
    import bitsandbytes as bnb
    import torch
    from torch import nn

    weight = torch.randn(linear.out_features, linear.in_features, device=DEVICE, dtype=torch.bfloat16).mul_(
        0.02
    )
    sizes = (linear.in_features, linear.out_features, linear.bias is not None)
    if method == "qlora":
        new = bnb.nn.Linear4bit(
            *sizes, compute_dtype=torch.bfloat16, quant_type="nf4", compress_statistics=True, device="meta"
        )
        new.weight = bnb.nn.Params4bit(
            weight, requires_grad=False, quant_type="nf4", compress_statistics=True
        ).to(DEVICE)
    elif method == "lora-8bit":
        new = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, device="meta")
        whole = bnb.nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
        new.weight = whole._quantize(torch.device(DEVICE))  # where ``to`` wants to find it on the host
    else:
        new = nn.Linear(*sizes, device="meta")
        new.weight = nn.Parameter(weight, requires_grad=method == "full")
    return new


def optimiser_of(work: Work, model: Any) -> Any:
    """The one that the trainer would take."""
    import torch

    trained = [p for p in model.parameters() if p.requires_grad]
    if work.optimiser == "adamw_torch":
        return torch.optim.AdamW(trained, lr=1e-5)
    from sloth_nb.engine.optim import AdamW8bit

    return AdamW8bit(trained, lr=1e-5)


def install(model: Any, work: Work, gpu: GPU) -> Any:
    """The engine, on the model with the work's policies."""
    from sloth_nb.engine.policy import LayerPolicy
    from sloth_nb.models.install import install

    chosen: Any = "sloth"
    if work.policy != "sloth":
        chosen = [LayerPolicy(frozenset(p.device), frozenset(p.host)) for p in work.policies(gpu)]
    report = install(
        model, chosen, mlp_tile=work.mlp_tile, loss_chunk_bytes=work.loss_chunk, cuda_graphs=work.graphs
    )
    if report.engine is None:
        raise RuntimeError(f"the engine did not take {work.model.name}: {report.left}")
    return report.engine


def inputs_of(work: Work) -> dict[str, Any]:
    """A batch of random tokens of the work's shape."""
    import torch

    vocab = work.model.shape.vocab
    shape = (1, work.tokens) if work.packed else (work.batch, work.length)
    ids = torch.randint(4, vocab - 8, shape, generator=torch.Generator().manual_seed(7)).to(DEVICE)
    found = {"input_ids": ids, "labels": ids.clone()}
    if work.packed:
        edges = torch.arange(0, work.tokens + 1, work.length, dtype=torch.int32, device=DEVICE)
        positions = torch.arange(work.length, device=DEVICE).repeat(work.batch)[None]
        found |= {"position_ids": positions, "cu_seq_lens_q": edges, "cu_seq_lens_k": edges}
        found |= {"max_length_q": work.length, "max_length_k": work.length}
    return found
