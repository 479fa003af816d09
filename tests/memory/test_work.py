"""Bad questions get one clear sentence."""

import re

import pytest

from sloth_nb import catalog
from sloth_nb.errors import HardwareError, ModelError, SlothError, TrainingError
from sloth_nb.memory import Work, estimate


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 0}, "batch is 0; it must be a whole number of at least 1"),
        ({"batch": 2.5}, "batch is 2.5"),
        ({"length": -1}, "length is -1"),
        ({"rank": 0}, "rank is 0"),
        ({"method": "qlra"}, "Did you mean 'qlora'"),
        ({"policy": "offlod"}, "Did you mean 'offload'"),
        ({"optimiser": "adam"}, "optimiser is 'adam'"),
        ({"policy": ["sloth"] * 40}, "a layer's policy is 'sloth'"),
        ({"policy": ["keep"] * 3}, "policy has 3 entries; qwen3-14b has 40 layers"),
        ({"batchsize": 3}, "no option 'batchsize'. Did you mean 'batch'"),
        ({"mlp_tile": 0}, "mlp_tile is 0"),
        ({"policy": None}, "policy is None; it is one of keep"),
        ({"policy": 5}, "policy is 5; it is one of keep"),
        ({"policy": [["keep"]] * 40}, "a layer's policy is ['keep']; it is one of"),
        ({"method": ["qlora"]}, "method is ['qlora']; it is one of qlora"),
        ({"task": None}, "task is None"),
        ({"targets": 5}, "targets is 5; it is a list of layer names"),
        ({"targets": "q_proj"}, "targets is 'q_proj'; it is a list of layer names"),
        ({"targets": [1]}, "targets is [1]; it is a list of layer names"),
        ({"targets": ["foo"]}, "qwen3-14b has no such layer. Its linear layers: q_proj, k_proj"),
        ({"targets": []}, "qwen3-14b has no such layer"),
        ({"generate": 5}, "generate is 5; it is (prompt tokens, answer tokens)"),
        ({"generate": (5, 0)}, "generate's answer is 0"),
    ],
)
def test_an_impossible_option_is_named(options, said):
    with pytest.raises(TrainingError, match=re.escape(said)):
        Work.of("qwen3-14b", **options)


@pytest.mark.parametrize("model", [None, 5, 2.5, ["qwen3-14b"]])
def test_what_names_no_model_is_refused_in_a_sentence(model):
    with pytest.raises(ModelError, match="A model is named by a text, a folder or a config"):
        estimate(model)


def test_the_word_of_peft_for_all_layers_is_understood():
    every = estimate("qwen3-14b", gpu="T4").trainable
    assert estimate("qwen3-14b", gpu="T4", targets="all-linear").trainable == every > 0
    assert estimate("qwen3-14b", gpu="T4", targets={"q_proj"}).trainable < every / 4


def test_targets_match_by_their_end_as_in_peft():
    def trained(*targets):
        return estimate("whisper-small", gpu="T4", length=448, targets=targets).trainable

    assert trained("q_proj") == 3 * trained(
        "encoder_attn.q_proj"
    )  # two kinds of attention, and the encoder's
    whole = estimate("qwen3-14b", gpu="T4", targets=["model.layers.0.self_attn.q_proj"]).trainable
    assert whole == estimate("qwen3-14b", gpu="T4", targets=["q_proj"]).trainable


def test_a_path_to_a_part_of_a_fused_layer_is_that_layer():
    whole = Work.of("phi-4", targets=["q_proj"])
    for name in ("self_attn.q_proj", "model.layers.0.self_attn.q_proj"):
        work = Work.of("phi-4", targets=[name])
        assert work.model.shape.adapted(work.targets) == whole.model.shape.adapted(whole.targets)


def test_a_layer_s_policy_of_any_kind_is_named():
    with pytest.raises(TrainingError, match=r"a layer's policy is \('keep', \[\]\); it is one of keep"):
        Work.of("qwen3-14b", policy=[("keep", [])] * 40)


@pytest.mark.parametrize(("options", "card", "leanest"), [
    ({}, "T4", "offload"), ({"engine": "hf"}, "T4", "recompute"), ({}, None, "lean"),
])  # fmt: skip
def test_what_holds_least_depends_on_who_computes_and_where(options, card, leanest):
    work = Work.of("llama-3.2-1b", **options)
    assert work.leanest(catalog.cpu(12) if card is None else catalog.gpu(card)) == leanest


def test_the_answers_of_grpo_are_as_long_as_the_length_allows():
    def generated(**options):
        return estimate("qwen3-14b", gpu="H200", **options).work.rollout

    assert generated(length=256) == (128, 128)
    assert generated(length=8192) == (512, 7680)
    assert generated(length=8192, generate=(100, 200)) == (100, 200)
    long, short = (
        estimate("qwen3-14b", gpu="H200", task="grpo", batch=64, length=8192, policy="offload", generate=way)
        for way in (None, (512, 512))
    )
    assert long.moment == "generation" and long.total > short.total
    assert long.longest_context() < short.longest_context()


def test_a_model_that_learnt_its_positions_goes_no_further():
    long, short = (estimate("whisper-small", gpu="H200", length=length) for length in (2048, 448))
    assert long.longest_context() == short.longest_context() == 448
    assert any("has learnt 448 positions" in note for note in long.notes)
    assert not any("RoPE" in note for note in long.notes)
    assert not any("positions" in note for note in short.notes)


def test_what_the_estimate_takes_as_frozen_is_said_with_the_option_that_freezes_it():
    assert any("finetune_vision_layers=False" in note for note in estimate("gemma-3-4b-it", gpu="T4").notes)


def test_an_unknown_model_or_card_names_the_nearest():
    with pytest.raises(ModelError, match="qwen3-14b"):
        estimate("qwen3-14")
    with pytest.raises(HardwareError, match="RTX 3090"):
        estimate("qwen3-14b", gpu="RTX 3099")


def test_an_error_shows_itself_without_a_traceback():
    with pytest.raises(SlothError) as caught:
        Work.of("qwen3-14b", batch=0)
    assert caught.value._render_traceback_() == [f"TrainingError: {caught.value}"]


def test_a_pair_counts_both_its_answers():
    assert Work.of("qwen3-14b", task="dpo", batch=2, length=100).tokens == 400
