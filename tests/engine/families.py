"""Tiny random models of every family that the engine runs, for the tests of this room."""

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 97
_SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 24, "sliding_window": 7}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1000000.0, "factor": 8.0},
}

CONFIGS: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**_SHAPE, rope_parameters=_LLAMA3_ROPE, mlp_bias=True, attention_bias=True),
    "mistral": MistralConfig(**_SHAPE, sliding_window=7),
    "smollm2": LlamaConfig(
        **_SHAPE | {"num_attention_heads": 3, "num_key_value_heads": 1, "hidden_size": 48}
    ),
    "qwen2": Qwen2Config(**_SHAPE),
    "qwen3": Qwen3Config(**_SHAPE, head_dim=24),
    "gemma2": Gemma2Config(**_SHAPE, **_GEMMA, attn_implementation="eager"),
    "gemma3": Gemma3TextConfig(**_SHAPE, **_GEMMA, layer_types=_MIXED, rope_parameters=_GEMMA3_ROPE),
    "phi3": Phi3Config(
        **_SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    ),
}

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PHI3_TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]


def plain_model(family: str, seed: int = 0) -> nn.Module:
    """A tiny random model in fp32, in training mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[family])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model.train()


def adapted_model(family: str, seed: int = 0, **options: object) -> nn.Module:
    """The same with LoRA on every projection, B not zero."""
    options = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": PHI3_TARGETS if family == "phi3" else TARGETS,
    } | options
    model = get_peft_model(plain_model(family, seed), LoraConfig(**options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model.train()


def batch(rows: int = 2, length: int = 19, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random ids with the first five labels of the first row masked."""
    ids = torch.randint(3, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[0, :5] = -100
    return {"input_ids": ids, "labels": labels}


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def step(model: nn.Module, **inputs: object) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """(loss, gradients) of one forward and backward from fresh gradients."""
    model.zero_grad(set_to_none=True)
    loss = model(**inputs).loss
    loss.backward()
    return loss.detach(), gradients(model)


def worst(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """The largest relative error of any parameter's gradient; the same parameters must have one."""
    assert set(got) == set(wanted), set(got) ^ set(wanted)
    return max(float((got[n] - wanted[n]).norm() / wanted[n].norm().clamp_min(1e-12)) for n in wanted)
