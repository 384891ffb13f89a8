"""Frames for one thread at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, Never, Self

from pipekit._errors import PipekitError


class OneReader:
    """Frames that are asked for by one thread at a time; two at once are a mistake that both are told of.

    What reads them is a `chain`, which is not made for two: it may drop a frame, and after an exception of this
    iterator it is at its end. So the error is raised by a frame, and every later frame raises it too. What gives them
    is a generator, which is not made for two either: without a GIL, CPython 3.13 crashes.

    Args:
        frames: the generator.
        mistake: what is wrong, and what to do instead.
        stop: called when there were two, by the one that has asked first.
    """

    def __init__(self, frames: Iterator[Iterator[Any]], mistake: str, stop: Callable[[], object]) -> None:
        self.error: PipekitError | None = None
        self._frames = frames
        self._mistake = mistake
        self._stop = stop
        self._reading = threading.Lock()
        self._reader = 0  # the thread that has it

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Iterator[Any]:
        if not self._reading.acquire(blocking=False):
            self.error = PipekitError(self._mistake)
            return _Raises(self._mistake)
        self._reader = threading.get_ident()
        try:
            frame = None if self.error else next(self._frames, None)
            if self.error:
                self._stop()
                return _Raises(self._mistake)
        finally:
            self._reader = 0
            self._reading.release()
        if frame is None:
            raise StopIteration
        return frame

    def is_interrupted(self) -> bool:
        """Whether this thread is in the middle of asking: then it runs a signal handler or a destructor now."""
        return self._reader == threading.get_ident()


class _Raises:
    """Raises at every step; a generator would only at its first."""

    def __init__(self, mistake: str) -> None:
        self._mistake = mistake

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Never:
        raise PipekitError(self._mistake)
