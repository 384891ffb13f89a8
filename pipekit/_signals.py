"""Steps that no Ctrl-C may leave half done.

Python runs the handlers of signals in the main thread, between any two steps of it, and that of SIGINT raises
KeyboardInterrupt there. To block the signal in that thread is not enough: the system gives it to another one then, and
the handler runs in the main thread all the same.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, TypeAlias

Handler: TypeAlias = Callable[[int, FrameType | None], Any]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Have the program's handlers of SIGINT and SIGTERM, which may raise, run after the block instead of in it.

    Does nothing where Python runs no handlers: outside the main thread. (There it does not even ask for one: without a
    GIL, `signal.getsignal` may end the process while the main thread replaces the handler. Seen on 3.13t.)
    """
    pid, inside = os.getpid(), True
    handlers: dict[int, Handler] = {}
    came: dict[int, FrameType | None] = {}

    def stand_in(number: int, frame: FrameType | None) -> None:
        if inside and os.getpid() == pid:
            came[number] = frame
        else:  # a fork, which another thread made; or another handler has raised before all were restored
            handlers[number](number, frame)

    try:
        if threading.current_thread() is threading.main_thread():
            _replace(handlers, stand_in)
        yield
    finally:
        try:
            _restore(handlers, stand_in)
        finally:
            inside = False
            with ExitStack() as each:  # also where another one raises
                for number, frame in came.items():
                    each.callback(handlers[number], number, frame)


def start_thread(thread: threading.Thread) -> None:
    """Start a thread. A Ctrl-C comes after it: in the middle, where `Thread.start` waits with a condition, it may turn
    into a RuntimeError, as if there were no more threads to be had.

    Raises:
        RuntimeError: there are no more, or the interpreter is exiting.
    """
    with uninterrupted():
        thread.start()


def _replace(handlers: dict[int, Handler], stand_in: Handler) -> None:
    """SIGINT first, and last in `_restore`: a Ctrl-C interrupts neither."""
    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if not callable(handler):
            continue
        handlers[number] = handler
        try:
            signal.signal(number, stand_in)
        except ValueError:  # what `threading` takes for the main thread may be a subinterpreter's
            return


def _restore(handlers: dict[int, Handler], stand_in: Handler) -> None:
    for number in reversed(handlers):
        if signal.getsignal(number) is stand_in:
            signal.signal(number, handlers[number])
