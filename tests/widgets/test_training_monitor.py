"""TrainingMonitor, by real runs whose events are emitted here instead of by a trainer."""

import json
import math
import re
import threading
import time

import pytest
from sloth_nb_widgets import TrainingMonitor
from sloth_nb_widgets import training_view as view

from sloth_nb.errors import TrainingError
from sloth_nb.training.events import RUN_FILE, RunEvent
from sloth_nb.training.run import Run

LIMIT = 60_000


def started(run, steps=100, **data):
    run.begin()
    run.emit(RunEvent("started", 0, data={"max_steps": steps, "model": "models/SmolLM2", **data}))


def step(run, n, **data):
    numbers = {
        "loss": 2 / (1 + n / 50) + 0.8 + 0.1 * math.sin(n * 7.3),
        "learning_rate": 2e-4 * (1 - n / 200_000),
        "grad_norm": 1 + 0.3 * math.sin(n * 3.1),
        "tokens_per_second": 1200 + 40 * math.sin(n * 1.7),
        "memory_bytes": 2.1 * 2**30,
    }
    run.emit(RunEvent("step", n, data=numbers | data))


def evaluation(run, n):
    run.emit(RunEvent("eval", n, data={"eval_loss": 2 / (1 + n / 50) + 0.9}))


def finish(run, n, state="finished", **data):
    run.emit(RunEvent(state, n, data=data))
    run.end(state)


def wait_until(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / RUN_FILE)


def shown(front_end):
    """The two places of a monitor: where the widget is, and the copy beside it."""
    live, snapshot = front_end.displays.values()
    return live, snapshot


def test_it_follows_a_run_from_waiting_to_its_end(front_end, run):
    monitor = TrainingMonitor(run)
    monitor._ipython_display_()
    assert "waiting" in monitor._title.value
    started(run)
    for n in range(1, 101):
        step(run, n)
        if n % 25 == 0:
            evaluation(run, n)
    monitor._pulse.now()
    assert "● training" in monitor._title.value and "SmolLM2" in monitor._title.value
    assert 'aria-valuenow="100"' in monitor._picture.value
    assert "held out" in monitor._picture.value
    finish(run, 100)
    live, snapshot = shown(front_end)
    assert "✔ finished" in live[-1]["text/html"]
    assert set(snapshot[-1]) == {"application/vnd.plotly.v1+json", "image/svg+xml", "text/plain"}
    assert not any("<script" in str(part).lower() for part in live[-1].values())


def test_a_saved_notebook_reads_without_styles_and_kernel(front_end, run):
    monitor = TrainingMonitor(run)
    monitor._ipython_display_()
    started(run)
    for n in range(1, 41):
        step(run, n)
        if n % 10 == 0:
            evaluation(run, n)
    finish(run, 40)
    live, snapshot = shown(front_end)
    bare = re.sub(r"<style>.*?</style>|<[^>]+>", " ", live[-1]["text/html"])
    words = " ".join(bare.split())
    assert "40 of 100 steps" in words and "held-out loss" in words and "Loss by step" in words
    assert snapshot[-1]["image/svg+xml"].startswith("<svg")
    assert snapshot[-1]["text/plain"].startswith("Training curves: loss")


def test_a_hundred_thousand_steps_stay_small_and_slow(front_end, run, monkeypatch):
    monkeypatch.setattr(run.__class__, "emit", run.__class__._deliver)  # the file is not what is tested here
    monitor = TrainingMonitor(run)
    monitor._ipython_display_()
    begun = time.monotonic()
    started(run, 100_000, predicted_bytes=2.3 * 2**30)
    for n in range(1, 100_001):
        step(run, n)
        if n % 1000 == 0:
            evaluation(run, n)
    monitor._pulse.now()
    took = time.monotonic() - begun
    pictures = [
        m for m in front_end.messages
        if m["comm"] == monitor._picture.comm.comm_id and m["type"] == "comm_msg"
    ]  # fmt: skip
    assert 0 < len(pictures) <= 2 + took / monitor.seconds_between_updates
    finish(run, 100_000)
    monitor.flush()
    assert max(front_end.sizes) < LIMIT, sorted(front_end.sizes)[-3:]


def test_updates_are_gathered_not_queued(front_end, run):
    monitor = TrainingMonitor(run)
    monitor._ipython_display_()
    started(run)
    drawn = []
    monitor._pulse.action = lambda: drawn.append(run.history.step)
    monitor._pulse.seconds = 0.1
    begun = time.monotonic()
    for n in range(1, 51):
        step(run, n)
    took = time.monotonic() - begun
    wait_until(lambda: drawn and drawn[-1] == 50)
    assert len(drawn) <= 2 + took / 0.1


def test_no_thread_is_left_when_nothing_happens(front_end, run):
    before = threading.active_count()
    monitor = TrainingMonitor(run)
    monitor._ipython_display_()
    started(run)
    step(run, 1)
    finish(run, 1)
    wait_until(lambda: threading.active_count() <= before)


@pytest.mark.parametrize(("name", "save"), [("Stop and save", True), ("Stop", False)])
def test_the_stop_buttons_ask_the_run(front_end, find, run, name, save):
    monitor = TrainingMonitor(run)
    monitor._ipython_display_()
    assert find(monitor, name).disabled, "nothing to stop yet"
    started(run)
    step(run, 1)
    monitor._pulse.now()
    assert not find(monitor, name).disabled
    front_end.click(find(monitor, name))
    assert run.stop_request.save is save
    assert run.state == "stopping" and find(monitor, name).disabled
    assert "ends after this step" in monitor._status_line.value
    monitor._pulse.now()
    assert "stopping" in monitor._title.value


def test_a_run_of_another_process_can_be_watched_but_not_stopped(front_end, find, tmp_path):
    path = tmp_path / RUN_FILE
    lines = [RunEvent("started", 0, data={"max_steps": 5}), RunEvent("step", 1, data={"loss": 2.0})]
    path.write_text("".join(line.to_json() + "\n" for line in lines))
    monitor = TrainingMonitor(tmp_path)
    monitor._ipython_display_()
    assert not monitor.run.trains_here
    assert find(monitor, "Stop").disabled
    with path.open("a") as file:
        file.write(RunEvent("finished", 5).to_json() + "\n")
    assert monitor.run.wait(10) == "finished"
    assert "✔ finished" in shown(front_end)[0][-1]["text/html"]


def test_a_past_run_is_shown_without_any_widget(front_end, tmp_path):
    past = Run(tmp_path / RUN_FILE)
    started(past)
    step(past, 1)
    finish(past, 1, "stopped", reason="stopped on request")
    for source in (tmp_path, str(past.path)):
        TrainingMonitor(source)._ipython_display_()
    assert not front_end.messages
    assert all("widget-view" not in json.dumps(list(place[0])) for place in front_end.displays.values())
    assert "■ stopped" in next(iter(front_end.displays.values()))[0]["text/html"]


def test_a_missing_run_is_one_clear_sentence(tmp_path):
    with pytest.raises(TrainingError, match="There is no run in"):
        TrainingMonitor(tmp_path)
    with pytest.raises(TrainingError, match="not int"):
        TrainingMonitor(3)


def test_a_second_training_of_the_same_run_brings_the_widget_back(front_end, run):
    monitor = TrainingMonitor(run)
    monitor._ipython_display_()
    started(run)
    finish(run, 3)
    live, _ = shown(front_end)
    assert "text/html" in live[-1]
    started(run)
    assert "application/vnd.jupyter.widget-view+json" in live[-1]
    monitor.flush()
    assert "sloth-snapshot-" in shown(front_end)[1][-1]["text/html"], "hidden again"
    finish(run, 5)
    assert "text/html" in live[-1]


def test_of_several_monitors_of_a_run_the_newest_is_drawn_and_all_end_with_it(front_end, run):
    first, second = TrainingMonitor(run), TrainingMonitor(run)
    first._ipython_display_()
    second._ipython_display_()
    started(run)
    step(run, 1)
    wait_until(lambda: "step 1" in second._picture.value)
    assert "step 1" not in first._picture.value
    finish(run, 1)
    assert all("✔ finished" in place[-1]["text/html"] for place in list(front_end.displays.values())[::2])


def test_a_failure_and_its_reason_are_shown(front_end, run):
    monitor = TrainingMonitor(run)
    monitor._ipython_display_()
    started(run)
    run.emit(RunEvent("warning", 2, data={"message": "The loss at step 2 is <b>nan</b>."}))
    step(run, 2, loss=float("nan"))
    run.emit(RunEvent("failed", 3, data={"message": "CUDA out of memory <script>"}))
    card = shown(front_end)[0][-1]["text/html"]
    assert "✖ failed" in card and "CUDA out of memory &lt;script&gt;" in card
    assert "&lt;b&gt;nan" in card


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(front_end, run, monkeypatch, capsys):
    monkeypatch.setenv("SLOTH_NB_HOST", "headless")
    monitor = TrainingMonitor(run)
    monitor._ipython_display_()
    started(run, steps=600)
    for n in range(1, 201):
        step(run, n)
    evaluation(run, 200)
    finish(run, 200)
    lines = capsys.readouterr().out.strip().splitlines()
    assert 1 <= len(lines) <= 3
    number = r"[\d.,]+"
    line = rf"step 200/600 · loss {number} · held out {number} · {number} tokens/s · 2.1 GB · finished"
    assert re.fullmatch(line, lines[-1]), lines[-1]
    assert not front_end.messages, "no widget"
    live, snapshot = shown(front_end)
    assert "✔ finished" in live[-1]["text/html"] and "image/svg+xml" in snapshot[-1]


def test_screen_readers_hear_of_it_only_now_and_then(front_end, run):
    monitor = TrainingMonitor(run)
    monitor._ipython_display_()
    started(run)
    for n in range(1, 20):
        step(run, n)
        monitor._pulse.now()
    said = [m for m in front_end.messages if m["comm"] == monitor._status_line.comm.comm_id]
    assert len(said) <= 2
    assert "step" in monitor._status_line.value


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0 s"), (42, "42 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"), (273_600, "3 d 4 h")],
)
def test_durations_are_said_as_people_do(value, said):
    assert view.duration(value) == said


def test_smoothing_stays_within_the_values_and_passes_over_gaps():
    import numpy as np

    steps = np.arange(1000)
    values = np.where(steps % 97 == 3, np.nan, 1 + (steps % 7) / 10)
    x, y = view._smooth(steps, values, points=150)
    assert len(x) <= 150 and x[0] == 0 and x[-1] == 999
    assert np.nanmin(y) >= 1 and np.nanmax(y) <= 1.6
    assert np.isfinite(y).all() and np.ptp(y[10:-10]) < 0.1
