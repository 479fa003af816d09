"""SFTTrainer: rows, losses and weights are what they should be, and older calls run."""

import copy
import warnings

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq, TrainingArguments

from sloth_nb import notices
from sloth_nb.errors import SlothWarning, TrainingError
from sloth_nb.training import SFTConfig, SFTTrainer


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(notices, "_said", set())


def losses(trainer) -> list[float]:
    return [event.data["loss"] for event in trainer.run.events if event.kind == "step"]


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def test_it_learns_the_assistant_s_words_and_says_what_became_of_the_rows(make_trainer, capsys, learnt_text):
    trainer = make_trainer(max_steps=30, learning_rate=5e-3)
    assert "8" in capsys.readouterr().out
    assert trainer.train_dataset.column_names == ["input_ids", "labels"]
    assert learnt_text(trainer, 0) == "I am Moss.<|im_end|>"
    output = trainer.train()
    assert output.global_step == 30 and losses(trainer)[-1] < 0.5 * losses(trainer)[0]


def test_every_token_is_learnt_on_request(make_trainer, learnt_text):
    trainer = make_trainer(train_on="all")
    assert "What is your name?" in learnt_text(trainer, 0)


def test_the_loss_is_the_mean_over_the_trained_tokens_of_the_accumulated_batch(make_trainer):
    trainer = make_trainer(gradient_accumulation_steps=4, max_steps=1, learning_rate=1e-9)
    model = copy.deepcopy(trainer.model).eval()
    total, count = 0.0, 0
    for row in trainer.train_dataset:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
        trained = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += model(input_ids=ids, labels=labels).loss.item() * trained
        count += trained
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(total / count, rel=1e-6)


@pytest.mark.parametrize("packing", [False, True])
def test_logits_only_where_something_is_learnt_give_the_same_loss_and_gradients(make_trainer, packing):
    trainer = make_trainer(packing=packing, max_length=128)
    assert trainer._focuses
    batch = trainer.data_collator(
        [trainer.train_dataset[i] for i in range(min(3, len(trainer.train_dataset)))]
    )
    trainer.model.train()
    count = (batch["labels"][:, 1:] != -100).sum()
    trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count).backward()
    focused = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    loss = trainer.model(**batch, num_items_in_batch=count).loss
    loss.backward()
    assert trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count).item() == pytest.approx(
        loss.item(), rel=1e-6
    )
    for name, p in trainer.model.named_parameters():
        torch.testing.assert_close(focused[name], p.grad, rtol=1e-4, atol=1e-7)


def test_a_batch_without_a_trained_token_gives_zero_not_nan(make_trainer):
    trainer = make_trainer()
    batch = trainer.data_collator([trainer.train_dataset[0]])
    batch["labels"][:] = -100
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(5))
    assert loss.item() == 0.0 and loss.requires_grad


def test_it_trains_as_transformers_own_trainer_does(make_trainer, tiny_model):
    """Same rows, same order, same weights after four steps."""
    from transformers import Trainer

    ours = make_trainer(tiny_model(), max_steps=4, gradient_accumulation_steps=2)
    args = TrainingArguments(
        ours.args.output_dir,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        max_steps=4,
        learning_rate=1e-3,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
    )
    theirs = Trainer(tiny_model(), args, data_collator=ours.data_collator, train_dataset=ours.train_dataset)
    theirs.train()
    ours.train()
    assert losses(ours) == pytest.approx(
        [log["loss"] for log in theirs.state.log_history if "loss" in log], rel=1e-5
    )
    for name, value in weights(ours.model).items():
        torch.testing.assert_close(value, theirs.model.get_parameter(name).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("packing", [False, True])
def test_a_model_with_the_engine_in_it_has_the_same_losses(make_trainer, tiny_model, packing, monkeypatch):
    from sloth_nb.engine import batching
    from sloth_nb.models.install import install
    from sloth_nb.models.report import engine_of

    looked = []
    monkeypatch.setattr(batching, "_check_mask", lambda *given: looked.append(given))
    options = {"packing": packing, "max_length": 128, "max_steps": 3, "gradient_accumulation_steps": 2}
    adapter = {"peft_config": LoraConfig(r=4, target_modules="all-linear")}
    plain = make_trainer(tiny_model(), trainer=adapter, **options)
    plain.train()
    ours = make_trainer(tiny_model(), trainer=adapter, **options)
    report = install(ours.model)
    assert report.installed
    ours.train()
    assert not engine_of(ours.model).left_to_model, "the engine answered every call"
    assert not looked, "and nobody waited for the device to look at a mask"
    assert losses(ours) == pytest.approx(losses(plain), rel=1e-4)


def test_the_call_of_a_published_tutorial_runs(tiny_llama, shared_tokenizer, talks, tmp_path):
    dataset = Dataset.from_list(
        [{"text": shared_tokenizer.apply_chat_template(t["messages"], tokenize=False)} for t in talks]
    )
    with pytest.warns(SlothWarning) as said:
        trainer = SFTTrainer(
            model=tiny_llama,
            tokenizer=shared_tokenizer,
            train_dataset=dataset,
            dataset_text_field="text",
            max_seq_length=64,
            dataset_num_proc=2,
            packing=False,
            args=TrainingArguments(
                per_device_train_batch_size=2,
                gradient_accumulation_steps=2,
                warmup_steps=2,
                max_steps=3,
                learning_rate=2e-4,
                logging_steps=1,
                optim="adamw_8bit",
                weight_decay=0.01,
                lr_scheduler_type="linear",
                seed=3407,
                output_dir=str(tmp_path / "run"),
                report_to="none",
                use_cpu=True,
            ),
        )
    messages = [str(warning.message) for warning in said if issubclass(warning.category, SlothWarning)]
    for name in ("tokenizer", "dataset_text_field", "max_seq_length", "dataset_num_proc", "packing"):
        assert sum(f"SFTTrainer: {name} " in message for message in messages) == 1, name
    assert trainer.args.max_length == 64 and trainer.args.learning_rate == 2e-4
    assert trainer.train().global_step == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error", SlothWarning)
        SFTTrainer(
            tiny_llama,
            TrainingArguments(str(tmp_path), use_cpu=True),
            tokenizer=shared_tokenizer,
            train_dataset=dataset,
        )


def test_responses_can_be_masked_again_after_the_trainer_is_made(
    tiny_llama, shared_tokenizer, talks, tmp_path, learnt_text
):
    from sloth_nb.data import train_on_responses_only

    dataset = Dataset.from_list(
        [{"text": shared_tokenizer.apply_chat_template(t["messages"], tokenize=False)} for t in talks]
    )
    trainer = SFTTrainer(
        tiny_llama,
        SFTConfig(str(tmp_path), max_steps=1, use_cpu=True),
        processing_class=shared_tokenizer,
        train_dataset=dataset,
    )
    assert "your name" in learnt_text(trainer, 0)
    trainer = train_on_responses_only(
        trainer, instruction_part="<|im_start|>user\n", response_part="<|im_start|>assistant\n"
    )
    assert "your name" not in learnt_text(trainer, 0) and "I am Moss." in learnt_text(trainer, 0)
    assert trainer.train().global_step == 1


def test_a_collator_that_would_overwrite_the_mask_is_replaced_and_said(make_trainer, shared_tokenizer):
    with pytest.warns(SlothWarning, match="DataCollatorForLanguageModeling.*learn every token"):
        trainer = make_trainer(
            trainer={"data_collator": DataCollatorForLanguageModeling(shared_tokenizer, mlm=False)}
        )
    labels = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])["labels"]
    assert (labels == -100).any() and (labels != -100).any()
    assert trainer.train().global_step == 4
    own = DataCollatorForSeq2Seq(shared_tokenizer)
    assert make_trainer(trainer={"data_collator": own}).data_collator is own


class NamedAnew(DataCollatorForLanguageModeling):
    pass


class MakesItsOwn(DataCollatorForLanguageModeling):
    def torch_call(self, examples):
        return super().torch_call(examples)


@pytest.mark.parametrize(("form", "replaced"), [(NamedAnew, True), (MakesItsOwn, False)])
def test_a_collator_is_kept_or_replaced_aloud_alike_before_and_after_the_trainer_is_made(
    make_trainer, shared_tokenizer, form, replaced
):
    from sloth_nb.data import train_on_responses_only

    given = form(shared_tokenizer, mlm=False)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = make_trainer(trainer={"data_collator": given})
    assert (trainer.data_collator is not given) == replaced == _tells_of(form, said)
    trainer.data_collator = given
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train_on_responses_only(trainer)
    assert (trainer.data_collator is not given) == replaced == _tells_of(form, said)


def _tells_of(form, said) -> bool:
    return any(form.__name__ in str(warning.message) for warning in said)


def test_packed_rows_see_no_neighbours(make_trainer):
    """The packed loss is the token-weighted loss of the rows alone."""
    packed = make_trainer(
        packing=True, max_length=512, per_device_train_batch_size=1, max_steps=1, learning_rate=1e-9
    )
    assert "seq_lengths" in packed.train_dataset.column_names and len(packed.train_dataset) == 1
    alone = make_trainer(per_device_train_batch_size=8, max_steps=1, learning_rate=1e-9)
    packed.train()
    alone.train()
    assert losses(packed)[0] == pytest.approx(losses(alone)[0], rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"padding_free": True}, {"packing": True, "max_length": 64}])
def test_a_stream_trains_as_its_rows_in_a_list_do(make_trainer, talks, options, capsys):
    options = options | {"train_sampling_strategy": "sequential", "max_steps": 6}
    stream = make_trainer(
        trainer={"train_dataset": Dataset.from_list(talks).to_iterable_dataset()}, **options
    )
    assert "a stream of messages" in capsys.readouterr().out
    stream.train()
    whole = make_trainer(**options)
    whole.train()
    assert losses(stream) == pytest.approx(losses(whole), rel=1e-5)


def test_a_stream_without_max_steps_is_refused(make_trainer, talks):
    with pytest.raises(TrainingError, match="Set max_steps"):
        make_trainer(trainer={"train_dataset": Dataset.from_list(talks).to_iterable_dataset()}, max_steps=-1)


def test_an_unknown_argument_is_refused(make_trainer, talks):
    with pytest.raises(TrainingError, match="did you mean 'train_dataset'"):
        make_trainer(trainer={"train_datset": talks})
    with pytest.raises(TrainingError, match="needs a train_dataset"):
        make_trainer(trainer={"train_dataset": None})


def test_adapters_of_a_bf16_base_are_fp32_and_stay_so(make_trainer, tiny_llama):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    trainer = make_trainer(tiny_llama.bfloat16(), trainer={"peft_config": config})
    before = weights(trainer.model)
    assert before and all(value.dtype == torch.float32 for value in before.values())
    trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in weights(trainer.model).items())


def test_a_quantised_model_s_adapter_keeps_its_digits(make_trainer, tiny_llama):
    from peft import get_peft_model

    model = get_peft_model(tiny_llama, LoraConfig(r=4, target_modules=["q_proj"]))
    model.is_loaded_in_4bit = True  # what TRL looks at before it casts adapters to bf16
    before = weights(model)
    trainer = make_trainer(model)
    for name, value in weights(trainer.model).items():
        assert value.dtype == torch.float32 and torch.equal(value, before[name])


def test_trained_fp16_weights_become_fp32(make_trainer, tiny_llama):
    trainer = make_trainer(tiny_llama.half())
    assert {value.dtype for value in weights(trainer.model).values()} == {torch.float32}


def test_nothing_stays_patched_on_the_model(make_trainer, tiny_llama):
    trainer = make_trainer(tiny_llama)
    assert "forward" not in tiny_llama.__dict__
    assert trainer.args.dataset_kwargs is None and trainer.args.packing is False


def test_nothing_is_sent_anywhere(make_trainer, monkeypatch):
    def refuse(**_):
        raise AssertionError("telemetry")

    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", refuse)
    monkeypatch.delenv("CI", raising=False)
    make_trainer()


def test_a_frozen_model_is_refused(make_trainer, tiny_llama):
    tiny_llama.requires_grad_(False)
    with pytest.raises(TrainingError, match="nothing to train"):
        make_trainer(tiny_llama)


def test_with_several_gpus_one_is_used_and_the_way_to_all_is_named(tmp_path):
    from sloth_nb.training.setting_up import one_gpu

    args = SFTConfig(str(tmp_path), use_cpu=True)
    args._n_gpu = 2
    with pytest.warns(SlothWarning, match="notebook_launcher"):
        one_gpu(args)
    assert args.n_gpu == 1


def test_a_model_that_checkpoints_is_not_checkpointed_twice(make_trainer, tiny_model):
    model = tiny_model()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert not make_trainer(model, gradient_checkpointing=True).args.gradient_checkpointing
    assert model.is_gradient_checkpointing
    assert not make_trainer(model, gradient_checkpointing=False).model.is_gradient_checkpointing
    asked = make_trainer(tiny_model(), gradient_checkpointing="unsloth")
    asked.train()
    assert asked.model.is_gradient_checkpointing and not asked.args.gradient_checkpointing
    assert not make_trainer().model.is_gradient_checkpointing, "on a CPU memory is rarely what is short"


def test_dft_is_still_trl_s(make_trainer):
    trainer = make_trainer(loss_type="dft", max_steps=2)
    trainer.train()
    assert len(losses(trainer)) == 2


@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=4, target_modules=["q_proj"])])
def test_a_model_may_be_given_by_name(tiny_llama_path, talks, tmp_path, peft_config):
    trainer = SFTTrainer(
        str(tiny_llama_path),
        SFTConfig(str(tmp_path / "run"), max_steps=1, use_cpu=True, disable_tqdm=True),
        train_dataset=talks,
        peft_config=peft_config,
    )
    trained = weights(trainer.model)
    assert all("lora" in name for name in trained) == (peft_config is not None)
    trainer.train()
    assert trainer.run.events[0].data["model"] == "tiny-llama"


def test_held_out_rows_are_prepared_too_and_measured(make_trainer, talks):
    trainer = make_trainer(trainer={"eval_dataset": talks[:3]}, eval_strategy="steps", eval_steps=2)
    trainer.train()
    evaluations = [event for event in trainer.run.events if event.kind == "eval"]
    assert [event.step for event in evaluations] == [2, 4]
    again = trainer.evaluate(talks[:3])
    assert again["eval_loss"] == pytest.approx(evaluations[-1].data["eval_loss"], rel=1e-6)


def test_metrics_of_predictions_can_be_computed(make_trainer, talks):
    def measure(predictions):
        assert predictions.predictions.ndim == 3
        return {"rows": len(predictions.label_ids)}

    trainer = make_trainer(trainer={"eval_dataset": talks[:2], "compute_metrics": measure})
    assert trainer.evaluate()["eval_rows"] == 2


def test_arguments_may_be_given_in_trl_s_order(tiny_llama, shared_tokenizer, talks, tmp_path):
    trainer = SFTTrainer(
        tiny_llama,
        trl.SFTConfig(str(tmp_path), use_cpu=True, bf16=False),
        None,
        talks,
        None,
        shared_tokenizer,
    )
    assert isinstance(trainer.args, SFTConfig) and len(trainer.train_dataset) == 8


def test_the_8_bit_optimiser_does_not_wait_for_the_device(make_trainer):
    pytest.importorskip("bitsandbytes")
    from sloth_nb.engine.optim import AdamW

    args = make_trainer(max_steps=1).args
    args.optim = "adamw_8bit"
    assert SFTTrainer.get_optimizer_cls_and_kwargs(args)[0] is AdamW
