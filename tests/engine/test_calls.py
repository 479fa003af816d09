"""Calls of every kind are answered as transformers answers them, by the engine or by the model itself."""

import copy

import pytest
import torch
from families import adapted_model, batch, plain_model, step, worst
from transformers import DynamicCache, Trainer, TrainingArguments

from sloth_nb.models.install import install
from sloth_nb.models.report import engine_of


def both(model):
    """(as transformers runs it, with the engine): copies, as tiny models share their config."""
    plain, ours = copy.deepcopy(model), copy.deepcopy(model)
    assert install(ours).installed
    return plain, ours


def left(model):
    return dict(engine_of(model).left_to_model)


def same_step(plain, ours, inputs):
    (loss, grads), (got_loss, got) = step(plain, **inputs), step(ours, **inputs)
    assert abs(float(got_loss - loss)) < 1e-6 and worst(got, grads) < 1e-5


def padded(labels_at_pads):
    inputs = batch(3)
    mask = torch.zeros_like(inputs["input_ids"])
    for row, length in enumerate((17, 4, 11)):
        mask[row, :length] = 1
    if not labels_at_pads:
        inputs["labels"] = inputs["labels"].masked_fill(mask == 0, -100)
    return inputs | {"attention_mask": mask}


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3"])
@pytest.mark.parametrize("labels_at_pads", [False, True])
def test_padding_on_the_right_is_exact_whether_pads_are_learnt_or_not(family, labels_at_pads):
    plain, ours = both(adapted_model(family))
    same_step(plain, ours, padded(labels_at_pads))
    assert bool(left(ours)) == labels_at_pads


@pytest.mark.parametrize("family", ["llama", "mistral", "phi3"])
def test_positions_with_gaps_belong_to_one_sequence_where_transformers_takes_them_so(family):
    positions = torch.cat([torch.arange(9), torch.arange(40, 50)])[None].expand(2, -1)
    plain, ours = both(adapted_model(family))
    for cache in (None, False):
        same_step(plain, ours, batch() | {"position_ids": positions, "use_cache": cache})
    assert not left(ours)


def test_a_cache_is_filled_and_read_also_where_gradients_are_recorded():
    ids, answers = batch()["input_ids"], []
    for model in both(adapted_model("llama")):
        cache = DynamicCache(config=model.config)
        model(input_ids=ids[:, :9], past_key_values=cache)
        answers.append(model(input_ids=ids[:, 9:], past_key_values=cache).logits)
        assert cache.get_seq_length() == 19
    assert (answers[0] - answers[1]).abs().max() < 1e-5


def test_evaluating_runs_in_the_engine_and_gives_logits_as_well():
    plain, ours = both(adapted_model("llama").eval())
    with torch.no_grad():
        wanted, got = plain(**batch()), ours(**batch())
    assert abs(float(got.loss - wanted.loss)) < 1e-6
    assert (dict(got.items())["logits"] - wanted.logits).abs().max() < 1e-5 and not left(ours)


def test_who_wants_no_cache_gets_no_logits_either_before_asking():
    _, ours = both(adapted_model("llama").eval())
    with torch.no_grad():
        output = ours(**batch(), use_cache=False)
    assert list(output) == ["loss"] and output.logits.shape == (2, 19, 97)


@pytest.mark.parametrize("grad", [True, False])
def test_a_tuple_holds_the_loss_and_the_logits(grad):
    found = []
    for model in both(plain_model("llama")):
        with torch.set_grad_enabled(grad):
            found.append(model(**batch(), use_cache=False, return_dict=False))
    (loss, logits), (got_loss, got_logits) = found
    assert abs(float(got_loss - loss)) < 1e-6 and (got_logits - logits).abs().max() < 1e-5


def test_outputs_have_their_places():
    _, ours = both(adapted_model("llama"))
    output = ours(**batch())
    assert output[0] is output.loss and output[1].shape == (2, 19, 97) and len(output.to_tuple()) == 2
    assert output["logits"] is output.logits


@pytest.mark.parametrize("flag", ["output_hidden_states", "output_attentions"])
def test_what_the_config_asks_for_is_given(flag):
    models = both(plain_model("llama"))
    for model in models:
        model.set_attn_implementation("eager")
        setattr(model.config, flag, True)
    plain, ours = models
    name = flag.removeprefix("output_")
    assert len(getattr(ours(**batch()), name)) == len(getattr(plain(**batch()), name))


def test_an_argument_that_nobody_here_knows_goes_to_the_model():
    plain, ours = both(adapted_model("llama"))
    ids = batch()["input_ids"]
    same_step(plain, ours, {"input_ids": ids, "labels": ids, "ignore_index": 5})
    assert left(ours) == {"ignore_index is given": 1}


def test_arguments_by_place_are_the_same_as_by_name():
    plain, ours = both(adapted_model("llama"))
    inputs = padded(False)
    wanted = plain(**inputs).loss
    got = ours.get_base_model()(inputs["input_ids"], inputs["attention_mask"], labels=inputs["labels"]).loss
    assert abs(float(got - wanted)) < 1e-6 and not left(ours)


def test_no_tokens_are_refused_as_transformers_refuses_them():
    for model in both(plain_model("llama")):
        with pytest.raises(RuntimeError):
            model(input_ids=torch.zeros(2, 0, dtype=torch.int64)).logits.sum().backward()


def test_mixed_precision_computes_as_transformers_does():
    plain, ours = both(adapted_model("llama"))
    with torch.autocast("cpu", torch.bfloat16):
        same_step(plain, ours, batch())
    assert "autocast" in str(left(ours))


def test_a_head_of_another_precision_is_left_to_the_model():
    model = plain_model("llama").bfloat16()
    model.lm_head.float()
    install(model)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch()).loss
    assert loss.isfinite() and "the output head is torch.float32" in str(left(model))


def test_transformers_own_trainer_evaluates_with_its_metrics(tmp_path):
    shapes = {}
    for kind, model in zip(("plain", "ours"), both(adapted_model("llama")), strict=True):
        model.get_base_model().config.use_cache = False
        rows = [{name: value[0] for name, value in batch(1, seed=seed).items()} for seed in range(4)]
        arguments = TrainingArguments(tmp_path, report_to=[], use_cpu=True, per_device_eval_batch_size=2)
        trainer = Trainer(
            model, arguments, eval_dataset=rows,
            compute_metrics=lambda found: {"width": found.predictions.shape[-1]},
        )  # fmt: skip
        shapes[kind] = trainer.evaluate()
    assert shapes["ours"]["eval_width"] == 97
    assert abs(shapes["ours"]["eval_loss"] - shapes["plain"]["eval_loss"]) < 1e-5


def test_a_second_derivative_is_refused_rather_than_wrong():
    _, ours = both(adapted_model("llama"))
    parameters = [p for p in ours.parameters() if p.requires_grad]
    with pytest.raises(RuntimeError, match="can't be differentiated again"):
        torch.autograd.grad(ours(**batch()).loss, parameters, create_graph=True)


@pytest.mark.parametrize("masked", [False, True])
def test_labels_that_do_not_fit_the_tokens_are_refused_in_words_of_the_caller(masked):
    _, ours = both(adapted_model("llama"))
    inputs = padded(labels_at_pads=False) if masked else batch(3)
    inputs["labels"] = inputs["labels"][:, :5]
    with pytest.raises(
        ValueError, match=r"labels are \(3, 5\), the tokens \(3, \d+\): each token needs a label"
    ):
        ours(**inputs)
