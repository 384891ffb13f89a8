"""One outbox in front of several channels."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

from pipekit._channel import Channel, offer_to_all
from pipekit._edge import Signal, Waiter
from pipekit._frame import Frame, Pickled


class FanOut:
    """A `pipekit.backends.Outbox` that puts each frame into all its channels.

    The writer goes on when all have let it in: the slowest reader sets the pace. A channel whose readers have all gone
    is left out; when that is so for all, the writer is told CLOSED.

    entered: items that all have let in. (A channel which several stages write to counts those of all.)
    """

    def __init__(self, channels: Sequence[Channel]) -> None:
        self.entered = 0
        self._channels = channels
        self._lock = threading.Lock()

    @property
    def frame_size(self) -> int:
        return min((channel.frame_size for channel in self._channels if not channel.is_closed), default=1)

    @property
    def window(self) -> int:
        return min(channel.window for channel in self._channels)

    def put(self, waiter: Waiter, frame: Frame) -> Signal | None:
        answers = _Together(self, waiter, frame.count)
        last: Signal | None = None
        frame = self._for_all(frame)
        for channel in self._channels:
            answer = channel.put(answers, frame)
            if answer is not None:
                last = answers.add(answer)
        return last

    def offer(self, frame: Frame) -> bool:
        accepted = offer_to_all(self._channels, self._for_all(frame))
        if accepted:
            self.count(frame.count)
        return accepted

    def _for_all(self, frame: Frame) -> Frame:
        """The frame, made so that what one of several readers does to its items is not seen by the others."""
        if len(self._channels) > 1 and isinstance(frame.payload, Pickled) and frame.payload.leases:
            return replace(frame, payload=replace(frame.payload, shared=True))
        return frame

    def count(self, items: int) -> None:
        with self._lock:
            self.entered += items


class _Together:
    """What the channels say to one frame; its writer is told when all have answered."""

    def __init__(self, outbox: FanOut, waiter: Waiter, items: int) -> None:
        self._outbox = outbox
        self._waiter = waiter
        self._items = items
        self._missing = len(outbox._channels)
        self._answer = Signal.CLOSED
        self._lock = threading.Lock()

    def wake(self, answer: Frame | Signal) -> None:
        assert isinstance(answer, Signal)
        together = self.add(answer)
        if together is not None:
            self._waiter.wake(together)

    def add(self, answer: Signal) -> Signal | None:
        """Take one answer; with the last one, what they come to."""
        with self._lock:
            self._missing -= 1
            if _WEIGHT[answer] > _WEIGHT[self._answer]:
                self._answer = answer
            together = None if self._missing else self._answer
        if together is Signal.OK:
            self._outbox.count(self._items)
        return together


#: The weightiest answer is that of all.
_WEIGHT = {Signal.CLOSED: 0, Signal.OK: 1, Signal.CANCELLED: 2}
