"""The worker's side of a remote worker, whatever carries the messages: what it says to its parent, and what it hears.

What the two sides say to each other is in `_wire`; the parent's side is `_remote`.
"""

from __future__ import annotations

import math
import pickle
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue
from time import perf_counter

from pipekit._arena import own_store
from pipekit._errors import Released
from pipekit._frame import Frame, Pickled
from pipekit._live import loading_functions
from pipekit._output import Flusher
from pipekit._pickling import PROTOCOL, decode
from pipekit._stats import Doing, WorkerState
from pipekit._task import Names
from pipekit._worker import Outcome, WorkerLoop, describe
from pipekit.backends._blocks import WorkersBlocks, own_blocks, unpacked
from pipekit.backends._logs import Levels, forward_logs
from pipekit.backends._wire import AHEAD, PROGRESS, SHARED, Message, Say, pack_failure

#: Seconds of work that a worker likes to have ahead. The way to the parent and back takes up to 0.5 ms where all cores
#: are busy, and some 10 ms where Python code of the program holds the GIL (it gives it away after 5 ms). For slower
#: items asking ahead would only bind them to a busy worker while another is idle. Measured: without asking ahead, items
#: of 5 ms took 8 % longer, beside two programs that share the work.
AHEAD_SECONDS = 0.02
#: Frames that it has ahead at most.
MOST_AHEAD = 6
#: Log records that a worker may send before the parent has handled them, and the seconds that it waits with another.
LOGS_AHEAD = 1000
LOG_WAIT_SECONDS = 1.0


def run_task(link: Link, message: Message, names: Names, levels: Levels | None, flusher: Flusher) -> Outcome:
    """Run the task that the parent's first message has brought. Raises nothing."""
    loading = names[0]
    try:
        *pickled, rest = pickle.loads(message.body)
        steps = []
        for loading, step in zip(names, pickled, strict=True):
            with loading_functions(loading[0]):
                steps.append(decode(step))
        with loading_functions(loading[0]):
            task = replace(decode(rest), steps=tuple(steps))
        forward_logs(levels, link.names, link.log)  # again: modules may have set up handlers as the parent's have
    except BaseException as error:
        return Outcome(describe(error, *loading, None, did="could not load its function:"))
    for writer, share in zip(link.writers, task.shared, strict=True):
        writer.share = share
    worker = names[0][1]
    link.loop = loop = WorkerLoop(task, worker, link.reader if task.has_input else None, link.writers, flusher)
    if link.stopped:  # before it had a loop
        loop.stop()
    return loop.run()


class Link(ABC):
    """A remote worker's connection to the parent: where what it hears goes.

    ahead_seconds: of work that it likes to have ahead.
    node: the machine that it runs on, for messages, where that is not the parent's by its nature.
    """

    def __init__(self, names: Names, *, ahead_seconds: float = AHEAD_SECONDS, node: str | None = None) -> None:
        self.reader = LinkReader(self, ahead_seconds)
        self.writers: list[LinkWriter] = []
        self.loop: WorkerLoop | None = None
        self.stopped = False
        self.blocks = WorkersBlocks()
        self._names = names
        self._node = node
        self._logs = _Allowance(LOGS_AHEAD)

    @abstractmethod
    def send(self, message: Message) -> None:
        """Say something to the parent, from any thread; the order stays. Raises Released if the parent has gone."""

    def open_writers(self, task: Message) -> None:
        """The task has come: have the outboxes that it puts results into."""
        self.writers = [LinkWriter(self, outbox) for outbox in range(task.count)]

    def hears_in_this_thread(self) -> None:
        """This thread calls `handle`."""
        self._logs.given_by_this_thread()

    def names(self) -> tuple[str, str]:
        """Stage and worker, of the function that is in a call."""
        return self._names[0] if self.loop is None else self.loop.names()

    def log(self, body: bytes) -> None:
        """Send a log record; waits while the parent has many that it has not handled yet."""
        self._logs.take()
        with suppress(Released):
            self.send(Message(Say.LOG, body=body))

    def finish(self, outcome: Outcome) -> None:
        """Report the outcome, the worker's last words."""
        finished, consumed = self.reader.position
        if outcome.failure is None:
            self.send(Message(Say.DONE, consumed, finished))
        else:
            failure = replace(outcome.failure, node=self._node)
            self.send(Message(Say.FAILED, consumed, finished, pack_failure(failure)))

    def handle(self, message: Message) -> None:
        """Do what the parent has said."""
        if message.kind is Say.FRAME or message.kind is Say.END:
            self.reader.arrived(message)
        elif message.kind is Say.CREDIT:
            self.writers[message.outbox].credited(message)
            if message.body:
                own_store().free(unpacked(message.body))
        elif message.kind is Say.ASK:
            self._tell_state(detail=bool(message.count))
        elif message.kind is Say.LOGGED:
            self._logs.give(message.count)
        else:
            self.stop()

    def _tell_state(self, *, detail: bool) -> None:
        if self.loop is None:
            states = tuple(WorkerState(stage, worker, Doing.STARTING) for stage, worker in self._names)
        else:
            states = self.loop.states(detail=detail)
        with suppress(Released):
            self.send(Message(Say.STATE, body=pickle.dumps(states, PROTOCOL)))

    def stop(self) -> None:
        """The results are not wanted any more."""
        self.stopped = True
        if self.loop is not None:
            self.loop.stop()
        self._logs.lift()
        self.reader.arrived(Message(Say.STOP))
        for writer in self.writers:
            writer.stop()


class _Allowance:
    """How many log records may be under way."""

    def __init__(self, size: int) -> None:
        self._left = size
        self._lifted = False
        self._giver = 0  # ident of the thread that gives, once it runs
        self._changed = threading.Condition()

    def given_by_this_thread(self) -> None:
        """This thread gives, and never waits: destructors that log may run in it."""
        self._giver = threading.get_ident()

    def take(self) -> None:
        """Take one; wait for it, but not without end: who logs may hold a lock that the thread needs which gives."""
        with self._changed:
            if threading.get_ident() != self._giver:
                self._changed.wait_for(lambda: self._left > 0 or self._lifted, timeout=LOG_WAIT_SECONDS)
            self._left -= 1

    def give(self, size: int) -> None:
        """Give some back."""
        with self._changed:
            self._left += size
            self._changed.notify_all()

    def lift(self) -> None:
        """Nobody waits any more."""
        with self._changed:
            self._lifted = True
            self._changed.notify_all()


class LinkReader:
    """The worker's input; a `pipekit._input.Reader`."""

    def __init__(self, link: Link, ahead_seconds: float) -> None:
        self._link = link
        self._ahead_seconds = ahead_seconds
        self._arrived: SimpleQueue[Message] = SimpleQueue()
        self._asked = False  # and not answered yet
        self._ahead = 0  # frames that it likes to have ahead
        self._seconds_before = math.inf  # that the frame before the last one took
        self._finished_frames = 0
        self._taken = 0  # items taken for good, not yet told
        self._progress = (0, 0.0, 0.0)
        self._in_frame = False
        self._consumed = 0  # items read of an unfinished frame, once the worker has left

    @property
    def position(self) -> tuple[int, int]:
        """Frames finished, and items read of the one after them."""
        return self._finished_frames, self._consumed

    def arrived(self, message: Message) -> None:
        self._arrived.put(message)

    def get(self, before_waiting: Callable[[], None]) -> Frame | None:
        if self._arrived.empty():
            if not self._asked:
                self._tell(wanted=1 + self._ahead)
            elif self._taken:  # END comes only when everybody has told that nothing can come back
                self._tell(wanted=0)
            before_waiting()
        message = self._arrived.get()
        self._asked = self._asked and bool(message.outbox & AHEAD)
        if message.kind is Say.END:
            return None
        if message.kind is Say.STOP:
            self._arrived.put(message)  # for whoever swallows the exception and reads on
            raise Released
        self._in_frame = True
        if message.count == 1:
            self._taken += 1
        self._tell_in_time()
        payload = message.elsewhere
        if payload is None:
            leases = self._link.blocks.received(message.blocks)
            payload = Pickled(message.body, leases, bool(message.outbox & SHARED))
        return Frame(message.sequence, message.count, payload)

    def finished(self, items: int, seconds: float, blocked: float) -> None:
        self._in_frame = False
        self._finished_frames += 1
        self._taken += items if items > 1 else 0
        self._progress = (items, seconds, blocked)
        usual = min(seconds, self._seconds_before)  # one slow item among fast ones is no reason to wait for the next
        self._seconds_before = seconds
        self._ahead = min(MOST_AHEAD, math.ceil(self._ahead_seconds / max(usual, 1e-9)) - 1)

    def leave(self, consumed: int) -> None:
        self._consumed = consumed if self._in_frame else 0

    def _tell_in_time(self) -> None:
        """Ask for more when half of what it likes to have ahead is used up. Of slow items, tell each that is taken."""
        here = self._arrived.qsize()
        if not self._asked and 2 * here <= self._ahead - 1:
            self._tell(wanted=self._ahead - here)
        elif self._taken and not self._ahead:
            self._tell(wanted=0)

    def _tell(self, *, wanted: int) -> None:
        body = PROGRESS.pack(*self._progress, wanted) + self._link.blocks.dropped()
        self._link.send(Message(Say.NEXT, self._taken, self._finished_frames, body))
        self._asked = self._asked or wanted > 0
        self._taken = 0
        self._progress = (0, 0.0, 0.0)


class LinkWriter:
    """One of the worker's outboxes; a `pipekit._output.Writer`. Starts with one credit."""

    def __init__(self, link: Link, outbox: int) -> None:
        self.frame_size = 1
        self.blocked = 0.0
        self.share = False
        self._link = link
        self._outbox = outbox
        self._changed = threading.Condition()
        self._credits = 1
        self._stopped = False
        self._closed = False  # nobody reads there any more
        self._sequence = 0

    def credited(self, message: Message) -> None:
        with self._changed:
            self.frame_size = message.count or 1
            self._closed = message.count == 0
            self._credits += message.sequence
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def put(self, parts: list[object], *, plain: bool) -> bool:
        payload = Pickled.pack(parts, plain=plain, share=self.share)
        with self._changed:
            if not self._credits and not self._stopped:
                started = perf_counter()
                self._changed.wait_for(lambda: self._credits or self._stopped)
                self.blocked += perf_counter() - started
            if self._stopped:
                raise Released
            if self._closed:
                return False
            message = self._next_message(payload, len(parts))
        self._send(message, payload)
        return True

    def offer(self, parts: list[object], *, plain: bool) -> bool:
        if not self._credits:
            return False
        payload = Pickled.pack(parts, plain=plain, share=self.share)
        with self._changed:
            if not self._credits or self._stopped or self._closed:
                return False
            message = self._next_message(payload, len(parts))
        self._send(message, payload)
        return True

    def _next_message(self, payload: Pickled, count: int) -> Message:
        self._credits -= 1
        self._sequence += 1
        return Message(Say.FRAME, count, self._sequence, payload.body, self._outbox, own_blocks(payload.leases))

    def _send(self, message: Message, payload: Pickled) -> None:
        self._link.send(message)
        for lease in payload.leases:
            lease.hand_over()
