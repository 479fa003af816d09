"""Checkpoints are whole or not there, and going on from one gives the losses of an uninterrupted run."""

import json
import sys
from pathlib import Path

import pytest
from peft import LoraConfig
from transformers import TrainerCallback

from sloth_nb.errors import TrainingError
from sloth_nb.training import RUN_FILE
from sloth_nb.training.checkpoints import checkpoints, delete_oldest, refuses_to_save, written_whole
from sloth_nb.training.resuming import last_checkpoint

SIX = {"max_steps": 6, "gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine", "warmup_steps": 2}


def losses(trainer) -> dict[int, float]:
    return {event.step: event.data["loss"] for event in trainer.run.events if event.kind == "step"}


def lora(dropout=0.0) -> dict:
    return {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=dropout)}


@pytest.mark.parametrize("adapter", [lora(), lora(dropout=0.2), None], ids=["lora", "lora-dropout", "full"])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(make_trainer, tmp_path, adapter):
    whole = make_trainer(trainer=adapter, output_dir=str(tmp_path / "whole"), **SIX)
    whole.train()
    cut = make_trainer(trainer=adapter, save_strategy="steps", save_steps=3, **SIX)
    cut.add_callback(_StopAt(4, cut, save=False))
    cut.train()
    again = make_trainer(trainer=adapter, **SIX)
    again.train(resume_from_checkpoint=True)
    assert again.run.events[0].data["resumed_from"].endswith("checkpoint-3") and again.run.events[0].step == 3
    assert losses(again) == {step: loss for step, loss in losses(whole).items() if step > 3}
    assert again.run.events[-1].data["tokens"] == whole.run.events[-1].data["tokens"]


def test_stopping_with_a_checkpoint_and_going_on_changes_nothing(make_trainer, tmp_path):
    whole = make_trainer(trainer=lora(), output_dir=str(tmp_path / "whole"), **SIX)
    whole.train()
    trainer = make_trainer(trainer=lora(), **SIX)
    stopper = _StopAt(2, trainer, save=True)
    trainer.add_callback(stopper)
    run = trainer.start()
    assert run.wait() == "stopped"
    trainer.remove_callback(stopper)
    trainer.train(resume_from_checkpoint=True)
    assert run.state == "finished" and losses(trainer) == losses(whole)


class _StopAt(TrainerCallback):
    def __init__(self, step, trainer, save):
        self.step, self.trainer, self.save = step, trainer, save

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step - 1:
            self.trainer.run.stop(self.save)


def test_a_bf16_model_trained_whole_resumes_too(make_trainer, tiny_model, tmp_path):
    whole = make_trainer(tiny_model().bfloat16(), output_dir=str(tmp_path / "whole"), **SIX)
    whole.train()
    cut = make_trainer(tiny_model().bfloat16(), save_strategy="steps", save_steps=3, **SIX)
    cut.add_callback(_StopAt(4, cut, save=False))
    cut.train()
    again = make_trainer(tiny_model(seed=5).bfloat16(), **SIX)
    again.train(resume_from_checkpoint=True)
    assert losses(again) == {step: loss for step, loss in losses(whole).items() if step > 3}


def test_older_checkpoints_go_by_the_limit_and_nothing_is_left_aside(make_trainer):
    trainer = make_trainer(max_steps=4, save_strategy="steps", save_steps=1, save_total_limit=2)
    trainer.train()
    folder = Path(trainer.args.output_dir)
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-3", "checkpoint-4"]
    assert not list(folder.glob(".saving*"))


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [
        (None, None, {2, 4, 20, 30}),
        (1, None, {4}),
        (2, None, {4, 30}),
        (2, 2, {2, 4}),
        (1, 2, {2, 4}),
        (1, 4, {4}),
        (4, None, {2, 4, 20, 30}),
        (5, None, {2, 4, 20, 30}),
        (9, 2, {2, 4, 20, 30}),
    ],
)
def test_the_limit_never_takes_the_one_just_written_nor_the_best(tmp_path, limit, best, left):
    """All of one second, so that their times tell nothing; 20 and 30 are of an earlier run."""
    for step in (20, 30, 2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    delete_oldest(tmp_path, limit, "checkpoint-4", best and str(tmp_path / f"checkpoint-{best}"))
    assert {path.name for path in tmp_path.iterdir()} == {f"checkpoint-{step}" for step in left}


def test_the_best_checkpoint_is_named_by_its_final_place(make_trainer, talks):
    trainer = make_trainer(
        trainer={"eval_dataset": talks[:3]},
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        load_best_model_at_end=True,
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        save_total_limit=1,
    )
    trainer.train()
    folder = Path(trainer.args.output_dir)
    best = Path(trainer.state.best_model_checkpoint)
    assert best.parent == folder and best.is_dir()
    state = json.loads((checkpoints(folder)[-1] / "trainer_state.json").read_text())
    assert Path(state["best_model_checkpoint"]).parent == folder


@pytest.mark.skipif(sys.platform == "win32", reason="sets a limit that Windows doesn't have")
def test_a_full_disk_leaves_the_previous_checkpoint_whole_and_the_run_can_go_on(make_trainer, tmp_path):
    import resource

    class DiskFills(TrainerCallback):
        """From step 3 on no file may grow beyond 100 kB: what a full disk does, without filling one."""

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    whole = make_trainer(output_dir=str(tmp_path / "whole"), **SIX)
    whole.train()
    trainer = make_trainer(save_strategy="steps", save_steps=2, **SIX)
    filling = DiskFills()
    trainer.add_callback(filling)
    try:
        with pytest.raises(
            TrainingError, match=r"checkpoint of step 4 could not be written.*\n.*whole: checkpoint-2\."
        ):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder = Path(trainer.args.output_dir)
    assert [path.name for path in checkpoints(folder)] == ["checkpoint-2"]
    assert not list(folder.glob("*saving*")) and not (folder / "checkpoint-4").exists()
    assert (
        trainer.run.events[-1].kind == "failed"
        and "could not be written" in trainer.run.events[-1].data["message"]
    )
    trainer.remove_callback(filling)
    trainer.train(resume_from_checkpoint=True)
    assert losses(trainer) == losses(whole)


def test_a_checkpoint_cut_off_while_saving_is_not_gone_on_from(tmp_path):
    for step, state in ((1, "{}"), (10, "{}"), (20, '{"glo'), (30, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    (tmp_path / "checkpoint-x").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-10"]
    assert last_checkpoint(True, str(tmp_path)).name == "checkpoint-10"
    with pytest.raises(TrainingError, match=r"checkpoint-30 is no checkpoint.*checkpoint-1, checkpoint-10"):
        last_checkpoint(tmp_path / "checkpoint-30", str(tmp_path))


def test_going_on_from_nothing_is_one_clear_sentence(make_trainer):
    trainer = make_trainer()
    with pytest.raises(TrainingError, match="no checkpoint in"):
        trainer.train(resume_from_checkpoint=True)
    assert trainer.run.state == "waiting" and not (Path(trainer.args.output_dir) / RUN_FILE).exists()
    assert trainer.train().global_step == 4, "and the trainer is usable"


def test_what_is_written_takes_its_place_only_when_all_went_well(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    with pytest.raises(RuntimeError), written_whole(tmp_path, "a") as aside:
        (aside / "a").mkdir()
        raise RuntimeError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["old"]
    with written_whole(tmp_path, "a") as aside:
        (aside / "a").mkdir()
        (aside / "a" / "new").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "the disk is full"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (
            RuntimeError(
                "[enforce fail at inline_container.cc:820] . PytorchStreamWriter failed writing file data/1"
            ),
            "writing broke off",
        ),
        (
            Exception("Error while serializing: I/O error: No space left on device (os error 28)"),
            "the disk is full",
        ),
    ],
)
def test_trouble_of_the_disk_is_known_in_every_library_s_words(tmp_path, error, reason):
    with pytest.raises(TrainingError, match=reason), refuses_to_save(tmp_path, 7):
        raise error


def test_other_errors_while_saving_pass_unchanged(tmp_path):
    with pytest.raises(RuntimeError, match="shared tensors"), refuses_to_save(tmp_path, 7):
        raise RuntimeError("Some shared tensors could not be saved")
