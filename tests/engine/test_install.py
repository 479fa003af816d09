"""Installing: one instance, reported, reversible, and honest about what it leaves to the model."""

import copy

import pytest
import torch
from families import adapted_model, batch, plain_model, step, worst
from transformers import AutoModelForCausalLM, GPT2Config

from sloth_nb.models.install import install
from sloth_nb.models.report import engine_of, report_of


def test_undo_gives_the_model_its_own_forwards_back():
    model = adapted_model("llama")
    base = model.get_base_model()
    before = (base.forward, base.model.forward)
    report = install(model)
    assert base.forward != before[0]
    report.undo()
    assert (base.forward, base.model.forward) == before
    assert "forward" not in base.__dict__ and engine_of(model) is None
    assert "taken off" in str(report)


def test_an_own_forward_of_the_instance_comes_back_too():
    model = plain_model("llama")
    own = model.forward
    model.forward = own
    install(model).undo()
    assert model.__dict__["forward"] is own


def test_two_models_with_different_settings_live_side_by_side():
    one, two, inputs = adapted_model("llama"), adapted_model("gemma3"), batch()
    wanted = step(one, **inputs), step(two, **inputs)
    install(one, False)
    install(two, "lean")
    assert engine_of(one).settings.checkpointing is False and engine_of(two).settings.checkpointing == "lean"
    for model, (loss, grads) in zip((one, two), wanted, strict=True):
        got_loss, got = step(model, **inputs)
        assert abs(float(got_loss - loss)) < 1e-5 and worst(got, grads) < 1e-5


def test_installing_again_replaces_the_settings():
    model = adapted_model("llama")
    first = install(model, True)
    second = install(model, False)
    assert not first.installed and second.installed
    second.undo()
    assert "forward" not in model.get_base_model().__dict__


def test_a_copied_model_runs_plain():
    model, inputs = adapted_model("llama"), batch()
    install(model)
    clone = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    loss = clone(**inputs).loss
    assert engine_of(model).model is model.get_base_model()
    assert float(loss) != float(model(**inputs).loss)


def test_a_pickled_model_runs_plain_too(tmp_path):
    model, inputs = plain_model("llama"), batch()
    wanted = float(model(**inputs).loss.detach())
    install(model)
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert engine_of(again) is None and "copy" in str(report_of(again))
    assert abs(float(again(**inputs).loss.detach()) - wanted) < 1e-6


def test_the_report_names_what_runs_and_what_is_kept():
    text = str(install(adapted_model("qwen3"), True))
    assert "3 decoder layers" in text and "21 LoRA over dense" in text and "recomputed" in text


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"lora_dropout": 0.1}, "lora_dropout=0.1"),
        ({"use_dora": True}, "variant"),
        ({"lora_bias": True}, "LoRA bias"),
    ],
)
def test_adapters_that_the_engine_cannot_run_stay_with_peft_and_say_why(options, reason):
    model, inputs = adapted_model("llama", **options), batch()
    report = install(model)
    assert not report.installed and reason in str(report)
    loss, _ = step(model, **inputs)
    assert torch.isfinite(loss)


def test_an_unknown_family_is_left_alone_with_the_reason():
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=50)
    report = install(AutoModelForCausalLM.from_config(config))
    assert not report.installed and "GPT2" in str(report)


def test_switching_the_adapter_off_is_followed():
    model, inputs = adapted_model("llama"), batch()
    with torch.no_grad(), model.disable_adapter():
        base_loss = float(model(**inputs).loss)
    tuned = float(model(**inputs).loss)
    install(model)
    with torch.no_grad(), model.disable_adapter():
        assert abs(float(model(**inputs).loss) - base_loss) < 1e-5
    assert abs(float(model(**inputs).loss) - tuned) < 1e-5
    assert abs(base_loss - tuned) > 1e-3


def test_logits_are_made_when_asked_for():
    model, inputs = adapted_model("gemma2"), batch()
    wanted = model(**inputs).logits
    install(model)
    output = model(**inputs)
    assert "logits" not in output and torch.allclose(output.logits, wanted, atol=1e-4)


def test_generation_still_uses_the_cache_and_gives_the_same_tokens():
    model = adapted_model("llama").eval()
    ids = batch(1, 7)["input_ids"]
    wanted = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
    install(model)
    assert torch.equal(model.generate(input_ids=ids, max_new_tokens=8, do_sample=False), wanted)
