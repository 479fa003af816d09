"""Whole training steps side by side: sloth_nb, transformers + peft, Liger and Unsloth on the same model and work.

    python kernels/bench/training.py quick SHAPE WHO CASE...        random weights, made on the GPU (not unsloth)
    python kernels/bench/training.py make SHAPE FOLDER              the same as a checkpoint on disk
    python kernels/bench/training.py run FOLDER WHO CASE...         everybody loads that checkpoint

SHAPE is a key of SHAPES, WHO one of hf, liger, unsloth, sloth_nb, a CASE is BATCHxLENGTH (2x2048), with :MODE where it
has a checkpointing of its own (2x2048:False keeps all). One contestant a process. QLoRA NF4, rank 32 on all
projections, 8-bit AdamW, random tokens. Prints tokens/s (of the median step, or of all with --varied), the allocator's
peak, the share of it above the model, and the first step's loss, which must agree between contestants.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from typing import Any

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3.1-8b": (
        "llama",
        {
            "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 524288,
            "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            },
        },
    ),
    "llama-3.2-3b": (
        "llama",
        {
            "vocab_size": 128256, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28,
            "num_attention_heads": 24, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
    ),
    "qwen3-14b": (
        "qwen3",
        {
            "vocab_size": 151936, "hidden_size": 5120, "intermediate_size": 17408, "num_hidden_layers": 40,
            "num_attention_heads": 40, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": False,
            "max_position_embeddings": 40960, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        },
    ),
    "phi-4": (
        "phi3",
        {
            "vocab_size": 100352, "hidden_size": 5120, "intermediate_size": 17920, "num_hidden_layers": 40,
            "num_attention_heads": 40, "num_key_value_heads": 10, "tie_word_embeddings": False,
            "max_position_embeddings": 16384, "rms_norm_eps": 1e-5, "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 250000.0},
        },
    ),
    "gemma-3-4b": (
        "gemma3_text",
        {
            "vocab_size": 262208, "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "query_pre_attn_scalar": 256,
            "sliding_window": 1024, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
        },
    ),
}  # fmt: skip

TARGETS = [
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj",
]  # fmt: skip
RANK = 32


def config_of(shape: str) -> Any:
    from transformers import AutoConfig

    kind, values = SHAPES[shape]
    return AutoConfig.for_model(kind, **values, bos_token_id=1, eos_token_id=2)


def build(shape: str, four_bit: bool = True) -> Any:
    """The shape with random weights, made on the GPU layer by layer: NF4 projections, the rest in bf16."""
    import bitsandbytes as bnb
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    config = config_of(shape)
    torch.manual_seed(0)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    for name, module in list(model.model.layers.named_modules()):
        if not isinstance(module, nn.Linear):
            continue
        weight = (
            torch.randn(module.out_features, module.in_features, device="cuda", dtype=torch.bfloat16) * 0.02
        )
        if four_bit:
            new = bnb.nn.Linear4bit(
                module.in_features, module.out_features, bias=module.bias is not None,
                compute_dtype=torch.bfloat16, quant_type="nf4", compress_statistics=True, device="meta",
            )  # fmt: skip
            new.weight = bnb.nn.Params4bit(weight, requires_grad=False, quant_type="nf4").to("cuda")
        else:
            new = nn.Linear(module.in_features, module.out_features, bias=False, device="meta")
            new.weight = nn.Parameter(weight, requires_grad=False)
        parent, _, leaf = name.rpartition(".")
        setattr(model.model.layers.get_submodule(parent), leaf, new)
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.is_meta:
                value = torch.randn(parameter.shape, device="cuda", dtype=torch.bfloat16) * 0.02
                if parameter.dim() == 1:
                    value += 0.0 if "gemma" in config.model_type else 1.0
                setattr(module, name, nn.Parameter(value, requires_grad=False))
    rotary = type(model.model.rotary_emb)
    model.model.rotary_emb = rotary(config).cuda()
    if hasattr(model.model.embed_tokens, "embed_scale"):
        model.model.embed_tokens.embed_scale = torch.tensor(config.hidden_size**0.5, device="cuda")
    model.tie_weights()
    model.is_loaded_in_4bit = four_bit
    return model


def adapt(model: Any) -> Any:
    """LoRA as the field does it: fp32 adapters, frozen base, checkpointing as asked."""
    from peft import LoraConfig, get_peft_model

    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = [t for t in TARGETS if t in present]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model = get_peft_model(
        model, LoraConfig(r=RANK, lora_alpha=RANK, lora_dropout=0, bias="none", target_modules=targets)
    )
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def make(shape: str, folder: str) -> None:
    """Writes the shape as a bf16 checkpoint with a tokenizer that every loader accepts."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    with torch.device("cuda"):
        model = AutoModelForCausalLM.from_config(config_of(shape), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="4GB")
    special = {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}
    tokenizer = Tokenizer(
        models.BPE(vocab=special | {chr(33 + i): 4 + i for i in range(90)}, merges=[], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)


def load(folder: str, who: str, checkpointing: Any, longest: int) -> Any:
    """What a user of each contestant writes to load a checkpoint in 4-bit and adapt it."""
    options: dict[str, Any] = {"max_seq_length": longest, "load_in_4bit": True}
    if who == "unsloth":
        from unsloth import FastLanguageModel

        mode: Any = "unsloth" if checkpointing else False
    elif who == "sloth_nb":
        from sloth_nb import FastLanguageModel

        mode = checkpointing
    else:
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        quantisation = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_use_double_quant=True,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=quantisation, dtype=torch.bfloat16, device_map={"": 0},
            attn_implementation="sdpa",
        )  # fmt: skip
        return prepare(model, who, checkpointing)
    model, _ = FastLanguageModel.from_pretrained(folder, **options)
    return FastLanguageModel.get_peft_model(
        model, r=RANK, target_modules=[t for t in TARGETS if t not in ("qkv_proj", "gate_up_proj")],
        lora_alpha=RANK, lora_dropout=0, bias="none", use_gradient_checkpointing=mode, random_state=3407,
        max_seq_length=longest,
    )  # fmt: skip


def prepare(model: Any, who: str, checkpointing: Any) -> Any:
    """Adapts a loaded model and gives it the contestant's kernels."""
    if who == "liger":
        import liger_kernel.transformers as liger

        getattr(liger, "_apply_liger_kernel_to_instance")(model=model)  # noqa: B009 - private, but theirs for this
    if who != "sloth_nb" and checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model = adapt(model)
    model.config.use_cache = False
    if who == "sloth_nb":
        from sloth_nb.models.install import install

        print(install(model, checkpointing), flush=True)
    return model


def switch(model: Any, who: str, checkpointing: Any) -> None:
    """Another way of checkpointing for a model that is prepared already."""
    if who == "unsloth":
        from unsloth import FastLanguageModel

        mode: Any = "unsloth" if checkpointing else False
        FastLanguageModel.for_training(model, use_gradient_checkpointing=mode)
    elif who == "sloth_nb":
        from sloth_nb.models.install import install

        install(model, checkpointing)
    elif checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_disable()


def _mode(word: str) -> Any:
    return {"True": True, "False": False}.get(word, word)


def _length(case: str) -> int:
    return int(case.partition(":")[0].split("x")[1])


def optimiser_of(who: str, args: argparse.Namespace) -> Any:
    """8-bit AdamW: bitsandbytes', or for sloth_nb its own class over the same kernels."""
    import bitsandbytes as bnb

    if who != "sloth_nb" or args.bnb_optimiser:
        return bnb.optim.AdamW8bit
    from sloth_nb.engine.optim import AdamW8bit

    return AdamW8bit


def batches_of(batch: int, length: int, args: argparse.Namespace) -> list[Any]:
    """Random tokens on the GPU, for every step; the same for every contestant."""
    import torch

    generator, steps = torch.Generator().manual_seed(7), args.warm + args.steps
    if not args.varied:
        return [torch.randint(4, 90000, (batch, length), generator=generator).cuda()] * steps
    lengths = torch.randint(length // 2, length + 1, (steps,), generator=generator).tolist()
    return [torch.randint(4, 90000, (batch, n), generator=generator).cuda() for n in lengths]


def measure(model: Any, who: str, cases: list[str], args: argparse.Namespace, since: float) -> None:
    import torch

    if args.cap:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(args.cap * 2**30 / total)
    model.train()
    base = torch.cuda.memory_allocated()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = optimiser_of(who, args)(parameters, lr=1e-4)
    current = args.checkpointing
    for case in cases:
        shape, _, own = case.partition(":")
        batch, length = map(int, shape.split("x"))
        checkpointing = _mode(own) if own else args.checkpointing
        if checkpointing != current:
            switch(model, who, checkpointing)
            current = checkpointing
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        batches = batches_of(batch, length, args)
        times, tokens, first, error = [], [], None, ""
        try:
            for i, ids in enumerate(batches):
                torch.cuda.synchronize()
                start = time.perf_counter()
                loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                torch.cuda.synchronize()
                if first is None:
                    first = float(loss.detach())
                    to_first = time.perf_counter() - since
                if i >= args.warm:
                    times.append(time.perf_counter() - start)
                    tokens.append(ids.numel())
                del loss
        except torch.cuda.OutOfMemoryError:
            error = "out of memory"
        step = statistics.median(times) if times else None
        peak = torch.cuda.max_memory_allocated()
        row = {
            "who": who, "case": shape, "checkpointing": str(checkpointing), "loss": first, "error": error,
            "step_ms": step and round(step * 1e3, 1),
            "tok_s": step and round(sum(tokens) / sum(times) if args.varied else batch * length / step),
            "peak_gb": round(peak / 2**30, 2), "above_gb": round((peak - base) / 2**30, 2),
            "reserved_gb": round(torch.cuda.max_memory_reserved() / 2**30, 2),
            "first_step_s": first and round(to_first, 1),
        }  # fmt: skip
        print("RESULT " + json.dumps(row), flush=True)
        optimiser.zero_grad(set_to_none=True)


def main() -> None:
    since = time.perf_counter()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=["quick", "make", "run"])
    parser.add_argument("what", help="SHAPE, or FOLDER for run")
    parser.add_argument("rest", nargs="*", help="WHO CASE..., or FOLDER for make")
    parser.add_argument(
        "--checkpointing", default="sloth", help="sloth, True, False, keep, recompute, lean, offload"
    )
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warm", type=int, default=4)
    parser.add_argument(
        "--varied", action="store_true", help="every step as long as chance has it, from half of LENGTH up"
    )
    parser.add_argument("--cap", type=float, default=0, help="GB that the process may use")
    parser.add_argument(
        "--bnb-optimiser", action="store_true", help="sloth_nb, too, steps with bitsandbytes' class"
    )
    args = parser.parse_intermixed_args()
    args.checkpointing = _mode(args.checkpointing)
    if args.mode == "make":
        make(args.what, args.rest[0])
        return
    who, *cases = args.rest
    longest = max(map(_length, cases))
    if args.mode == "run":
        model = load(args.what, who, args.checkpointing, longest)
    else:
        model = prepare(build(args.what), who, args.checkpointing)
    measure(model, who, cases, args, since)


if __name__ == "__main__":
    main()
