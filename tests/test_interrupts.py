"""Interrupts: put off while modules load, one sentence otherwise, and nothing held afterwards."""

import signal
import sys
import threading
import weakref

import pytest

from sloth_nb.errors import Interrupted
from sloth_nb.interrupts import put_off, told
from sloth_nb.lazy import load


@pytest.fixture(autouse=True)
def pythons_own_handler():
    """As in a kernel: a shell that starts the tests in the background has interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def test_an_interrupted_import_ends_whole_and_then_says_so(tmp_path, monkeypatch):
    (tmp_path / "slow_one.py").write_text(
        "import signal\nfirst = 1\nsignal.raise_signal(signal.SIGINT)\nlast = 2\n", encoding="utf-8"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(Interrupted, match="run it again"):
        load(__name__, "last", "slow_one")
    assert sys.modules["slow_one"].last == 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert load(__name__, "last", "slow_one") == 2


def test_an_inner_block_leaves_the_interrupt_to_the_outer_one(capsys):
    reached = False
    with pytest.raises(Interrupted), put_off():
        with put_off():
            interrupt()
        reached = True
    assert reached
    assert capsys.readouterr().err.count("Interrupted") == 1


def test_other_threads_and_other_people_s_handlers_are_left_alone():
    mine = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        handler = signal.getsignal(signal.SIGINT)
        with put_off():
            assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, mine)
    failed = []

    def work() -> None:
        try:
            with put_off():
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed


class Large:
    pass


def test_an_interrupted_function_says_one_sentence_and_keeps_nothing():
    held = []

    @told("Interrupted while it worked.")
    def work() -> None:
        large = Large()
        held.append(weakref.ref(large))
        interrupt()

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert caught.value._render_traceback_() == ["Interrupted: Interrupted while it worked."]
    assert caught.value.__context__ is None and held[0]() is None


def test_errors_pass_through_as_they_are():
    @told("not this")
    def fails() -> None:
        raise ValueError("this")

    with pytest.raises(ValueError, match="this"):
        fails()
