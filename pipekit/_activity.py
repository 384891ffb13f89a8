"""What a worker is doing, for those who ask."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from pipekit._stats import Doing

_this_thread = threading.local()


class Activity:
    """Written by the worker, read by whoever asks."""

    __slots__ = ("now", "released", "thread")

    def __init__(self) -> None:
        self.now = (Doing.STARTING, perf_counter())  # replaced as a whole, so that readers see both or neither
        self.thread = 0
        self.released = False  # it was told that its work is not wanted any more

    def begin(self, doing: Doing) -> None:
        self.now = (doing, perf_counter())


@contextmanager
def this_thread_is(names: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """In the block, this thread is a worker; `names` tells for which stage just now, and what it is called there."""
    _this_thread.names = names
    try:
        yield
    finally:
        _this_thread.names = None


def names_of_this_thread() -> tuple[str, str] | None:
    """Stage and worker, in a thread that is one."""
    names: Callable[[], tuple[str, str]] | None = getattr(_this_thread, "names", None)
    return None if names is None else names()
