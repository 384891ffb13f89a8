"""A backend around another one that is late, or cannot start a worker, where it is told to."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pipekit.backends import (
    Backend,
    Executor,
    Frame,
    Inbox,
    Outbox,
    Outcome,
    Report,
    Signal,
    Waiter,
    Worker,
)
from pipekit.backends._registry import resolve_backend
from pipekit.testing._around import Around


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong, and how late things are (seconds, default 0.0: not at all).

    at_start: before a worker gets its first frame (or, without input, before its first results are let in).
    before_put: before each frame of results is let in.
    before_end: between a worker's end and its report of it.
    fail_start: index, from 0, of the worker that cannot be started (EAGAIN) among those which a run opens.
    """

    at_start: float = 0.0
    before_put: float = 0.0
    before_end: float = 0.0
    fail_start: int | None = None


class FaultyBackend(Around):
    """A backend with faults: `setup(backend=FaultyBackend("process", Faults(before_put=0.01)))`.

    Args:
        backend: the name of a backend, or one.
        faults: what goes wrong.

    Raises:
        OptionError: there is no backend of that name.
    """

    def __init__(self, backend: str | Backend, faults: Faults) -> None:
        super().__init__(resolve_backend(backend), "faulty")
        self._faults = faults

    def executor(self) -> Executor:
        return _FaultyExecutor(self._backend.executor(), self._faults)


class _FaultyExecutor(Executor):
    def __init__(self, executor: Executor, faults: Faults) -> None:
        self._executor = executor
        self._faults = faults
        self._delays = _Delays()
        self._opened = 0

    def open(self, prepared: Any, name: str, inbox: Inbox | None, outboxes: Sequence[Outbox], report: Report) -> Worker:
        opened, self._opened = self._opened, self._opened + 1
        if opened == self._faults.fail_start:
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        faults, delays = self._faults, self._delays
        late_inbox = None if inbox is None else _LateInbox(inbox, faults.at_start, delays)
        at_start = faults.at_start if inbox is None else 0.0
        late = _LateFrames()
        late_outboxes = [_LateOutbox(outbox, at_start, faults.before_put, delays, late) for outbox in outboxes]

        def late_report(outcome: Outcome) -> None:
            late.when_let_in(lambda: delays.call(faults.before_end, partial(report, outcome)))

        return self._executor.open(prepared, name, late_inbox, late_outboxes, late_report)

    def start(self) -> None:
        self._executor.start()

    def close(self) -> None:
        self._executor.close()
        self._delays.join()


class _Delays:
    """Calls that are made later, by timers."""

    def __init__(self) -> None:
        self._timers: list[threading.Timer] = []
        self._lock = threading.Lock()

    def call(self, seconds: float, function: Callable[[], None]) -> None:
        if seconds <= 0:
            function()
            return
        timer = threading.Timer(seconds, function)
        timer.daemon = True
        with self._lock:
            self._timers = [timer for timer in self._timers if timer.is_alive()]
            self._timers.append(timer)
            timer.start()

    def join(self) -> None:
        with self._lock:
            timers = list(self._timers)
        for timer in timers:
            timer.join()


class _LateInbox:
    """An inbox whose first frame is late."""

    def __init__(self, inbox: Inbox, at_start: float, delays: _Delays) -> None:
        self._inbox = inbox
        self._late = at_start
        self._delays = delays

    def get(self, waiter: Waiter) -> Frame | Signal | None:
        late, self._late = self._late, 0.0
        if late <= 0:
            return self._inbox.get(waiter)
        self._delays.call(late, lambda: _tell(waiter, self._inbox.get(waiter)))
        return None

    def withdraw(self, waiter: Waiter) -> None:
        self._inbox.withdraw(waiter)

    def taken(self, items: int) -> None:
        self._inbox.taken(items)

    def measured(self, items: int, seconds: float, blocked: float) -> None:
        self._inbox.measured(items, seconds, blocked)

    def surplus(self) -> Frame | None:
        return self._inbox.surplus()

    def give_back(self, lent: int, frames: Sequence[Frame]) -> None:
        self._inbox.give_back(lent, frames)


class _LateFrames:
    """How many frames of a worker its outboxes do not know of yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._late = 0
        self._waiting: list[Callable[[], None]] = []

    def one_more(self) -> None:
        with self._lock:
            self._late += 1

    def one_less(self) -> None:
        with self._lock:
            self._late -= 1
            waiting, self._waiting = ([], self._waiting) if self._late else (self._waiting, [])
        for function in waiting:
            function()

    def when_let_in(self, function: Callable[[], None]) -> None:
        """Call `function` when no frame is late: the report of a worker's end must not overtake its results."""
        with self._lock:
            if self._late:
                self._waiting.append(function)
                return
        function()


class _LateOutbox:
    """An outbox that lets each frame in late."""

    def __init__(self, outbox: Outbox, at_start: float, before_put: float, delays: _Delays, late: _LateFrames) -> None:
        self._outbox = outbox
        self._at_start = at_start
        self._before_put = before_put
        self._delays = delays
        self._late = late

    @property
    def frame_size(self) -> int:
        return self._outbox.frame_size

    @property
    def window(self) -> int:
        return 1  # timers may change places

    def put(self, waiter: Waiter, frame: Frame) -> Signal | None:
        late, self._at_start = self._at_start + self._before_put, 0.0
        if late <= 0:
            return self._outbox.put(waiter, frame)
        self._late.one_more()
        self._delays.call(late, partial(self._put_late, waiter, frame))
        return None

    def offer(self, frame: Frame) -> bool:
        return self._before_put <= 0 and self._at_start <= 0 and self._outbox.offer(frame)

    def _put_late(self, waiter: Waiter, frame: Frame) -> None:
        answer = self._outbox.put(waiter, frame)
        self._late.one_less()
        _tell(waiter, answer)


def _tell(waiter: Waiter, answer: Frame | Signal | None) -> None:
    if answer is not None:
        waiter.wake(answer)
