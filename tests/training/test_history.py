"""History keeps every number and shows few of them without hiding any spike."""

import math
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sloth_nb.training.events import RunEvent
from sloth_nb.training.history import History


def step(number: int, at: float = 0.0, **data) -> RunEvent:
    return RunEvent("step", number, at, data)


def filled(values) -> History:
    return History(step(i, loss=value) for i, value in enumerate(values, start=1))


def test_numbers_are_kept_by_name_and_texts_are_passed_over():
    history = History(
        [
            RunEvent("started", 0, 0.0, {"max_steps": 4, "model": "m"}),
            step(1, loss=2.0, note="text", flag=True),
            RunEvent("eval", 1, 0.0, {"eval_loss": 3.0}),
            step(2, loss=1.0),
        ]
    )
    assert history.names == ["eval_loss", "loss"]
    assert (history.first("loss"), history.latest("loss"), history.latest("absent")) == (2.0, 1.0, None)
    assert (history.step, history.max_steps, history.state) == (2, 4, "running")


def test_a_short_run_is_shown_whole():
    steps, values = filled([3.0, 2.0, 1.0]).view("loss")
    assert steps.tolist() == [1, 2, 3] and values.tolist() == [3.0, 2.0, 1.0]


def test_an_unknown_name_has_no_points():
    steps, values = History().view("loss")
    assert len(steps) == len(values) == 0


@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=3000),
    st.integers(min_value=10, max_value=200),
)
def test_a_view_is_small_ordered_and_keeps_the_extremes_and_the_newest(values, max_points):
    history = filled(values)
    steps, shown = history.view("loss", max_points)
    assert len(steps) <= max_points
    assert (np.diff(steps) > 0).all()
    assert len(history.points("loss")[0]) == len(values)
    real = [v for v in values if not math.isnan(v)]
    if real:
        assert np.nanmin(shown) == min(real) and np.nanmax(shown) == max(real)
    newest = min(len(values), max_points // 5)
    np.testing.assert_array_equal(shown[-newest:], np.array(values[-newest:], dtype=float))
    for number, value in zip(steps, shown, strict=True):
        np.testing.assert_array_equal(value, float(values[number - 1]))


def test_a_million_steps_with_one_spike_still_show_the_spike():
    history = History()
    history.add(step(1, loss=1.0))
    series = history._series["loss"]
    series.steps = np.arange(1, 1_000_001)
    series.values = np.ones(1_000_000)
    series.values[123_456] = 99.0
    series.size = 1_000_000
    steps, values = history.view("loss", 1000)
    assert len(steps) <= 1000 and values.max() == 99.0 and steps[-1] == 1_000_000


def test_old_points_keep_their_place_while_a_run_grows():
    values = np.random.default_rng(0).normal(size=5001)
    before = set(filled(values[:5000]).view("loss", 500)[0].tolist())
    after = set(filled(values).view("loss", 500)[0].tolist())
    assert len(before - after) <= 3


def test_a_resumed_run_replaces_the_steps_that_it_trains_again():
    history = History([step(i, loss=float(i)) for i in range(1, 11)])
    history.add(RunEvent("started", 6, 0.0, {"max_steps": 20, "resumed_from": "checkpoint-6"}))
    history.add(step(7, loss=70.0))
    steps, values = history.points("loss")
    assert steps.tolist() == [1, 2, 3, 4, 5, 6, 7] and values[-1] == 70.0
    assert (history.step, history.max_steps) == (7, 20)


def test_time_left_comes_from_the_recent_pace_and_ends_with_the_run():
    history = History([RunEvent("started", 0, 100.0, {"max_steps": 100})])
    assert history.seconds_left(now=100.0) is None
    for number in range(1, 51):
        history.add(step(number, 100.0 + 2 * number, loss=1.0))
    assert history.seconds_left(now=200.0) == pytest.approx(100.0)
    assert history.seconds_left(now=201.0) == pytest.approx(99.0)
    history.add(RunEvent("finished", 100, 300.0))
    assert history.state == "finished" and history.seconds_left() is None


def test_reading_while_another_thread_adds_is_safe():
    history = History()
    done = threading.Event()

    def write():
        for number in range(1, 20_001):
            history.add(step(number, loss=float(number)))
        done.set()

    thread = threading.Thread(target=write)
    thread.start()
    while not done.is_set():
        steps, values = history.view("loss", 100)
        assert (steps == values).all()
    thread.join()
    assert history.latest("loss") == 20_000.0
