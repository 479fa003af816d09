"""The first step's kernels are known before the weights are: what is rehearsed is what is launched."""

import importlib
import pkgutil
import subprocess

import pytest
import sloth_nb_kernels
import torch
import transformers
from sloth_nb_kernels.ahead import finish_compiling, take_fingerprint, variant
from transformers import AutoConfig, AutoModelForCausalLM

from sloth_nb.models import rehearsal
from sloth_nb.models.rehearsal import Rehearsal, step_launches
from sloth_nb.models.weights import Weights

MODULES = [
    importlib.import_module(f"sloth_nb_kernels.{m.name}")
    for m in pkgutil.iter_modules(sloth_nb_kernels.__path__)
]
BF16 = torch.bfloat16


def config(kind, **more):
    return AutoConfig.for_model(
        kind, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, vocab_size=512, bos_token_id=1, eos_token_id=2, pad_token_id=0, **more,
    )  # fmt: skip


def kernels_of(launches):
    return {
        f"{kernel.__module__}.{kernel.__name__}".rpartition("sloth_nb_kernels.")[2] for kernel, *_ in launches
    }


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "phi3"])
def test_a_step_of_four_bit_adapters_is_known_from_the_config(kind):
    found = kernels_of(step_launches(config(kind), method="qlora", dtype=BF16, capability=(9, 0)))
    rotation = "qk_norm_rope" if kind in ("qwen3", "gemma3_text") else "rope"
    for module in ("adapted_weight", "rms_norm", "glu", "cross_entropy", "adamw_8bit", rotation):
        assert any(name.startswith(module + ".") for name in found), (module, found)


@pytest.mark.parametrize("capability", [(7, 0), (7, 5)])
def test_older_cards_are_rehearsed_as_well(capability, capfd):
    found, newer = (
        kernels_of(step_launches(config("llama"), method="qlora", dtype=dtype, capability=card))
        for dtype, card in ((torch.float16, capability), (BF16, (8, 0)))
    )
    assert found == newer and not capfd.readouterr().err


def test_plain_weights_launch_no_dequantisation():
    found = kernels_of(step_launches(config("llama"), method="lora", dtype=BF16, capability=(9, 0)))
    assert found and not any(name.startswith(("dequantize.", "adapted_weight.")) for name in found)


def test_a_model_that_the_engine_does_not_run_has_nothing_to_rehearse():
    gpt2 = AutoConfig.for_model("gpt2", n_embd=64, n_layer=2, n_head=2, vocab_size=128)
    assert step_launches(gpt2, method="lora", dtype=BF16, capability=(9, 0)) == []


def test_nothing_is_compiled_for_a_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(subprocess, "Popen", None)
    with Rehearsal("a model") as begun:
        begun.of(config("llama"), method="qlora", dtype=BF16, device=torch.device("cpu"))


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """Triton's cache on disk, empty, of this process and those that it starts."""
    knobs = pytest.importorskip("triton").knobs
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert knobs.cache.dir == str(tmp_path)
    return tmp_path


@pytest.fixture
def begun(monkeypatch):
    """The processes that were started to compile."""
    found, start = [], rehearsal.begin_compiling
    monkeypatch.setattr(rehearsal, "begin_compiling", lambda: found.append(start()) or found[-1])
    return found


def compiled(cache):
    return sorted(file.name for file in cache.glob("*/*.cubin"))


def rehearsed(cache, begun, *, told, device="cuda:0"):
    with Rehearsal("a model", True) as asked:
        if told is not None:
            asked.of(told, method="qlora", dtype=BF16, device=torch.device(device))
    finish_compiling(120)
    assert all(process.returncode == 0 for process in begun)
    return compiled(cache)


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


def test_a_process_of_its_own_compiles_the_first_step_once(cache, begun, hopper):
    found = rehearsed(cache, begun, told=config("qwen3"))
    assert {"_adapted_kernel.cubin", "_adamw_8bit_kernel.cubin"} < set(found)
    assert rehearsed(cache, begun, told=config("qwen3")) == found and len(begun) == 1
    for file in cache.glob("sloth_nb-*"):
        file.unlink()
    assert rehearsed(cache, begun, told=config("qwen3")) == found and len(begun) == 2


@pytest.mark.parametrize("told", [None, config("llama")])
def test_a_process_that_is_told_nothing_ends_and_leaves_nothing(cache, begun, hopper, told):
    assert (
        rehearsed(cache, begun, told=told, device="cpu") == []
        and len(begun) == 1
        and not list(cache.glob("*"))
    )


def test_triton_has_hashed_itself_before_the_first_launch(cache, begun, hopper, monkeypatch):
    hashes, threads = pytest.importorskip("triton.runtime.cache"), []
    hashes.triton_key.cache_clear()
    monkeypatch.setattr(rehearsal, "take_fingerprint", lambda: threads.append(take_fingerprint()))
    with pytest.raises(ValueError), Rehearsal("a model"):
        raise ValueError
    assert not threads  # nothing will be launched
    with Rehearsal("a model"):
        pass
    threads[0].join(60)
    assert hashes.triton_key.cache_info().currsize == 1


def test_variants_differ_where_triton_compiles_anew():
    class Kernel:
        __name__ = "k"

    kernel, x = Kernel(), torch.empty(4)
    same = [(kernel, (x, 32), {"BLOCK": 8}), (kernel, (x.clone(), 4096), {"BLOCK": 8})]
    other = [(kernel, (x.half(), 32), {"BLOCK": 8}), (kernel, (x, 33), {"BLOCK": 8}), (kernel, (x, 1), {"BLOCK": 8}),
             (kernel, (x, 32), {"BLOCK": 16}), (kernel, (x, 2**33), {"BLOCK": 8})]  # fmt: skip
    assert len({variant(*launch) for launch in same}) == 1
    assert len({variant(*launch) for launch in same + other}) == 6


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3_text", "phi3"])
def test_a_first_step_launches_only_what_was_compiled_ahead(kind, cache, begun, monkeypatch):
    import bitsandbytes as bnb
    from peft import LoraConfig, get_peft_model

    from sloth_nb.engine.optim import AdamW8bit
    from sloth_nb.models.install import install

    device, made = torch.device("cuda", torch.cuda.current_device()), config(kind)
    known = {
        variant(*launch)
        for launch in step_launches(
            made, method="qlora", dtype=BF16, capability=torch.cuda.get_device_capability()
        )
    }
    found = rehearsed(cache, begun, told=made, device=str(device))
    launched = []
    for module in MODULES:
        if module.__name__.endswith((".launch", ".ahead")) or not hasattr(module, "launch"):
            continue

        def spy(kernel, grid, *args, _start=module.launch, **meta):
            if not any(kernel is earlier for earlier, *_ in launched):
                kernel.device_caches.clear()
            launched.append(variant(kernel, args, meta))
            _start(kernel, grid, *args, **meta)

        monkeypatch.setattr(module, "launch", spy)
    model = AutoModelForCausalLM.from_config(made, dtype=BF16)
    for name, linear in list(model.model.layers.named_modules()):
        if isinstance(linear, torch.nn.Linear):
            four = bnb.nn.Linear4bit(
                linear.in_features, linear.out_features, bias=False, compute_dtype=BF16, quant_type="nf4"
            )
            four.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
            parent, _, leaf = name.rpartition(".")
            setattr(model.model.layers.get_submodule(parent), leaf, four)
    model = model.to(device)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
    install(model, "recompute", cuda_graphs=False)
    ids = torch.randint(3, 500, (2, 64), device=device)
    model(input_ids=ids, labels=ids).loss.backward()
    AdamW8bit([p for p in model.parameters() if p.requires_grad], lr=1e-3).step()
    assert launched and set(launched) <= known
    assert compiled(cache) == found


@pytest.mark.parametrize(
    ("made", "full", "wanted"),
    [
        (None, False, "lora"),
        (None, True, "full"),
        (transformers.BitsAndBytesConfig(load_in_4bit=True), False, "qlora"),
        (transformers.BitsAndBytesConfig(load_in_8bit=True), False, "lora-8bit"),
    ],
)
def test_what_is_rehearsed_is_what_the_weights_are_for(made, full, wanted):
    assert Weights(BF16, made).method(config("llama"), full) == wanted
    stored = config("llama", quantization_config=None if made is None else made.to_dict())
    assert Weights(BF16, None).method(stored, full) == wanted
