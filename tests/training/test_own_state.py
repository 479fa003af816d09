"""A run in the background goes on, whatever other cells build meanwhile."""

import threading

import pytest
import transformers
from accelerate.state import AcceleratorState, GradientState
from transformers import TrainerCallback

from sloth_nb.training import SFTConfig


class Meanwhile(TrainerCallback):
    """Calls a function in another thread at the end of each step, and waits for it."""

    def __init__(self, function):
        self.function = function

    def on_step_end(self, args, state, control, **kwargs):
        thread = threading.Thread(target=self.function)
        thread.start()
        thread.join()


@pytest.mark.parametrize(
    "arguments", [SFTConfig, transformers.TrainingArguments], ids=lambda cls: cls.__name__
)
def test_arguments_built_while_a_run_trains_leave_it_alone(make_trainer, talks, tmp_path, arguments):
    trainer = make_trainer(
        trainer={"eval_dataset": talks[:2]},
        eval_strategy="steps",
        eval_steps=2,
        gradient_accumulation_steps=2,
    )
    trainer.add_callback(Meanwhile(lambda: arguments(output_dir=str(tmp_path / "next"), use_cpu=True)))
    assert trainer.start().wait() == "finished"
    assert trainer.run.history.step == 4


def test_arguments_built_between_a_trainer_and_its_training_leave_it_alone(make_trainer, tmp_path):
    trainer = make_trainer(max_steps=2)
    SFTConfig(output_dir=str(tmp_path / "next"), use_cpu=True)
    trainer.train()
    assert trainer.run.state == "finished"


def test_arguments_built_at_the_very_moment_of_preparing_leave_it_alone(make_trainer, tmp_path, monkeypatch):
    trainer = make_trainer(max_steps=2)
    prepared = []
    inner = type(trainer.accelerator).prepare_optimizer

    def prepare_optimizer(*args, **kwargs):
        other = threading.Thread(target=transformers.TrainingArguments, args=(str(tmp_path / "next"),))
        other.start()
        other.join()
        prepared.append(True)
        return inner(*args, **kwargs)

    monkeypatch.setattr(type(trainer.accelerator), "prepare_optimizer", prepare_optimizer)
    trainer.train()
    assert prepared and trainer.run.state == "finished"


def test_another_trainer_trains_while_a_run_does_and_neither_waits_for_the_other_s_accumulation(
    make_trainer, tiny_model, tmp_path
):
    alone = make_trainer(
        tiny_model(seed=3), gradient_accumulation_steps=2, output_dir=str(tmp_path / "alone")
    )
    alone.train()
    outer = make_trainer(gradient_accumulation_steps=2)
    inner = make_trainer(
        tiny_model(seed=3), gradient_accumulation_steps=2, output_dir=str(tmp_path / "inner")
    )
    outer.add_callback(Meanwhile(lambda: inner.run.over or inner.train()))
    outer.train()
    assert outer.run.state == inner.run.state == "finished"
    assert inner.run.history.latest("loss") == alone.run.history.latest("loss")
    assert outer.accelerator.gradient_state.__dict__ is not inner.accelerator.gradient_state.__dict__
    assert outer.optimizer.gradient_state.__dict__ is outer.accelerator.gradient_state.__dict__


def test_the_process_keeps_a_state_of_its_own(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    assert AcceleratorState._shared_state is not trainer.accelerator.state.__dict__
    assert AcceleratorState().device == trainer.accelerator.device, "and it can be asked for"
    assert GradientState._shared_state is not trainer.accelerator.gradient_state.__dict__
