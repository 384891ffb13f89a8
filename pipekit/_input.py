"""The reading end of a worker: frames are opened into items."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import length_hint
from time import perf_counter
from typing import Any, Protocol

from pipekit._activity import Activity
from pipekit._errors import Released
from pipekit._frame import CannotTravel, Frame, part_repr
from pipekit._one_reader import OneReader
from pipekit._stats import Doing

_READ_TWICE = (
    "the items of a stage are read twice at the same time, by two threads of its function: "
    "let one thread read and pass them on"
)


class Reader(Protocol):
    """Where a worker's frames come from."""

    def get(self, before_waiting: Callable[[], None]) -> Frame | None:
        """The next frame, None at the end; raises Released. Calls `before_waiting` if there is none yet."""

    def finished(self, items: int, seconds: float, blocked: float) -> None:
        """The last frame's items are all read, needed so many seconds, and waited for room for `blocked` more."""

    def leave(self, consumed: int) -> None:
        """The worker reads no more; of its unfinished frame, if it has one, it has read `consumed` items."""


class Waits(Protocol):
    """The writing end, as far as the reading end needs it: what it has waited for room is not the function's work."""

    @property
    def blocked(self) -> float:
        """Seconds so far."""


class Input:
    """The items that a stage's function reads; remembers where it stands, for messages and for giving back."""

    def __init__(self, reader: Reader, writer: Waits, activity: Activity, before_waiting: Callable[[], None]) -> None:
        self.ended = False
        self._error: Exception | None = None
        #: Called when all items of a frame have been read, before the next one is waited for.
        self.frame_passed: Callable[[], None] = _nothing
        self._reader = reader
        self._writer = writer
        self._activity = activity
        self._before_waiting = before_waiting
        self._frame = _OpenFrame((), iter(()), None, 0)
        #: The items, frame by frame; and all in one.
        self.frames = OneReader(self._guarded_frames(), _READ_TWICE, _nothing)
        self.items: Iterator[object] = chain.from_iterable(self.frames)

    def _guarded_frames(self) -> Iterator[Iterator[object]]:
        """The frames. An exception ends a generator: to a function that catches it and reads on, its items would seem
        to have ended. (No memory to open a frame, an exception of a signal handler that comes while it waits.)"""
        try:
            yield from self._frames()
        except (Released, GeneratorExit):
            raise
        except BaseException as error:
            self._error = RuntimeError(f"{error!r} cut off its input, and its function went on without the rest")
            raise

    def _frames(self) -> Iterator[Iterator[object]]:
        while (frame := self._next_frame()) is not None:
            blocked = self._writer.blocked
            started = perf_counter()
            parts, decode = frame.open()
            self._frame = _OpenFrame(parts, iter(parts), decode, self.read)
            self._activity.begin(Doing.WORKING)
            yield self._frame.position if decode is None else map(self._decoded, self._frame.position)
            blocked = self._writer.blocked - blocked
            self._reader.finished(frame.count, perf_counter() - started - blocked, blocked)
        self._activity.begin(Doing.WORKING)
        self.ended = True

    def _next_frame(self) -> Frame | None:
        self._activity.begin(Doing.READING)
        self.frame_passed()
        try:
            return self._reader.get(self._before_waiting)
        except Released:
            self._activity.released = True
            raise

    def _decoded(self, part: object) -> object:
        assert self._frame.decode is not None
        try:
            return self._frame.decode(part)
        except BaseException as error:  # also StopIteration, which would end the frame unseen
            self._error = CannotTravel("could not unpickle an item", error)
            raise self._error from error

    def leave(self) -> None:
        """Give back what the function has not read."""
        self._reader.leave(self._frame.consumed)
        self._frame = _OpenFrame((), iter(()), None, self.read)

    @property
    def error(self) -> Exception | None:
        """What the function must not pass over."""
        return self._error or self.frames.error

    @property
    def read(self) -> int:
        """Items that the function has read."""
        frame = self._frame
        return frame.earlier + frame.consumed

    @property
    def read_of_frame(self) -> int:
        """Those of them that are of the frame at hand."""
        return self._frame.consumed

    @property
    def unread(self) -> int:
        """Those of the frame at hand that are still to be read."""
        return length_hint(self._frame.position)

    def last_item(self) -> str | None:
        """The shortened repr of the item that was read last."""
        frame = self._frame
        consumed = frame.consumed
        return part_repr(frame.parts[consumed - 1], frame.decode) if consumed else None


@dataclass(frozen=True, slots=True)
class _OpenFrame:
    """The frame that a function is reading.

    earlier: items that it had read before this frame.
    """

    parts: Sequence[Any]
    position: Iterator[Any]
    decode: Callable[[Any], object] | None
    earlier: int

    @property
    def consumed(self) -> int:
        return len(self.parts) - length_hint(self.position)


def _nothing() -> None:
    pass
