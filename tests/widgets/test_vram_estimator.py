"""VramEstimator: the panel says what the script's estimate says, whatever is moved."""

import os
import subprocess
import sys
import threading
import time

import pytest
from ipywidgets import FloatLogSlider
from sloth_nb_widgets import VramEstimator
from sloth_nb_widgets.panel import PanelArgumentError

from sloth_nb import estimate
from sloth_nb.errors import SlothError
from sloth_nb.training.events import RunEvent


@pytest.fixture(autouse=True)
def no_late_snapshot(monkeypatch):
    """The saved copy follows after a second; by then a test is over."""
    monkeypatch.setattr(VramEstimator, "snapshot_delay", 600)


def drawn(panel, *said, seconds=60):
    """Waits until the picture, which follows a move at once but not within it, says all that."""
    end = time.monotonic() + seconds
    while not all(one in panel._picture.value for one in said):
        assert time.monotonic() < end, f"{said} not in {panel._picture.value}"
        time.sleep(0.005)
    return True


def test_it_answers_what_a_script_gets():
    panel = VramEstimator("qwen3-14b", gpu="T4", length=4096, policy="lean")
    assert panel.estimate == estimate("qwen3-14b", gpu="T4", length=4096, policy="lean")
    assert str(panel) == str(panel.estimate)


def test_a_moved_slider_changes_the_answer_and_the_picture(front_end, find):
    panel = VramEstimator("qwen3-14b", gpu="T4")
    panel._ipython_display_()
    before = panel.estimate.total
    front_end.update(find(panel, "Length"), value=16384)
    assert panel.length == 16384
    assert panel.estimate.total > before
    assert drawn(panel, f"{panel.estimate.total_gb:.2f} GB", "does not fit", "<li>")


def test_a_move_waits_for_no_answer_and_the_last_one_is_drawn(front_end, find, monkeypatch):
    panel = VramEstimator("qwen3-14b", gpu="T4")
    panel._ipython_display_()
    may_answer, pictures, compute = threading.Event(), [], panel._compute
    panel._picture.observe(lambda change: pictures.append(change["new"]), "value")
    monkeypatch.setattr(panel, "_compute", lambda: may_answer.wait(60) and compute())
    for length in range(2048, 2048 + 64 * 50, 64):
        front_end.update(find(panel, "Length"), value=length)
    assert panel.length == 2048 + 64 * 49 and not pictures
    may_answer.set()
    last = estimate("qwen3-14b", gpu="T4", length=2048 + 64 * 49, policy="recompute")
    assert drawn(panel, f"<b>{last.total_gb:.2f} GB</b>")
    assert len(pictures) <= 3 and panel.estimate == last


def test_the_length_s_slider_moves_by_shares_and_meets_whole_64s():
    panel = VramEstimator("qwen3-14b", gpu="T4", length=2048)
    boxes = [child for row in panel._controls() for child in row.children]
    (handle,) = [c for box in boxes for c in getattr(box, "children", ()) if isinstance(c, FloatLogSlider)]
    handle.value = 2**12.125
    assert panel.length == 4480
    handle.value = 2**17
    assert panel.length == 131072
    panel.length = 1000
    assert handle.value == 1000 and panel.length == 1000


def test_what_is_chosen_wrong_is_said_in_the_panel_and_mends(front_end, find):
    panel = VramEstimator("qwen3-14b", gpu="T4")
    panel._ipython_display_()
    front_end.update(find(panel, "Model"), value="qwen3-15b")
    assert drawn(panel, "Nearest: qwen3-14b", 'role="alert"')
    with pytest.raises(SlothError, match="qwen3-15b"):
        _ = panel.estimate
    front_end.update(find(panel, "Model"), value="qwen3-8b")
    assert panel.estimate.work.model.name == "qwen3-8b"


def test_a_model_that_breaks_the_estimate_is_said_and_never_answered_with_the_one_before(
    front_end, find, monkeypatch
):
    panel = VramEstimator("qwen3-14b", gpu="T4")
    panel._ipython_display_()
    before = panel.estimate

    def broken(*_):
        raise TypeError("'list' and 'int'")

    with monkeypatch.context() as patch:
        patch.setattr("sloth_nb_widgets.vram_estimator.estimate_work", broken)
        front_end.update(find(panel, "Model"), value="qwen3-8b")
        assert drawn(panel, "qwen3-8b can&#x27;t be estimated: TypeError: ", 'role="alert"')
        for _ in range(2):
            with pytest.raises(SlothError, match="qwen3-8b can't be estimated"):
                _ = panel.estimate
    front_end.update(find(panel, "Model"), value="qwen3-14b")
    assert panel.estimate == before


def test_auto_keeps_as_much_as_fits():
    roomy = VramEstimator("llama-3.1-8b", gpu="H200", policy="auto").estimate
    assert set(roomy.work.policy) == {"keep"}
    tight = VramEstimator("llama-3.1-8b", gpu="T4", policy="auto", length=4096).estimate
    assert tight.fits and len(set(tight.work.policy)) == 2


def test_a_hostile_name_stays_text():
    panel = VramEstimator("<script>alert(1)</script>", gpu="T4")
    assert "<script>" not in panel._view()


def test_a_misspelt_argument_is_refused():
    with pytest.raises(PanelArgumentError, match="Did you mean 'length'"):
        VramEstimator("qwen3-14b", lenght=3)


class FakeRun:
    """The two things that the panel uses of a Run."""

    def __init__(self):
        self.events, self.listeners = [], []

    def listen(self, callback):
        self.listeners.append(callback)
        return lambda: self.listeners.remove(callback)

    def step(self, memory):
        event = RunEvent("step", len(self.events), time.time(), {"memory_bytes": memory})
        self.events.append(event)
        for callback in self.listeners:
            callback(event)


def test_the_measured_peak_stands_beside_the_prediction():
    panel, run = VramEstimator("qwen3-14b", gpu="T4"), FakeRun()
    run.step(10 * 2**30)
    panel.compare(run)
    assert "Measured: 10.00 GB" in panel._view()
    run.step(14 * 2**30)
    assert "Measured: 14.00 GB" in panel._view()
    share = 100 * (panel.estimate.tensors / (14 * 2**30) - 1)
    assert f"{share:+.1f} %" in panel._view()
    other = FakeRun()
    panel.compare(other)
    assert not run.listeners, "it listens to one run at a time"


def test_an_estimate_shows_itself_as_html_and_text():
    answer = estimate("qwen3-14b", gpu="T4", length=8192)
    bundle = answer._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert "does not fit" in bundle["text/html"] and "<svg" in bundle["text/html"]
    assert "14.7" in bundle["text/plain"]
    assert "<script" not in bundle["text/html"]


def test_a_script_s_estimate_loads_no_widgets(repository):
    code = (
        "import sys, sloth_nb; e = sloth_nb.estimate('qwen3-14b', gpu='T4'); e._repr_mimebundle_();"
        "assert not {'ipywidgets', 'traitlets', 'torch', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    )
    path = os.pathsep.join([str(repository), str(repository / "widgets")])
    subprocess.run(
        [sys.executable, "-c", code], check=True, timeout=60, env={**os.environ, "PYTHONPATH": path}
    )


def test_every_card_has_its_row():
    view = VramEstimator("qwen3-14b", gpu="T4")._view()
    for name in ("T4", "RTX 4090", "L4", "H200", "B200"):
        assert f'<th scope="row">{name}</th>' in view


@pytest.mark.parametrize("policy", ["auto", "offload", "sloth", "lean", "keep"])
def test_any_policy_may_be_asked_of_a_model_that_the_engine_does_not_run(policy):
    panel = VramEstimator("gemma-3-4b-it", gpu="T4", policy=policy, batch=4)
    assert panel.estimate.work.engine == "hf" and panel.estimate.host == 0
    assert "does not run gemma-3-4b-it" in str(panel._view())
