"""A run is read back from its file: past, going on in another process, or cut off."""

import subprocess
import sys
import textwrap
import time

import pytest

from sloth_nb.errors import TrainingError
from sloth_nb.training import RUN_FILE, EventLog, Run, RunEvent, read_events
from sloth_nb.training.follow import process_mark


def write(folder, *events) -> None:
    log = EventLog(folder / RUN_FILE)
    for event in events:
        log.write(event)


def until(true, seconds=60):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def test_a_past_run_comes_back_whole(tmp_path):
    write(
        tmp_path,
        RunEvent("started", 0, data={"max_steps": 2}),
        RunEvent("step", 1, data={"loss": 2.0}),
        RunEvent("finished", 2),
    )
    run = Run.open(tmp_path)
    assert run.state == "finished" and run.history.latest("loss") == 2.0 and len(run.events) == 3
    assert run.wait() == "finished" and run.result() is None
    assert Run.open(tmp_path / RUN_FILE).state == "finished"


def test_a_failed_run_says_why_again(tmp_path):
    write(tmp_path, RunEvent("started", 0), RunEvent("failed", 1, data={"message": "the disk is full"}))
    run = Run.open(tmp_path)
    assert run.state == "failed"
    with pytest.raises(TrainingError, match="the disk is full"):
        run.wait()


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(TrainingError, match="no run in"):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    "line", ['{"messages": []}', "[1, 2]", "3", "{", "\u00ff", '{"event": "step", "step": 1}']
)
def test_a_file_that_holds_no_run_is_named(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(line + "\n", encoding="latin-1")
    with pytest.raises(TrainingError, match=r"rows\.jsonl doesn't hold the events of a run.*output_dir"):
        Run.open(tmp_path / "rows.jsonl")
    with pytest.raises(TrainingError, match=r"rows\.jsonl doesn't hold the events of a run"):
        list(read_events(tmp_path / "rows.jsonl"))


def test_a_run_of_this_process_is_the_same_object(make_trainer):
    trainer = make_trainer()
    trainer.train()
    assert Run.open(trainer.args.output_dir) is trainer.run


def test_a_run_of_another_process_is_followed_line_by_line_and_not_stopped_from_here(tmp_path):
    program = """
        import sys
        from sloth_nb.training.events import EventLog, RunEvent
        from sloth_nb.training.follow import process_mark
        log = EventLog(sys.argv[1])
        log.write(RunEvent("started", 0, data={"max_steps": 3, **process_mark()}))
        print("ready", flush=True)
        for number, _ in enumerate(sys.stdin, start=1):
            log.write(RunEvent("step", number, data={"loss": 1 / number}))
        log.write(RunEvent("finished", 3))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / RUN_FILE)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**__import__("os").environ, "PYTHONPATH": "."},
    )
    try:
        assert process.stdout.readline() == "ready\n"
        run, heard = Run.open(tmp_path), []
        run.listen(lambda event: heard.append(event.step))
        assert run.state == "running" and run.wait(timeout=0.1) == "running"
        with pytest.raises(TrainingError, match="another process"):
            run.stop()
        process.stdin.write("go\n")
        process.stdin.flush()
        until(lambda: heard == [1])
        process.stdin.write("go\n")
        process.stdin.close()
        assert run.wait(timeout=60) == "finished"
        assert heard == [1, 2, 3] and run.history.latest("loss") == 0.5
    finally:
        process.kill()
        process.wait()


def test_a_run_whose_process_is_gone_is_told_from_one_that_goes_on(tmp_path):
    gone = process_mark() | {"process_started": 1.0}  # another process had this number before
    write(tmp_path, RunEvent("started", 0, data={"max_steps": 9, **gone}), RunEvent("step", 4))
    run = Run.open(tmp_path)
    assert run.state == "failed"
    with pytest.raises(TrainingError, match="resume_from_checkpoint"):
        run.wait()


def test_a_run_of_another_machine_is_believed(tmp_path):
    elsewhere = process_mark() | {"host": "elsewhere", "process_started": 1.0}
    write(tmp_path, RunEvent("started", 0, data=elsewhere))
    assert Run.open(tmp_path).state == "running"


def test_a_line_half_written_is_read_when_it_is_whole(tmp_path):
    write(tmp_path, RunEvent("started", 0, data=process_mark()))
    run = Run.open(tmp_path)
    line = RunEvent("step", 1, data={"loss": 1.0}).to_json() + "\n"
    with (tmp_path / RUN_FILE).open("a") as file:
        file.write(line[:20])
        file.flush()
        run._look()
        assert len(run.events) == 1
        file.write(line[20:])
    run._look()
    assert len(run.events) == 2
    assert run.history.latest("loss") == 1.0
