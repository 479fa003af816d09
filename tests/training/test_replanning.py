"""A run that was planned: refused before it begins, told in its events, planned again once when memory runs out."""

import pytest
import torch

from sloth_nb.engine.causal import CausalEngine
from sloth_nb.errors import HardwareError
from sloth_nb.models import planning
from sloth_nb.models.planning import auto_plan_of
from sloth_nb.models.report import report_of


def losses(trainer):
    return [event.data["loss"] for event in trainer.run.events if event.kind == "step"]


@pytest.fixture
def planned(make_trainer):
    def make(**config):
        return make_trainer(gradient_checkpointing="auto", **config)

    return make


@pytest.fixture
def runs_out(monkeypatch):
    """Makes the calls of these numbers run out of memory, as CUDA's allocator says it."""

    def at(*calls):
        done, whole = [], CausalEngine.causal_forward

        def forward(self, *args, **kwargs):
            done.append(1)
            if len(done) in calls:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it.")
            return whole(self, *args, **kwargs)

        monkeypatch.setattr(CausalEngine, "causal_forward", forward)
        return done

    return at


def test_a_run_says_what_was_planned(planned):
    trainer = planned()
    trainer.train()
    started = trainer.run.events[0].data
    assert started["plan"].startswith("2 × keep; 2 × ")
    assert "planned for" in str(report_of(trainer.model)) and "GB predicted" in str(report_of(trainer.model))
    longest = max(len(row["input_ids"]) for row in trainer.train_dataset)
    assert auto_plan_of(trainer.model).largest.work.length == longest


def test_a_run_without_a_plan_says_nothing_of_one(make_trainer):
    trainer = make_trainer()
    trainer.train()
    assert "plan" not in trainer.run.events[0].data


def test_nothing_is_trained_when_nothing_fits(planned, monkeypatch):
    monkeypatch.setattr(planning, "free_ram", lambda: 1 << 20)
    trainer = planned(max_length=512)
    with pytest.raises(HardwareError, match="does not fit"):
        trainer.train()
    assert [event.kind for event in trainer.run.events] == ["failed"]
    assert "does not fit" in trainer.run.events[0].data["message"]


def test_running_out_of_memory_once_repeats_the_step_with_a_tighter_plan(planned, runs_out):
    plain = planned()
    plain.train()
    done = runs_out(1)
    trainer = planned()
    trainer.train()
    warning = next(event for event in trainer.run.events if event.kind == "warning")
    assert "too optimistic: CUDA out of memory. Tried to allocate 2.00 GiB" in warning.data["message"]
    assert "85 % of the room" in warning.data["message"]
    assert losses(trainer) == losses(plain) and len(done) == 5
    assert trainer.run.events[-1].data["tokens"] == plain.run.events[-1].data["tokens"]


def test_running_out_of_memory_twice_ends_the_run_with_what_to_do(planned, runs_out):
    runs_out(1, 2)
    trainer = planned()
    with pytest.raises(HardwareError, match="Lower per_device_train_batch_size"):
        trainer.train()


def test_a_micro_step_that_is_not_the_first_of_its_step_is_not_repeated(planned, runs_out):
    runs_out(2)
    trainer = planned(gradient_accumulation_steps=2)
    with pytest.raises(HardwareError, match="Out of memory at step 1"):
        trainer.train()


def test_a_run_that_was_not_planned_is_not_planned_again(make_trainer, runs_out):
    runs_out(1)
    trainer = make_trainer(gradient_checkpointing="sloth")
    with pytest.raises(HardwareError, match='gradient_checkpointing="auto"'):
        trainer.train()
