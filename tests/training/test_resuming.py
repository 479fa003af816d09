"""Going on from a checkpoint means going on with the run that wrote it, or saying why not."""

import json
import os
from pathlib import Path

import pytest
from peft import LoraConfig

from sloth_nb.errors import SlothWarning, TrainingError
from sloth_nb.training import RUN_FILE, EventLog, RunEvent, read_events
from sloth_nb.training.resuming import check_resumable, last_checkpoint


def checkpoint(folder, step, minute=0) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    state = path / "trainer_state.json"
    state.write_text(json.dumps({"global_step": step, "epoch": step / 4}))
    os.utime(state, (minute * 60, minute * 60))
    return path


def told(folder, *events) -> None:
    log = EventLog(folder / RUN_FILE)
    for kind, step, data in events:
        log.write(RunEvent(kind, step, data=data))


def saved(path) -> tuple:
    return "checkpoint", int(path.name.partition("-")[2]), {"path": str(path)}


def lora(**options) -> dict:
    return {"peft_config": LoraConfig(**{"r": 4, "target_modules": ["q_proj", "v_proj"]} | options)}


def test_the_last_run_goes_on_from_its_own_checkpoint_though_an_earlier_one_has_more_steps(
    make_trainer, talks
):
    make_trainer(trainer=lora(), max_steps=4, save_strategy="steps", save_steps=2).train()
    others = lora() | {"train_dataset": talks[:3]}
    second = make_trainer(trainer=others, max_steps=2, save_strategy="steps", save_steps=1)
    with pytest.warns(SlothWarning, match=r"checkpoints of an earlier run \(the last is checkpoint-4\)"):
        second.train()
    again = make_trainer(trainer=others, max_steps=3)
    again.train(resume_from_checkpoint=True)
    assert again.run.events[0].data["resumed_from"].endswith("checkpoint-2")


def test_checkpoints_that_the_limit_took_are_passed_over(tmp_path):
    older, kept = checkpoint(tmp_path, 20), checkpoint(tmp_path, 4)
    gone = tmp_path / "checkpoint-6"
    told(tmp_path, ("started", 0, {}), saved(older), ("started", 0, {}), saved(kept), saved(gone))
    assert last_checkpoint(True, str(tmp_path)) == kept


def test_a_run_that_went_on_is_one_with_the_run_it_went_on_from(tmp_path):
    third, sixth = checkpoint(tmp_path, 3), checkpoint(tmp_path, 6)
    run = [("started", 0, {}), saved(third), saved(sixth), ("started", 3, {"resumed_from": str(third)})]
    told(tmp_path, *run)
    assert last_checkpoint(True, str(tmp_path)) == third
    told(tmp_path, saved(checkpoint(tmp_path, 4)))
    assert last_checkpoint(True, str(tmp_path)).name == "checkpoint-4"


def test_a_folder_that_was_moved_keeps_its_run(tmp_path):
    before, after = tmp_path / "here" / "run", tmp_path / "there" / "run"
    before.mkdir(parents=True)
    other, own = checkpoint(before, 20), checkpoint(before, 6)
    told(before, ("started", 0, {}), saved(other), ("started", 0, {}), saved(own))
    told(before, ("started", 6, {"resumed_from": str(own)}))
    after.parent.mkdir()
    before.rename(after)
    assert last_checkpoint(True, str(after)) == after / "checkpoint-6"


def test_without_a_record_the_newest_is_taken_and_said(tmp_path):
    checkpoint(tmp_path, 20, minute=1)
    newest = checkpoint(tmp_path, 6, minute=2)
    with pytest.warns(
        SlothWarning, match="no record of which run.*checkpoint-6.*checkpoint-20 has more steps"
    ):
        assert last_checkpoint(True, str(tmp_path)) == newest


def test_a_last_run_without_a_checkpoint_goes_on_from_an_earlier_one_s_and_says_so(tmp_path):
    older = checkpoint(tmp_path, 20)
    told(tmp_path, ("started", 0, {}), saved(older), ("started", 0, {}), ("stopped", 2, {}))
    with pytest.warns(
        SlothWarning, match="left no checkpoint: going on from checkpoint-20, which an earlier run"
    ):
        assert last_checkpoint(True, str(tmp_path)) == older


@pytest.mark.parametrize(
    "options", [{"max_steps": 4}, {"max_steps": -1, "num_train_epochs": 1}], ids=["steps", "epochs"]
)
def test_a_finished_run_is_not_trained_further_unasked(make_trainer, options):
    trainer = make_trainer(save_strategy="steps", save_steps=4, **options)
    trainer.train()
    before = list(read_events(trainer.args.output_dir))
    with pytest.raises(
        TrainingError, match=r"This run is finished: checkpoint-4.*Raise (max_steps|num_train_epochs)"
    ):
        trainer.train(resume_from_checkpoint=True)
    assert list(read_events(trainer.args.output_dir)) == before and trainer.run.state == "finished"
    more = make_trainer(**options | {"max_steps": 5})
    assert more.train(resume_from_checkpoint=True).global_step == 5


@pytest.mark.parametrize(
    ("asked", "said"),
    [(True, "no checkpoint in"), ("checkpiont-4", "checkpiont-4 is no checkpoint")],
    ids=["none", "mistyped"],
)
def test_a_checkpoint_that_is_not_there_leaves_the_finished_run_as_it_was(make_trainer, asked, said):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    file = Path(trainer.args.output_dir) / RUN_FILE
    before = file.read_bytes()
    for go_on in (trainer.train, trainer.start):
        with pytest.raises(TrainingError, match=said):
            go_on(resume_from_checkpoint=asked)
    assert file.read_bytes() == before and trainer.run.state == "finished"


def test_a_run_one_step_before_its_end_is_not_called_finished(tmp_path, make_trainer):
    path = checkpoint(tmp_path, 1)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": 29_999, "epoch": 2.9999}))
    trainer = make_trainer(max_steps=-1, num_train_epochs=3)
    check_resumable(path, trainer.args, trainer.model)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": 30_000, "epoch": 3.0}))
    with pytest.raises(
        TrainingError, match=r"finished: checkpoint-1 is at step 30,000, and num_train_epochs is 3\."
    ):
        check_resumable(path, trainer.args, trainer.model)


@pytest.mark.parametrize(
    ("now", "why"),
    [
        (lora(r=8), "r is 4 there and 8 here"),
        (
            lora(target_modules=["q_proj"]),
            r"target_modules is \['q_proj', 'v_proj'\] there and \['q_proj'\] here",
        ),
        (None, "holds an adapter, and the model has none"),
    ],
    ids=["rank", "places", "none"],
)
def test_an_adapter_unlike_the_checkpoint_s_is_named(make_trainer, now, why):
    make_trainer(trainer=lora(), max_steps=1, save_strategy="steps", save_steps=1).train()
    with pytest.raises(TrainingError, match=f"checkpoint-1 can't be gone on from with this model: .*{why}"):
        make_trainer(trainer=now).train(resume_from_checkpoint=True)


def test_a_whole_model_s_checkpoint_is_not_gone_on_from_with_an_adapter(make_trainer):
    make_trainer(max_steps=1, save_strategy="steps", save_steps=1).train()
    with pytest.raises(TrainingError, match="holds a whole model, and this one has an adapter"):
        make_trainer(trainer=lora()).start(resume_from_checkpoint=True)
