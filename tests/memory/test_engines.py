"""Models that this package's engine does not run are estimated as transformers and peft train them."""

import pytest
import transformers

from sloth_nb import catalog
from sloth_nb.engine.spec import families
from sloth_nb.memory import Budget, Work, changes_to_fit, estimate, estimate_work, plan
from sloth_nb.memory.engines import ENGINE_RUNS, engine_for
from sloth_nb.memory.plan import fitted_policies

T4, H200 = catalog.gpu("T4"), catalog.gpu("H200")
OTHERS = ["gemma-3-4b-it", "llama-3.2-11b-vision", "smollm3-3b", "qwen3-30b-a3b", "whisper-small", "csm-1b"]


def test_the_families_are_those_that_the_engine_has_a_spec_for():
    layers = set()
    for kind in ENGINE_RUNS:
        config = transformers.AutoConfig.for_model(kind)
        module = transformers.AutoModelForCausalLM._model_mapping[type(config)].__module__
        (layer,) = (
            name for name in vars(__import__(module, fromlist=["x"])) if name.endswith("DecoderLayer")
        )
        layers.add(layer)
    assert sorted(layers) == families()


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_that_the_engine_does_not_run_takes_what_transformers_takes_and_says_so(name):
    answer = estimate(name, gpu="H200", length=448)
    assert answer.work.engine == "hf"
    assert answer.total == estimate(name, gpu="H200", length=448, engine="hf").total
    assert any("does not run" in note for note in answer.notes)


def test_gemma_3_that_sees_takes_three_times_what_its_language_part_takes():
    whole, part = estimate("gemma-3-4b-it", gpu="T4"), estimate("gemma-3-4b-it", gpu="T4", text_only=True)
    assert whole.total_gb > 18 and part.total_gb < 6
    assert part.work.engine == "sloth" and part.notes == ()
    assert "text_only=True" in whole.notes[0]
    assert any("text_only=True" in change.say for change in whole.changes())


def test_a_policy_that_transformers_has_not_counts_as_recomputing_and_the_note_says_so():
    answers = [estimate("smollm3-3b", gpu="T4", policy=policy) for policy in ("recompute", "offload")]
    assert answers[0].total == answers[1].total and answers[1].host == 0
    assert "policy='offload' counts as 'recompute'" in answers[1].notes[0]


def test_another_model_is_run_by_the_engine_that_runs_it():
    work = Work.of("qwen3-30b-a3b")
    smaller = work.but(model=catalog.find("qwen3-8b"))
    assert (work.engine, smaller.engine) == ("hf", "sloth")
    assert work.but(model=catalog.find("qwen3-8b"), engine="hf").engine == "hf"
    assert Work.of("qwen3-8b", engine="hf").but(model=catalog.find("qwen3-4b")).engine == "hf"
    assert engine_for(catalog.find("gemma-3-1b-it")) == "sloth"


@pytest.mark.parametrize("name", OTHERS)
def test_no_advice_is_what_transformers_can_not_do(name):
    work = Work.of(name, batch=8, length=448, policy="keep")
    lowest = estimate_work(work.but(policy="recompute", batch=1), H200).total
    for change in changes_to_fit(work, H200, int(lowest * 1.05)):
        if "model" not in change.options:
            assert not {"engine", "mlp_tile", "loss_chunk", "embedding_offload"} & change.options.keys()
            assert change.options.get("policy", "recompute") == "recompute"


@pytest.mark.parametrize("name", OTHERS)
def test_a_plan_keeps_or_recomputes_all_layers(name):
    work = Work.of(name, batch=4, length=448)
    roomy = Budget.of("H200")
    assert plan(work, roomy).work.policy == "keep"
    tight = Budget(T4, int(1.2 * estimate_work(work, T4).total), 0)
    assert fitted_policies(work, tight).policy in ("keep", "recompute")
    made = plan(work, tight)
    assert made.work.policy in ("keep", "recompute") and "tiles" not in made.summary()


def test_an_encoder_of_sound_passes_its_own_number_of_tokens():
    short, long = (estimate("whisper-small", gpu="H200", policy="keep", length=n) for n in (8, 448))
    assert short.kinds["activations"] > 0.4 * long.kinds["activations"]
