"""The shell around an edge: a lock, wake-ups delivered outside it, and ends that block a thread.

`Channel` itself never blocks: whoever must wait passes a `Waiter`. `BlockingReader` and `BlockingWriter` are the ends
for code that owns a thread: the workers of the thread backend, and the consumer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from math import inf
from time import monotonic, perf_counter
from typing import TypeVar

from typing_extensions import ParamSpec

from pipekit._edge import Edge, Signal, Waiter
from pipekit._errors import Released
from pipekit._frame import Frame, Pickled
from pipekit.backends._base import Inbox, Outbox

P = ParamSpec("P")
T = TypeVar("T")


#: Seconds after which the main thread, where it waits, handles a signal that has not woken it.
SIGNAL_SECONDS = 0.3


class Channel:
    """An edge that many threads may use."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._lock = threading.Lock()

    @property
    def frame_size(self) -> int:
        """Items that writers should put into a frame now; a hint, read without the lock."""
        return self._edge.frame_size

    @property
    def window(self) -> int:
        return self._edge.window

    @property
    def is_closed(self) -> bool:
        """Whether no reader is left; read without the lock."""
        return self._edge.is_closed

    @property
    def entered(self) -> int:
        """Items let in so far; read without the lock."""
        return self._edge.entered

    def put(self, waiter: Waiter, frame: Frame) -> Signal | None:
        return self._do(self._edge.put, waiter, frame)

    def offer(self, frame: Frame) -> bool:
        return self._do(self._edge.offer, frame)

    def writer_done(self) -> None:
        self._do(self._edge.writer_done)

    def get(self, waiter: Waiter) -> Frame | Signal | None:
        return self._do(self._edge.get, waiter)

    def withdraw(self, waiter: Waiter) -> None:
        self._do(self._edge.withdraw, waiter)

    def taken(self, items: int) -> None:
        self._do(self._edge.taken, items)

    def measured(self, items: int, seconds: float, blocked: float) -> None:
        self._do(self._edge.measured, items, seconds, blocked)

    def surplus(self) -> Frame | None:
        return self._do(self._edge.surplus)

    def give_back(self, lent: int, frames: Sequence[Frame]) -> None:
        self._do(self._edge.give_back, lent, frames)

    def reader_done(self) -> None:
        self._do(self._edge.reader_done)

    def drain(self) -> None:
        self._do(self._edge.drain)

    def cancel(self) -> None:
        self._do(self._edge.cancel)

    def counts(self) -> tuple[int, int, int]:
        """Items that entered so far, that are queued now, that readers hold now; read without the lock, which a signal
        handler that asks may have interrupted."""
        return self._edge.entered, self._edge.queued, self._edge.lent

    def _do(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            answer = step(*args, **kwargs)
        if self._edge.wakeups:
            self._deliver()
        return answer

    def _deliver(self) -> None:
        """Tell those who are to be told. Who is interrupted here (Ctrl-C) leaves the others to the next call."""
        wakeups = self._edge.wakeups
        while True:
            try:
                waiter, answer = wakeups.popleft()
            except IndexError:  # also where another thread was faster
                return
            waiter.wake(answer)


def offer_to_all(channels: Sequence[Channel], frame: Frame) -> bool:
    """Let `frame` into all channels that have readers, if that needs no waiting.

    Holds all their locks at once: whoever calls this has the channels in the order of the plan.
    """
    with ExitStack() as locks:
        for channel in channels:
            locks.enter_context(channel._lock)
        edges = [channel._edge for channel in channels if not channel.is_closed]
        if not edges or not all(edge.accepts(frame.count) for edge in edges):
            return False
        for edge in edges:
            edge.offer(frame)
    for channel in channels:
        channel._deliver()
    return True


class Sleeper:
    """A waiter that blocks its thread until it is told, or until somebody stops it.

    Who tells it may be interrupted in doing so (Ctrl-C in the main thread): then only `stop` wakes it.
    """

    __slots__ = ("_answer", "_lock")

    def __init__(self) -> None:
        self._answer: Frame | Signal | None = None
        self._lock = threading.Lock()
        self._lock.acquire()

    def wake(self, answer: Frame | Signal) -> None:
        self._answer = answer
        self.stop()

    def stop(self) -> None:
        """Wake it, with an answer or without."""
        with suppress(RuntimeError):  # it is awake already
            self._lock.release()

    def sleep(self) -> Frame | Signal:
        """The answer, when it comes; `Signal.CANCELLED` if it was stopped before."""
        self._lock.acquire()
        return self._take()

    def nap(self, seconds: float) -> Frame | Signal | None:
        """The answer, None if it does not come in that time: then sleep on. A signal is handled meanwhile.

        CPython handles signals between bytecodes, in the main thread. One that comes while that thread waits for the
        GIL on its way here, or that the system gives to another thread, does not wake it: so it wakes by itself.
        """
        deadline = monotonic() + seconds
        while not self._lock.acquire(timeout=max(0.0, min(SIGNAL_SECONDS, deadline - monotonic()))):
            if monotonic() >= deadline:
                return None
        return self._take()

    def _take(self) -> Frame | Signal:
        """The answer that has come, once; `Signal.CANCELLED` if there is none."""
        answer, self._answer = self._answer, None
        return Signal.CANCELLED if answer is None else answer


class BlockingReader:
    """A channel's reading end for one thread; a `pipekit._input.Reader`."""

    def __init__(self, channel: Inbox) -> None:
        self._channel = channel
        self._sleeper = Sleeper()
        self._lent: Frame | None = None
        self._left = False

    def get(self, before_waiting: Callable[[], None]) -> Frame | None:
        answer = self._channel.get(self._sleeper)
        if answer is None:
            before_waiting()
            answer = self._wait(self._sleeper)
        if answer is Signal.END:
            return None
        if isinstance(answer, Signal):
            raise Released
        # The stage's function has given its items to another thread, which has waited here longer than the worker ran.
        if self._left:
            self._channel.give_back(answer.count, (answer,))
            raise Released
        if answer.count == 1:
            self._channel.taken(1)  # it goes into the function's hands now: nothing to give back
        else:
            self._lent = answer
        return answer

    def finished(self, items: int, seconds: float, blocked: float) -> None:
        self._channel.measured(items, seconds, blocked)
        self._release(items)

    def leave(self, consumed: int) -> None:
        self._left = True
        self._channel.withdraw(self._sleeper)
        self._release(consumed)

    def stop(self) -> None:
        """From another thread: do not wait any longer."""
        self._sleeper.stop()

    def _wait(self, sleeper: Sleeper) -> Frame | Signal:
        return sleeper.sleep()

    def _release(self, consumed: int) -> None:
        frame, self._lent = self._lent, None
        if frame is not None:
            rest = frame.rest(consumed)
            self._channel.give_back(frame.count, () if rest is None else (rest,))


class ConsumerReader(BlockingReader):
    """The consumer's reading end, which may be the main thread."""

    def _wait(self, sleeper: Sleeper) -> Frame | Signal:
        answer = sleeper.nap(inf)
        assert answer is not None
        return answer


class BlockingWriter:
    """A channel's writing end for one thread; a `pipekit._output.Writer`."""

    def __init__(self, channel: Outbox, *, pickled: bool, share: bool = False) -> None:
        self._channel = channel
        self._pickled = pickled
        self._sleeper = Sleeper()
        self._sequence = 0
        self.blocked = 0.0
        self.share = share

    @property
    def frame_size(self) -> int:
        return self._channel.frame_size

    def put(self, parts: list[object], *, plain: bool) -> bool:
        answer: Frame | Signal | None = self._channel.put(self._sleeper, self._frame(parts, plain=plain))
        if answer is None:
            started = perf_counter()
            answer = self._sleeper.sleep()
            self.blocked += perf_counter() - started
        if answer is Signal.CANCELLED:
            raise Released
        self._sequence += 1
        return answer is Signal.OK

    def stop(self) -> None:
        """From another thread: do not wait any longer."""
        self._sleeper.stop()

    def offer(self, parts: list[object], *, plain: bool) -> bool:
        accepted = self._channel.offer(self._frame(parts, plain=plain))
        self._sequence += accepted
        return accepted

    def _frame(self, parts: list[object], *, plain: bool) -> Frame:
        payload = Pickled.pack(parts, plain=plain, share=self.share) if self._pickled else parts
        return Frame(self._sequence, len(parts), payload)
