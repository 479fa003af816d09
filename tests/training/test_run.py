"""A run is watched, waited for and stopped, in the background and in a blocking cell."""

import signal
import threading
import time

import pytest
from transformers import TrainerCallback

from sloth_nb.errors import TrainingError
from sloth_nb.training import RUN_FILE, Run, RunEvent, read_events
from sloth_nb.training.run import stops_on_interrupt


class At(TrainerCallback):
    """Calls a function at the end of one step."""

    def __init__(self, step, function):
        self.step, self.function = step, function

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.function()


def kinds(run) -> list[str]:
    return [event.kind for event in run.events]


def test_a_run_writes_what_happened_beside_its_checkpoints(make_trainer, talks):
    trainer = make_trainer(
        trainer={"eval_dataset": talks[:2]},
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=2,
    )
    trainer.train()
    run = trainer.run
    assert kinds(run) == [
        "started",
        "step",
        "step",
        "checkpoint",
        "step",
        "step",
        "eval",
        "checkpoint",
        "finished",
    ]
    assert run.state == "finished" and run.result().global_step == 4
    started, last_step, end = run.events[0].data, run.events[5].data, run.events[-1].data
    assert started["max_steps"] == 4 and started["batch_size"] == 2 and started["trainable_parameters"] > 0
    assert "rows" in started["report"]
    assert last_step["tokens"] == end["tokens"] > 0 and last_step["tokens_per_second"] > 0
    assert last_step["memory_bytes"] > 50e6 and {"loss", "grad_norm", "learning_rate", "epoch"} <= set(
        last_step
    )
    assert [(e.kind, e.step, e.data) for e in read_events(trainer.args.output_dir)] == [
        (e.kind, e.step, e.data) for e in run.events
    ]
    assert run.history.names and run.history.latest("eval_loss") == run.events[6].data["eval_loss"]


def test_tokens_are_counted_without_padding(make_trainer):
    trainer = make_trainer(num_train_epochs=1, max_steps=-1, per_device_train_batch_size=4)
    trainer.train()
    assert trainer.run.events[-1].data["tokens"] == sum(
        len(row["input_ids"]) for row in trainer.train_dataset
    )


def test_training_in_the_background_leaves_the_caller_free(make_trainer):
    trainer = make_trainer()
    threads, heard = set(), []
    trainer.run.listen(lambda event: (heard.append(event.kind), threads.add(threading.current_thread().name)))
    run = trainer.start()
    assert run is trainer.run and run.wait() == "finished"
    assert run.result().global_step == 4 and heard == kinds(run)
    assert threads == {"sloth-nb-train"}


def test_stopping_acts_within_one_step_and_saves(make_trainer):
    trainer = make_trainer(max_steps=1000)
    trainer.add_callback(At(3, lambda: trainer.run.stop()))
    run = trainer.start()
    assert run.wait() == "stopped"
    assert trainer.state.global_step in (3, 4)
    assert run.events[-1].data["saved"] == run.events[-2].data["path"]
    assert run.result().global_step == trainer.state.global_step


def test_stopping_without_saving_breaks_off_inside_an_accumulated_batch(make_trainer):
    trainer = make_trainer(max_steps=1000, gradient_accumulation_steps=4)
    seen = []

    class Inside(TrainerCallback):
        def on_substep_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)
            if state.global_step == 2:
                trainer.run.stop(save=False)

    trainer.callback_handler.callbacks.insert(0, Inside())
    trainer.train()
    assert trainer.run.state == "stopped" and trainer.run.events[-1].data["saved"] is None
    assert seen.count(2) == 1 and "checkpoint" not in kinds(trainer.run)


@pytest.mark.parametrize("save", [True, False])
def test_stopping_cuts_a_long_evaluation_off(make_trainer, talks, save):
    measured = []

    class Inside(TrainerCallback):
        def on_prediction_step(self, args, state, control, **kwargs):
            measured.append(state.global_step)
            if len(measured) == 2:
                trainer.run.stop(save)

    trainer = make_trainer(
        trainer={"eval_dataset": talks},
        max_steps=100,
        eval_strategy="steps",
        eval_steps=3,
        per_device_eval_batch_size=1,
        metric_for_best_model="eval_loss",
    )
    trainer.callback_handler.callbacks.insert(0, Inside())
    trainer.train()
    assert measured == [3, 3] and trainer.run.state == "stopped" and "eval" not in kinds(trainer.run)
    assert (trainer.run.events[-1].data["saved"] is not None) == save
    assert trainer.evaluate()["eval_loss"] > 0, "once the run is over, evaluations are whole again"


def test_an_epoch_cut_short_is_neither_evaluated_nor_saved_twice(make_trainer, talks):
    trainer = make_trainer(
        trainer={"eval_dataset": talks[:2]},
        max_steps=-1,
        num_train_epochs=50,
        eval_strategy="epoch",
        save_strategy="epoch",
    )
    trainer.add_callback(At(6, lambda: trainer.run.stop()))
    trainer.train()
    assert kinds(trainer.run)[-2:] == ["checkpoint", "stopped"]
    assert kinds(trainer.run).count("checkpoint") == 2 and kinds(trainer.run).count("eval") == 1


def test_the_first_interrupt_stops_and_saves_and_the_second_interrupts(make_trainer):
    before = signal.getsignal(signal.SIGINT)
    trainer = make_trainer(max_steps=1000)
    trainer.add_callback(At(2, lambda: signal.raise_signal(signal.SIGINT)))
    output = trainer.train()
    assert output.global_step in (2, 3) and trainer.run.state == "stopped"
    assert trainer.run.events[-1].data["reason"] == "interrupted" and trainer.run.events[-1].data["saved"]
    assert signal.getsignal(signal.SIGINT) is before

    impatient = make_trainer(max_steps=1000)

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    impatient.add_callback(At(2, twice))
    with pytest.raises(KeyboardInterrupt):
        impatient.train()
    assert impatient.run.state == "stopped" and impatient.run.events[-1].data["saved"] is None
    assert signal.getsignal(signal.SIGINT) is before


def test_an_interrupt_while_waiting_stops_the_background_run_gracefully(make_trainer):
    trainer = make_trainer(max_steps=100_000)
    run = trainer.start()
    timer = threading.Timer(
        0.5, lambda: signal.raise_signal(signal.SIGINT)
    )  # the handler runs in the main thread
    timer.start()
    assert run.wait() == "stopped"
    assert run.events[-1].data["reason"] == "interrupted" and run.events[-1].data["saved"]


def test_interrupts_are_left_alone_outside_the_main_thread():
    before, failures = signal.getsignal(signal.SIGINT), []

    def work():
        try:
            with stops_on_interrupt(Run("nowhere")):
                pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failures and signal.getsignal(signal.SIGINT) is before


def test_what_the_training_raises_reaches_whoever_waits(make_trainer):
    def fail():
        raise RuntimeError("a callback of the user failed")

    trainer = make_trainer()
    trainer.add_callback(At(2, fail))
    run = trainer.start()
    with pytest.raises(RuntimeError, match="of the user failed"):
        run.wait()
    assert run.state == "failed" and kinds(run)[-1] == "failed"
    with pytest.raises(RuntimeError, match="of the user failed"):
        run.result()


def test_running_out_of_memory_says_what_to_lower(make_trainer):
    import torch

    from sloth_nb.errors import HardwareError

    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    trainer = make_trainer()
    trainer.add_callback(At(2, fail))
    with pytest.raises(HardwareError, match="per_device_train_batch_size"):
        trainer.train()


def test_a_run_can_be_started_again_but_not_twice_at_once(make_trainer):
    trainer = make_trainer(max_steps=100_000)
    run = trainer.start()
    with pytest.raises(TrainingError, match="already training"):
        trainer.train()
    run.stop(save=False)
    run.wait()
    trainer.args.max_steps = 2
    assert trainer.start().wait() == "finished"
    assert kinds(run).count("started") == 2 and run.history.step == 2


def test_a_second_run_into_the_folder_of_one_that_trains_is_refused(make_trainer):
    refused = []

    def begin_another():
        try:
            make_trainer().train()
        except TrainingError as error:
            refused.append(str(error))

    def in_another_cell():
        thread = threading.Thread(target=begin_another)
        thread.start()
        thread.join()

    trainer = make_trainer(max_steps=2)
    trainer.add_callback(At(1, in_another_cell))
    trainer.add_callback(At(2, in_another_cell))
    trainer.train()
    assert len(refused) == 2 and "Another run is training into" in refused[0] and ".stop()" in refused[0]
    assert make_trainer(max_steps=1).train().global_step == 1, "once it is over the folder is free"


def test_waiting_for_a_run_that_has_not_begun_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="not begun"):
        Run(tmp_path / RUN_FILE).wait()


def test_a_listener_that_fails_is_dropped_and_the_run_goes_on(make_trainer):
    trainer = make_trainer()

    def broken(event):
        raise ValueError("a broken view")

    trainer.run.listen(broken)
    trainer.train()
    assert trainer.run.state == "finished"
    assert sum("a broken view" in e.data.get("message", "") for e in trainer.run.events) == 1


def test_listening_late_replays_the_past_and_can_be_ended(tmp_path):
    run, heard = Run(tmp_path / RUN_FILE), []
    run.begin()
    run.emit(RunEvent("started", 0))
    end = run.listen(lambda event: heard.append(event.kind), replay=True)
    run.emit(RunEvent("step", 1))
    end()
    run.emit(RunEvent("step", 2))
    assert heard == ["started", "step"]


def test_events_that_can_t_be_written_don_t_end_the_run(tmp_path):
    (tmp_path / RUN_FILE).mkdir()  # a folder where the file should be
    run = Run(tmp_path / RUN_FILE)
    run.begin()
    for number in range(3):
        run.emit(RunEvent("step", number))
    assert kinds(run).count("step") == 3 and kinds(run).count("warning") == 1


def test_a_loss_that_is_not_a_number_is_shown_and_said(make_trainer):
    import torch

    trainer = make_trainer()
    with torch.no_grad():
        trainer.model.model.norm.weight.fill_(float("nan"))
    trainer.train()
    assert any("The loss at step 1 is nan" in e.data.get("message", "") for e in trainer.run.events)
    assert trainer.run.history.latest("loss") != trainer.run.history.latest("loss")


def test_a_model_in_training_answers_only_when_the_run_is_over(make_trainer):
    from sloth_nb import generate

    trainer = make_trainer(max_steps=1000)
    run = trainer.start()
    tokenizer = trainer.processing_class
    while not any(event.kind == "step" for event in run.events):
        time.sleep(0.01)
    with pytest.raises(TrainingError, match="can't answer meanwhile"):
        generate(trainer.model, tokenizer, "Who are you?", max_new_tokens=2)
    run.stop(save=False)
    run.wait()
    assert isinstance(generate(trainer.model, tokenizer, "Who are you?", max_new_tokens=2), str)
