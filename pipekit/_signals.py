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
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: The program's handlers, while others stand in for them.
_put_off: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {}


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Have the program's handlers of SIGINT and SIGTERM, which may raise, run after the block instead of in it."""
    with _without_handler(signal.SIGTERM), _without_handler(signal.SIGINT):
        yield


def start_thread(thread: threading.Thread) -> None:
    """Start a thread. A Ctrl-C comes after it: in the middle it may turn into a RuntimeError, as if there were no more
    threads to be had.

    Raises:
        RuntimeError: there are no more, or the interpreter is exiting.
    """
    with uninterrupted():
        thread.start()


@contextmanager
def _without_handler(number: signal.Signals) -> Iterator[None]:
    handler = signal.getsignal(number)
    if not callable(handler) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[FrameType | None] = []
    try:
        _put_off[number] = handler
        signal.signal(number, lambda _, frame: came.append(frame))
        yield
    finally:
        _put_off.pop(number, None)
        signal.signal(number, handler)
        if came:
            handler(number, came[0])


def _after_fork_in_child() -> None:
    """Another thread has forked in the middle of a block, which the child is not in."""
    for number, handler in _put_off.items():
        signal.signal(number, handler)
    _put_off.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork_in_child)
