"""Pulse: at most so often, never lost, never twice at once."""

import threading
import time

from sloth_nb_widgets.pulse import Pulse


def test_many_pokes_are_few_actions_and_the_last_state_is_seen():
    seen, state = [], [0]
    pulse = Pulse(lambda: seen.append(state[0]), 0.05)
    begun = time.monotonic()
    for n in range(1, 101):
        state[0] = n
        pulse.poke()
        time.sleep(0.001)
    took = time.monotonic() - begun
    while pulse._timer is not None:
        time.sleep(0.01)
    assert seen[-1] == 100
    assert len(seen) <= 2 + took / 0.05


def test_now_acts_in_this_thread_and_takes_the_pending_one_with_it():
    threads = []
    pulse = Pulse(lambda: threads.append(threading.current_thread()), 60)
    pulse.now()
    pulse.poke()
    pending = pulse._timer
    pulse.now()
    pending.join(30)
    assert not pending.is_alive()
    assert threads == [threading.current_thread()] * 2


def test_an_action_that_works_long_is_called_more_rarely_within_bounds():
    def work():
        end = time.thread_time() + 0.01
        while time.thread_time() < end:
            pass

    pulse = Pulse(work, 0.4)
    begun = time.monotonic()
    pulse.now()
    assert begun + 0.5 <= pulse._next
    assert pulse._next <= time.monotonic() + 4 * 0.4


def test_it_never_acts_twice_at_once():
    inside, most = [0], [0]

    def act():
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.03)
        inside[0] -= 1

    pulse = Pulse(act, 0.001)
    threads = [
        threading.Thread(target=lambda: [pulse.poke() or pulse.now() for _ in range(5)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1
