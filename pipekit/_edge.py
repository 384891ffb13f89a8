"""The state of one edge: who waits, what is queued, how it ends. No locks, no waiting, no I/O.

Every method decides and returns at once. What others must be told - a waiting reader that gets a frame, a waiting
writer whose frame was let in - is left in `wakeups` for the shell (`_channel.Channel`) to deliver outside its lock.

A waiting reader is *handed* its frame. Waking it to look again would let a later call take the frame first.

Items count as waiting from the moment they are let in until their reader has taken them for good (`taken`): a reader
that stops early gives the rest of its frames back, and END comes only when nothing can come back any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from pipekit._frame import Frame, Pace
from pipekit._task import FRAME_SECONDS

#: Times the work that a frame holds, in which its items flow on where the reader spends most of its time waiting for
#: those behind it (10 ms between threads and processes): so the queues in front of a slow stage or consumer stay short,
#: too, although their own readers are fast.
FLOW = 10 / 3
#: Bytes that a frame holds, where its items are large: more would only fill the memory. (Few frames of 3 ms are larger;
#: those of 50 ms, which cost 2 ms, would be.)
FRAME_BYTES = 8 << 20
#: An elastic queue holds this many frames for each reader: what the reader has ahead, and as much waiting ...
FRAMES_AHEAD = 8
#: ... but never fewer items than this, so that many quick finishers of slow work need not wait for each other.
MIN_ROOM = 16


class Signal(Enum):
    """Answers that are not a frame."""

    OK = "the frame was let in"
    END = "every writer is done and nothing can come any more"
    CLOSED = "no reader is left: stop, your results are not wanted"
    CANCELLED = "the run is stopping: stop at once"


class Waiter(Protocol):
    """Somebody who waits for an answer, and gets it exactly once."""

    def wake(self, answer: Frame | Signal) -> None:
        """Take the answer; called from any thread, must not block or raise."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one edge, set by the compiler.

    room: items that may wait, None for no limit.
    frame_limit: items that a frame may hold.
    elastic: keep less than `room` while the readers are slow.
    window: frames that a writer far away may have on their way, none of them let in yet.
    frame_seconds: of its reader's work that a frame holds.
    """

    room: int | None
    frame_limit: int
    elastic: bool = False
    window: int = 1
    frame_seconds: float = FRAME_SECONDS


class Edge:
    """State machine of the queue between the workers of one stage and those of the next."""

    def __init__(self, limits: Limits, writers: int, readers: int) -> None:
        self.wakeups: deque[tuple[Waiter, Frame | Signal]] = deque()
        self.entered = 0  # items let in
        self.queued = 0  # items in `_frames`
        self._limits = limits
        self._pace = Pace(limits.frame_limit, limits.frame_seconds)
        self._flow = Pace(limits.frame_limit, FLOW * limits.frame_seconds)
        self._fitting = limits.frame_limit  # items of the size of the last ones that are not too large together
        self._all_readers = readers
        self._set_frame_size()
        self._frames: deque[Frame] = deque()
        self._lent = 0  # items handed to readers that may still give them back
        self._getters: deque[Waiter] = deque()
        self._putters: deque[tuple[Waiter, Frame]] = deque()
        self._writers = writers
        self._readers = readers
        self._refuses: Signal | None = None  # what writers are told, once nothing more is let in
        self._cancelled = False

    @property
    def window(self) -> int:
        """Frames that a writer far away may have on their way."""
        return self._limits.window

    @property
    def is_closed(self) -> bool:
        """Whether no reader is left."""
        return self._refuses is Signal.CLOSED

    @property
    def lent(self) -> int:
        """Items in the hands of readers, not yet taken for good."""
        return self._lent

    # -- the writing end

    def put(self, waiter: Waiter, frame: Frame) -> Signal | None:
        """Let `frame` in, or keep it until there is room: then None, and `waiter` is told."""
        if self._refuses is not None:
            return self._refuses
        if self._putters or not self._has_room(frame.count):
            self._putters.append((waiter, frame))
            return None
        self._admit(frame)
        return Signal.OK

    def accepts(self, items: int) -> bool:
        """Whether a frame of so many items can be let in without waiting."""
        return self._refuses is None and not self._putters and self._has_room(items)

    def offer(self, frame: Frame) -> bool:
        """Let `frame` in if that needs no waiting."""
        if not self.accepts(frame.count):
            return False
        self._admit(frame)
        return True

    def writer_done(self) -> None:
        """One writer will put nothing more."""
        self._writers -= 1
        self._end_if_over()

    # -- the reading end

    def get(self, waiter: Waiter) -> Frame | Signal | None:
        """The next frame, lent to the reader; None if `waiter` will get the answer later."""
        if self._cancelled:
            return Signal.CANCELLED
        if self._frames:
            return self._lend()
        if self._is_over():
            return Signal.END
        self._getters.append(waiter)
        return None

    def surplus(self) -> Frame | None:
        """A frame to have ahead, lent; None unless one is left for each reader then."""
        if self._cancelled or len(self._frames) <= self._readers:
            return None
        return self._lend()

    def withdraw(self, waiter: Waiter) -> None:
        """A waiting reader wants no frame any more: it is told CANCELLED, unless it has got one already."""
        if waiter in self._getters:
            self._getters.remove(waiter)
            self.wakeups.append((waiter, Signal.CANCELLED))

    def taken(self, items: int) -> None:
        """A reader has taken this many of its lent items for good."""
        self._lent -= items
        self._admit_waiting()
        self._end_if_over()

    def measured(self, items: int, seconds: float, blocked: float) -> None:
        """A reader needed `seconds` for a frame of `items`, and waited `blocked` seconds more to hand on results."""
        self._pace.measured(items, seconds)
        self._flow.measured(items, seconds + blocked)
        self._set_frame_size()

    def give_back(self, lent: int, frames: Sequence[Frame]) -> None:
        """A reader stops: of its `lent` items, those in `frames` go back to the front, the others were taken."""
        self._lent -= lent
        if self._readers > 0 and not self._cancelled:
            for frame in reversed(frames):
                self._frames.appendleft(frame)
                self.queued += frame.count
            while self._getters and self._frames:
                self._hand(self._getters.popleft())
        self._admit_waiting()
        self._end_if_over()

    def reader_done(self) -> None:
        """One reader will take nothing more; after the last one, writers are told to stop."""
        self._readers -= 1
        if self._readers == 0 and self._refuses is None:
            self._clear()
            self._refuse(Signal.CLOSED)

    # -- both ends

    def drain(self) -> None:
        """Let nothing more in; what is here is still delivered, then END."""
        while self._putters:
            waiter, frame = self._putters.popleft()
            self._admit(frame)
            self.wakeups.append((waiter, Signal.CANCELLED))
        self._refuse(Signal.CANCELLED)
        self._writers = 0
        self._end_if_over()

    def cancel(self) -> None:
        """Drop everything; everybody is told CANCELLED, now and later."""
        self._cancelled = True
        self._clear()
        self._refuse(Signal.CANCELLED)
        while self._getters:
            self.wakeups.append((self._getters.popleft(), Signal.CANCELLED))

    # -- decisions

    def _has_room(self, items: int) -> bool:
        waiting = self.queued + self._lent
        room = self._limits.room
        if room is None or waiting == 0:
            return True
        if self._limits.elastic and self.queued + items > self._needed:
            return False
        return waiting + items <= room

    def _set_frame_size(self) -> None:
        #: Items that writers should put into a frame now.
        self.frame_size = min(self._pace.size, self._flow.size, self._fitting)
        # Items that wait in an elastic queue at most. What is lent is not among them: a reader in a long item may have
        # many items ahead, and the others must not want.
        self._needed = max(MIN_ROOM, FRAMES_AHEAD * self._all_readers * self.frame_size)

    def _admit(self, frame: Frame) -> None:
        if frame.size > FRAME_BYTES or self._fitting < self._limits.frame_limit:
            self._fitting = max(1, min(self._limits.frame_limit, frame.count * FRAME_BYTES // max(1, frame.size)))
            self._set_frame_size()
        self.entered += frame.count
        self.queued += frame.count
        self._frames.append(frame)
        if self._getters:
            self._hand(self._getters.popleft())

    def _hand(self, getter: Waiter) -> None:
        self.wakeups.append((getter, self._lend()))

    def _lend(self) -> Frame:
        frame = self._frames.popleft()
        self.queued -= frame.count
        self._lent += frame.count
        return frame

    def _admit_waiting(self) -> None:
        # A writer that waits is woken when half is free, and goes on for many items. Measured: waking it for each made
        # a fifth of the parent's work where items take 5 ms.
        if self._limits.elastic and self._putters and 2 * self.queued > self._needed:
            return
        while self._putters and self._has_room(self._putters[0][1].count):
            waiter, frame = self._putters.popleft()
            self._admit(frame)
            self.wakeups.append((waiter, Signal.OK))

    def _is_over(self) -> bool:
        return self._writers <= 0 and self._lent == 0 and not self._frames and not self._putters

    def _end_if_over(self) -> None:
        if self._is_over():
            while self._getters:
                self.wakeups.append((self._getters.popleft(), Signal.END))

    def _refuse(self, signal: Signal) -> None:
        self._refuses = signal
        while self._putters:
            self.wakeups.append((self._putters.popleft()[0], signal))

    def _clear(self) -> None:
        self._frames.clear()
        self.queued = 0
