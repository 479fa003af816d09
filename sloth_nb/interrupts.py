"""Interrupts (■, Ctrl-C) that leave the kernel usable, and say so in one sentence.

An import that is broken off leaves modules half made: torch then fails at the next try, or takes the kernel
down with it. So while modules load, an interrupt is put off until they are whole.
"""

import contextlib
import functools
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from sloth_nb.errors import Interrupted

__all__ = ["put_off", "told"]

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class _Later:
    """A handler of SIGINT that only takes note."""

    came = False

    def __call__(self, *_: Any) -> None:
        if not self.came:
            print("Interrupted: this ends as soon as the modules at hand are whole.", file=sys.stderr)
        self.came = True


@contextlib.contextmanager
def put_off() -> Iterator[None]:
    """Holds interrupts back while the block runs; one that came is raised at its end.

    Raises:
        Interrupted: an interrupt came.
    """
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or usual is not signal.default_int_handler:
        yield  # only the main thread is interrupted; a handler of someone else's (or an outer block) stays
        return
    later = _Later()
    signal.signal(signal.SIGINT, later)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if later.came:
        raise Interrupted("Interrupted while modules were loaded. They are whole: run it again to go on.")


def told(sentence: str) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Lets a function that is interrupted end with ``Interrupted(sentence)``.

    What the function held is let go: its frames aren't kept by the exception, as they would be by a
    KeyboardInterrupt that the notebook remembers.
    """

    def around(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @functools.wraps(function)
        def inner(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            try:
                return function(*args, **kwargs)
            except Interrupted:
                raise
            except KeyboardInterrupt:
                pass
            raise Interrupted(sentence)

        return inner

    return around
