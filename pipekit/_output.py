"""The writing end of a worker: results are collected into frames."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import filterfalse, islice
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pipekit._activity import Activity
from pipekit._errors import Released
from pipekit._frame import UNCHANGING, Pace, part_of
from pipekit._gil import gil_is_on
from pipekit._signals import start_thread
from pipekit._stats import Doing
from pipekit._task import FRAME_SECONDS

if TYPE_CHECKING:
    from pipekit._outlet import Outlet

#: Results that it collects at most before it looks how long that took.
MOST = 1 << 20
#: Times the work that a frame holds, after which a started one is handed on although it is not full (a slow item keeps
#: nobody else's waiting), and seconds after which is looked again whether there is one: no result waits longer than
#: both together, 9 ms between threads and processes.
HOLD, TICK = 2, 0.003
#: A frame of so many results is of quick ones: each took at most 3 us. `list.extend` is told how many to expect, so
#: that the list does not grow in steps. Measured, for identity stages: 4 % of the time with a GIL, 9 % without.
QUICK = 1 << 10
#: Seconds of work after which a worker that chooses where its results go rests, and how long: where they go nowhere, it
#: waits for nothing. Another thread that needs the GIL, to hear that the run is over, asks for it only after 5 ms in
#: which it was not let go; a stage that lets it go for moments (`os.stat`, a read) has it back before the other wakes.
#: Measured, with such a source: without a rest 24 % of 200 had not stopped after 0.7 s; with it all within 0.05 s.
WORK, REST = 0.02, 0.0001
#: Seconds that the flusher's thread gets to finish what it is doing; nothing of it takes long.
STOP_SECONDS = 1.0

#: At the start. Where it is switched on later, all stays right.
GIL = gil_is_on()


def _append_each(parts: list[Any], results: Iterator[Any]) -> None:
    deque(filterfalse(parts.append, results), maxlen=0)  # `append` returns None: every result passes


#: Add results to a list from which another thread takes those that are there. Without a GIL, `list.extend` has the
#: list's lock while it makes the next result; to lock it for each costs 24 ns.
_extend: Callable[[list[Any], Iterator[Any]], None] = list.extend if GIL else _append_each


class _Expected:
    """Results, and how many are expected: what `list.extend` asks an iterable."""

    def __init__(self, results: Iterator[Any], most: int) -> None:
        self._results = results
        self._most = most

    def __iter__(self) -> Iterator[Any]:
        return self._results

    def __length_hint__(self) -> int:
        return self._most


class Batch(NamedTuple):
    """Some of a worker's results: what a map stage makes of one frame, or all that there are.

    most: how many they are at most.
    exact: they are as many, unless `map` has taken a StopIteration of the user's function for their end.
    """

    results: Iterator[Any]
    most: int
    exact: bool


class Writer(Protocol):
    """Where a worker's results go: the writing end of an outbox."""

    #: Seconds that `put` has waited so far.
    blocked: float
    #: Whether big buffers of pickled results may go into this process's arena.
    share: bool

    @property
    def frame_size(self) -> int:
        """Results that a frame should hold now."""

    def put(self, parts: list[object], *, plain: bool) -> bool:
        """Hand on a frame, waiting for room; False if nobody reads there any more. Raises Released if cancelled.

        plain: none of the parts can change, and none is pickled by itself.
        """

    def offer(self, parts: list[object], *, plain: bool) -> bool:
        """Hand on a frame if that needs no waiting."""


class Flusher:
    """Hands on started frames whose worker is busy with a long item. One thread for many workers, asleep when idle."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._watched: set[Output] = set()
        self._idle = False
        self._thread: threading.Thread | None = None

    def watch(self, output: Output) -> None:
        with self._changed:
            self._watched.add(output)
            if self._thread is None and not self._stopped.is_set():
                self._thread = _started(self._run)
            elif self._idle:
                self._idle = False
                self._changed.notify()

    def unwatch(self, output: Output) -> None:
        with self._changed:
            self._watched.discard(output)

    def stop(self) -> None:
        """End the thread and wait for it."""
        with self._changed:
            self._stopped.set()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():  # a destructor that it ran may close all
            thread.join(STOP_SECONDS)

    def _run(self) -> None:
        while not self._stopped.wait(TICK):
            with self._changed:
                self._idle = not self._watched
                self._changed.wait_for(lambda: not self._idle or self._stopped.is_set())
                watched = list(self._watched)
            now = perf_counter()
            for output in watched:
                output.offer_late(now)


def _started(target: Callable[[], object]) -> threading.Thread | None:
    thread = threading.Thread(target=target, name="pipekit-flusher", daemon=True)
    try:
        start_thread(thread)
    except RuntimeError:  # the interpreter is exiting, or there are no more threads to be had: frames go when full
        return None
    return thread


class Output(ABC):
    """Collects a worker's results and hands them on in frames."""

    def __init__(self, flusher: Flusher, activity: Activity, frame_seconds: float) -> None:
        self._flusher = flusher
        self._activity = activity
        self._pace = Pace(MOST, frame_seconds)  # of its own work
        self._hold = HOLD * frame_seconds
        self._collecting = False  # several results: then the flusher watches
        self._since = 0.0  # when it began to collect them
        self._stopped = False
        self._batch: Batch | None = None  # which is being collected
        self._ended = False

    def stop(self) -> None:
        """The results are not wanted any more; from any thread. A worker that never hands on anything hears it so."""
        self._stopped = True

    def pump(self, batches: Iterator[Batch]) -> bool:
        """Hand on about a frame of results; False when there are no more. Raises Released if they are not wanted."""
        self._check_stopped()
        size = min(self._pace.size, self._frame_size)
        blocked = self.blocked
        self._since = started = perf_counter()
        self._collecting = size > 1
        if size > 1:
            self._flusher.watch(self)
        try:
            produced = self._collect(batches, size)
        finally:
            self._collecting = False
            if size > 1:
                self._flusher.unwatch(self)
        self._pace.measured(produced or 1, perf_counter() - started - (self.blocked - blocked))
        self._finish_frame()
        return not self._ended

    def _collect(self, batches: Iterator[Batch], size: int) -> int:
        """Collect so many results, or all that there are; how many they were."""
        produced = 0
        while produced < size and not self._ended:
            batch = self._batch or next(batches, None)
            if batch is None:
                self._ended = True
                break
            wanted = min(batch.most, size - produced)
            # A batch that is small enough is taken as it is: `islice` would count each result, at 15 ns.
            added = self._add(batch.results if wanted == batch.most else islice(batch.results, wanted), wanted)
            produced += added
            self._batch = batch._replace(most=batch.most - added) if added == wanted < batch.most else None
            self._ended = batch.exact and added < wanted
        return produced

    def close(self) -> None:
        """Let the results go that have not been collected."""
        self._batch = None

    def flush_before_waiting(self) -> None:
        """Hand on what is collected, for a worker that is about to wait for input.

        Where the stage's function has given its items to another thread, that one leaves it to the flusher.
        """
        if threading.get_ident() == self._activity.thread:
            self.flush()

    @property
    @abstractmethod
    def results(self) -> int:
        """Results that the function has given."""

    @property
    @abstractmethod
    def blocked(self) -> float:
        """Seconds that the worker has waited for room."""

    @abstractmethod
    def flush(self) -> None:
        """Hand on what is collected; waits for room."""

    @abstractmethod
    def _finish_frame(self) -> None:
        """Hand on what is collected, and begin a new frame."""

    def offer_late(self, now: float) -> None:
        """Hand on what has been collected for long, if that needs no waiting; for the flusher's thread."""
        if now - self._since >= self._hold:
            self.offer()

    @abstractmethod
    def offer(self) -> None:
        """Hand on what is collected if that needs no waiting."""

    @property
    @abstractmethod
    def _frame_size(self) -> int:
        """Results to collect at most."""

    @abstractmethod
    def _add(self, results: Iterator[Any], most: int) -> int:
        """Collect all these results, at most so many; how many they were."""

    def _put(self, writer: Writer, parts: list[object], *, plain: bool) -> bool:
        doing, _ = self._activity.now
        self._activity.begin(Doing.WRITING)
        try:
            wanted = writer.put(parts, plain=plain)
        except Released:
            self._activity.released = True
            raise
        self._activity.begin(doing)
        return wanted

    def _watch(self, *, on: bool) -> None:
        if on:
            self._flusher.watch(self)
        else:
            self._flusher.unwatch(self)

    def _check_stopped(self) -> None:
        if self._stopped:
            self._release()

    def _release(self) -> None:
        self._activity.released = True
        raise Released


class OneOutput(Output):
    """All results go to one writer, and are collected in C.

    pickled: whether each is pickled before the function goes on, unless it is of a type whose values cannot change.
    """

    def __init__(
        self,
        writer: Writer,
        flusher: Flusher,
        activity: Activity,
        *,
        pickled: bool,
        frame_seconds: float = FRAME_SECONDS,
    ) -> None:
        super().__init__(flusher, activity, frame_seconds)
        self._collection = _Collection(writer, pickled=pickled)
        self._earlier = 0  # results before those in the collection
        self._offering: threading.Thread | None = None

    @property
    def results(self) -> int:
        return self._earlier + len(self._collection.parts)

    @property
    def blocked(self) -> float:
        return self._collection.writer.blocked

    @property
    def _frame_size(self) -> int:
        return self._collection.writer.frame_size

    def _add(self, results: Iterator[Any], most: int) -> int:
        collection = self._collection
        before = len(collection.parts)
        if collection.pickled:
            collection.extend_pickled(results)
        elif most < QUICK:
            _extend(collection.parts, results)
        else:
            collection.extend_quick(results, most)
        return len(collection.parts) - before

    def flush(self) -> None:
        self._flush(self._collection.take(), plain=self._collection.plain)

    def _finish_frame(self) -> None:
        self._earlier += len(self._collection.parts)
        plain = self._collection.plain
        self._flush(self._collection.take_out(), plain=plain)

    def _flush(self, parts: list[object], *, plain: bool) -> None:
        if parts and not self._put(self._collection.writer, parts, plain=plain):
            self._release()

    def offer(self) -> None:
        """Hand on what is collected if that needs no waiting.

        Quick results that a slow one keeps locked, which only computes, are waited for by a thread of their own; it has
        the collection's lock meanwhile.
        """
        if self._offering is not None and self._offering.is_alive():
            return
        if not self._collection.offer():
            self._offering = _started(partial(self._collection.offer, wait=True))


class ManyOutputs(Output):
    """For each result, an outlet says which writers it goes to.

    pickled: for each writer, whether it gets its results pickled; each result is pickled at most once.
    """

    def __init__(
        self,
        writers: Sequence[Writer],
        outlet: Outlet,
        pickled: Sequence[bool],
        flusher: Flusher,
        activity: Activity,
        *,
        frame_seconds: float = FRAME_SECONDS,
    ) -> None:
        super().__init__(flusher, activity, frame_seconds)
        self._outlet = outlet
        self._collections = [_Collection(writer, pickled=form) for writer, form in zip(writers, pickled, strict=True)]
        self._wanted = len(writers)  # those at which somebody reads
        self._blocked = 0.0
        self._results = 0
        self._holding: set[_Collection] = set()  # those that hold results; changed by the worker, under the lock
        self._lock = threading.Lock()
        self._rested = perf_counter()

    @property
    def results(self) -> int:
        return self._results

    @property
    def blocked(self) -> float:
        return self._blocked

    @property
    def _frame_size(self) -> int:
        return MOST  # each writer gets its frames as they fill

    def _add(self, results: Iterator[Any], most: int) -> int:
        before = self._results
        for result in results:
            self._check_stopped()
            self._results += 1
            for full in self._distribute(result):
                self._flush(full)
        return self._results - before

    def _distribute(self, result: object) -> list[_Collection]:
        """Add a result where it goes; the collections that are full now."""
        wanted = [self._collections[index] for index in self._outlet(result) if self._collections[index].wanted]
        pickled = [collection.writer for collection in wanted if collection.pickled]
        # A lease has one frame to travel in: what goes to several outboxes has its buffers in its pickle.
        part = part_of(result, share=len(pickled) == 1 and pickled[0].share) if pickled else None
        full = []
        for collection in wanted:
            if not collection.parts:
                with self._lock:
                    self._holding.add(collection)
            if collection.add(part if collection.pickled else result):
                full.append(collection)
        return full

    def flush(self) -> None:
        if len(self._holding) > 1:
            for collection in list(self._holding):
                collection.offer(own=True)  # one without room does not keep what others have room for
        for collection in list(self._holding):
            self._flush(collection)

    def _finish_frame(self) -> None:
        self.flush()
        if GIL and perf_counter() - self._rested > WORK:
            sleep(REST)
            self._rested = perf_counter()

    def _flush(self, collection: _Collection) -> None:
        plain = collection.plain
        parts = collection.take_out()
        with self._lock:
            self._holding.discard(collection)
        if not parts:
            return
        # While it waits for room there, the flusher hands on what is for the others.
        self._watch(on=bool(self._holding))
        blocked = collection.writer.blocked
        try:
            collection.wanted = self._put(collection.writer, parts, plain=plain)
        finally:
            self._blocked += collection.writer.blocked - blocked
            self._watch(on=self._collecting)
        if not collection.wanted:
            self._wanted -= 1
        if not self._wanted:
            self._release()

    def offer(self) -> None:
        with self._lock:
            holding = list(self._holding)
        for collection in holding:
            collection.offer()


class _Collection:
    """What is collected for one writer.

    parts: the results as they leave; the last one may be as it came, see `extend_pickled`.
    plain: none of them is pickled by itself.
    """

    def __init__(self, writer: Writer, *, pickled: bool) -> None:
        self.writer = writer
        self.pickled = pickled
        self.wanted = True  # somebody reads there
        # Only the worker's thread appends, without the lock; whoever sends takes what lies beyond `_sent`, under the
        # lock. Assumes that a list may be sliced while another thread appends to it: true with a GIL, and without one
        # by the list's own lock.
        self.parts: list[object] = []
        self.plain = pickled
        self._unready = False  # the last part may be a result that must be pickled first
        self._locked = False  # `parts` may be, for as long as the function computes; set under the lock
        self._sent = 0
        self._free = 1  # of the frame that is being filled, where they are added one by one
        self._lock = threading.Lock()

    def extend_quick(self, results: Iterator[Any], most: int) -> None:
        """Add results that take little time. Without a GIL, the list is locked meanwhile, unless this thread waits."""
        with self._lock:
            self._locked = not GIL
        try:
            self.parts.extend(_Expected(results, most))
        finally:
            self._locked = False

    def extend_pickled(self, results: Iterator[Any]) -> None:
        """Add results, each pickled before the next one is made, if its value can change.

        As long as none can, that is seen in C: `append` gives None, so `filterfalse` keeps each result in `parts` and
        passes it on to be looked at, and `all` stops at the first that can change. Measured, for integers: two thirds
        of what a Python function takes that is called for each.
        """
        if self.plain:
            self._unready = True
            if all(map(UNCHANGING.__contains__, map(type, filterfalse(self.parts.append, results)))):
                self._unready = False
                return
            self._pickle_last()
        _extend(self.parts, map(partial(part_of, share=self.writer.share), results))

    def _pickle_last(self) -> None:
        with self._lock:
            last = self.parts.pop()
            self._unready = False
        part = part_of(last, share=self.writer.share)
        with self._lock:
            self.parts.append(part)
            self.plain = False

    def add(self, part: object) -> bool:
        """Add one; True when the frame is full."""
        self.plain = False
        self.parts.append(part)
        self._free -= 1
        return self._free <= 0

    def take(self) -> list[object]:
        """What has not been handed on. It stays in `parts`, to which something may be appended meanwhile."""
        with self._lock:
            return self._take()

    def take_out(self) -> list[object]:
        """What has not been handed on, and begin a new frame; for the thread that adds."""
        with self._lock:
            parts = self._take() if self._sent else self.parts  # a large list is not copied
            self.plain = self.pickled and (self.plain or tuple not in set(map(type, parts)))
            self.parts = []
            self._sent = 0
        self._free = self.writer.frame_size
        return parts

    def offer(self, *, wait: bool = False, own: bool = False) -> bool:
        """Hand on what is there, if there is room; False if the list is locked, and not to be waited for.

        own: in the worker's thread, which meets what goes wrong.
        """
        with self._lock:
            if self._locked and not wait:
                return False
            sent = self._sent
            try:
                parts = self._take()
                accepted = not parts or self.writer.offer(parts, plain=self.plain)
            except Released:  # the worker's own `flush` meets it again
                accepted = False
            except Exception:  # no memory to pack them, say
                if own:  # or an exception of a signal handler: they may have been handed on
                    raise
                accepted = False
            if not accepted:
                self._sent = sent
        return True

    def _take(self) -> list[object]:
        parts = self.parts[self._sent :]
        if self._unready and parts and type(parts[-1]) not in UNCHANGING:
            parts.pop()
        self._sent += len(parts)
        return parts
