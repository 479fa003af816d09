"""The formulas against what was measured, and against what must be true of any estimate."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sloth_nb import catalog
from sloth_nb.memory import KINDS, POLICIES, Work, estimate, estimate_work
from sloth_nb.memory.weights import NF4_BITS, weight_bytes

H200 = catalog.gpu("H200")
LLAMA = Work.of("llama-3.1-8b", rank=32)
PLAIN = json.loads((Path(__file__).parent / "data" / "plain_h200.json").read_text())


@pytest.mark.parametrize("row", PLAIN["rows"], ids=lambda r: f"{r['batch']}x{r['length']}-{r['policy']}")
def test_plain_transformers_and_peft_are_predicted_within_half_a_percent(row):
    work = LLAMA.but(engine="hf", batch=row["batch"], length=row["length"], policy=row["policy"])
    assert estimate_work(work, H200).tensors / 2**30 == pytest.approx(row["peak_gib"], rel=0.005)


def test_nf4_with_double_quantisation_takes_4_127_bits():
    assert pytest.approx(4.127, abs=0.001) == NF4_BITS
    shape = LLAMA.model.shape
    sixteen_bit = 2 * (shape.parameters - shape.linear_weights)
    assert weight_bytes(shape, "qlora") - sixteen_bit == pytest.approx(
        shape.linear_weights * 4.127 / 8, rel=0.001
    )
    assert weight_bytes(shape, "lora") == 2 * shape.parameters


@pytest.mark.parametrize("optimiser", ["adamw_8bit", "adamw_torch", "adamw_fp32", "sgd"])
def test_full_fine_tuning_holds_states_for_every_weight(optimiser):
    work = Work.of("qwen3-0.6b", method="full", optimiser=optimiser, batch=1, length=256)
    parameters = work.model.parameters
    kinds = estimate_work(work, H200).kinds
    states = {"adamw_8bit": 2.03, "adamw_torch": 4, "adamw_fp32": 12, "sgd": 0}[optimiser]
    assert kinds["weights"] == pytest.approx(2 * parameters, rel=0.01)
    assert kinds.get("optimiser", 0) == pytest.approx(states * parameters, rel=0.02)


def works():
    names = [
        "smollm2-135m-instruct",
        "qwen3-4b",
        "gemma-3-4b-it",
        "phi-4",
        "qwen3-30b-a3b",
        "whisper-small",
        "csm-1b",
    ]
    return st.builds(
        Work.of,
        st.sampled_from([*names, "llama-3.2-11b-vision", "llama-4-scout-17b-16e"]),
        method=st.sampled_from(["qlora", "lora-8bit", "lora", "full"]),
        task=st.sampled_from(["sft", "dpo", "grpo"]),
        batch=st.integers(1, 16),
        length=st.integers(1, 40_000),
        rank=st.integers(1, 256),
        policy=st.sampled_from(list(POLICIES)),
        engine=st.sampled_from(["sloth", "hf"]),
        optimiser=st.sampled_from(
            ["adamw_8bit", "paged_adamw_8bit", "adamw_torch", "adamw_torch_fused", "sgd"]
        ),
        packed=st.booleans(),
        accumulation=st.integers(1, 4),
        mlp_tile=st.none() | st.just("auto") | st.integers(1, 8192),
        embedding_offload=st.booleans(),
        gpus=st.integers(1, 4),
        strategy=st.sampled_from(["ddp", "fsdp"]),
    )


@settings(max_examples=150, deadline=None)
@given(work=works(), card=st.sampled_from(["T4", "A100", "H200"]))
def test_any_estimate_adds_up(work, card):
    answer = estimate_work(work, catalog.gpu(card))
    assert set(answer.kinds) <= set(KINDS)
    assert all(size > 0 for size in answer.kinds.values())
    assert 0 < answer.tensors <= answer.reserved <= answer.total
    assert sum(size for _, _, size in answer.rows()) == answer.total
    assert str(answer).count("GB") >= len(answer.kinds)


def test_a_model_of_two_parts_is_estimated_though_one_passes_a_single_token():
    answer = estimate_work(Work.of("whisper-small", method="full", batch=1, length=1, policy="keep"), H200)
    assert 0 < answer.tensors < answer.reserved


@settings(max_examples=60, deadline=None)
@given(work=works())
def test_more_tokens_never_take_less(work):
    # The engine's own rules change what they do with the number of tokens; all else grows with it. A chunk of
    # logits that is large enough for no second one keeps the loss from changing its own, and a step of many tokens
    # isn't captured.
    policy = "offload" if work.policy == "sloth" else work.policy
    work = work.but(mlp_tile=None, policy=policy, loss_chunk=1 << 50, graphs=False)
    now = estimate_work(work, H200).tensors
    assert estimate_work(work.but(length=work.length + 777), H200).tensors >= now
    assert estimate_work(work.but(batch=work.batch + 1), H200).tensors >= now


@pytest.mark.parametrize(
    "name", ["qwen3-4b", "gemma-3-4b-it", "phi-4", "qwen3-30b-a3b", "llama-3.2-11b-vision"]
)
def test_each_policy_holds_less_than_the_one_before(name):
    held = [
        estimate_work(Work.of(name, policy=policy, engine="sloth"), H200).kinds["activations"]
        for policy in ("keep", "recompute", "lean", "offload")
    ]
    assert held == sorted(held, reverse=True) and held[-1] < held[0] / 10


def test_offloading_moves_the_same_bytes_to_the_host_that_recompute_keeps():
    recompute = estimate_work(LLAMA.but(length=16384, policy="recompute"), H200)
    offload = estimate_work(LLAMA.but(length=16384, policy="offload"), H200)
    assert recompute.host == 0
    assert offload.host > 7 * 2**30
    assert recompute.total - offload.total > 0.9 * offload.host


def test_a_captured_step_holds_all_gradients_throughout():
    """Into buffers that stay; accumulated ones are moved out of them first."""

    def held(length=512, **options):
        return estimate_work(LLAMA.but(batch=1, length=length, **options), H200).kinds["gradients"]

    once = estimate_work(LLAMA, H200).trainable * 4
    assert held(graphs=True) == pytest.approx(once, rel=0.01)
    assert held(graphs=True, accumulation=4) == pytest.approx(2 * once, rel=0.01)
    assert held(4096, graphs=False) < 0.3 * once
    assert held(16384, graphs=True) < 0.3 * once


def test_policies_may_differ_by_layer_and_lie_between_their_ends():
    keep, lean = (estimate_work(LLAMA.but(policy=p), H200).total for p in ("keep", "lean"))
    mixed = estimate_work(LLAMA.but(policy=("lean",) * 16 + ("keep",) * 16), H200).total
    assert lean < mixed < keep


def test_the_estimate_needs_neither_torch_nor_transformers():
    code = (
        "import sys; from sloth_nb.memory import estimate; e = estimate('qwen3-14b', gpu='T4');"
        "e.longest_context(); e.changes(); str(e);"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_length_beyond_the_models_offers_rope_scaling_and_says_what_it_does():
    notes = " ".join(estimate("smollm2-135m-instruct", gpu="H200", length=20_000).notes)
    assert "8,192" in notes and "'factor': 3.0" in notes and "squeezes" in notes


@pytest.mark.parametrize("kind", ["gpt_neox", "phi", "starcoder2"])
def test_a_decoder_s_own_names_for_its_layers_change_nothing(kind):
    usual = {
        **{"query_key_value": "qkv_proj", "dense": "o_proj"},
        **{"dense_h_to_4h": "fc1", "dense_4h_to_h": "fc2", "c_fc": "fc1", "c_proj": "fc2"},
    }
    config = dict(hidden_size=512, intermediate_size=2048, num_attention_heads=8, vocab_size=1000)
    own, renamed = (catalog.from_config({**config, "model_type": kind, "num_hidden_layers": 4}) for _ in "12")
    linears = tuple(replace(x, name=usual.get(x.name, x.name)) for x in own.shape.blocks[0].linears)
    renamed.__dict__["shape"] = replace(own.shape, blocks=(replace(own.shape.blocks[0], linears=linears),))
    for method in ("full", "lora", "qlora"):
        assert (
            estimate(own, gpu=H200, method=method).kinds == estimate(renamed, gpu=H200, method=method).kinds
        )
