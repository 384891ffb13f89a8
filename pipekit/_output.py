"""The writing end of a worker: results are collected into frames."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from time import perf_counter
from typing import Any, Protocol

from pipekit._activity import Activity
from pipekit._errors import Released
from pipekit._frame import Pace
from pipekit._stats import Doing

#: Seconds of its own work that a worker collects in a frame before it hands it on.
WRITER_SECONDS = 0.001
#: Results that it collects at most before it looks how long that took.
MOST = 1 << 20
#: Seconds after which a started frame is handed on although it is not full (a slow item keeps nobody else's waiting).
HOLD = 0.005
#: Seconds that the flusher's thread gets to finish what it is doing; nothing of it takes long.
STOP_SECONDS = 1.0


class Writer(Protocol):
    """Where a worker's results go: the writing end of an outbox."""

    #: Seconds that `put` has waited so far.
    blocked: float

    @property
    def is_wanted(self) -> bool:
        """Whether anybody reads there; False also if the run stops. Returns at once."""

    @property
    def frame_size(self) -> int:
        """Results that a frame should hold now."""

    def put(self, parts: list[object]) -> bool:
        """Hand on a frame, waiting for room; False if nobody reads there any more. Raises Released if cancelled."""

    def offer(self, parts: list[object]) -> bool:
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
        while not self._stopped.wait(HOLD):
            with self._changed:
                self._idle = not self._watched
                self._changed.wait_for(lambda: not self._idle or self._stopped.is_set())
                watched = list(self._watched)
            for output in watched:
                output.offer()


def _started(target: Callable[[], None]) -> threading.Thread | None:
    thread = threading.Thread(target=target, name="pipekit-flusher", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is exiting, or there are no more threads to be had: frames go when full
        return None
    return thread


class Output:
    """Collects a worker's results into frames, for one writer or for several.

    addressed: each result comes as pairs (index of a writer, part), one for each writer that it goes to.
    """

    def __init__(self, writers: Sequence[Writer], flusher: Flusher, activity: Activity, *, addressed: bool) -> None:
        self._collections = [_Collection(writer) for writer in writers]
        self._is_addressed = addressed
        self._flusher = flusher
        self._activity = activity
        self._pace = Pace(MOST, WRITER_SECONDS)
        self._addressed = 0  # results that came as pairs

    @property
    def blocked(self) -> float:
        """Seconds that the worker has waited for room."""
        return sum(collection.writer.blocked for collection in self._collections)

    @property
    def results(self) -> int:
        """Results that the function has given."""
        return self._addressed or self._collections[0].collected

    def pump(self, results: Iterator[object]) -> bool:
        """Hand on about a frame of results; False when there are no more."""
        size = min(self._pace.size, self._most)
        collect = self._collect_addressed if self._is_addressed else self._collect_all
        blocked = self.blocked
        started = perf_counter()
        # Of several writers, one may have no room while others have: what is for these is handed on meanwhile.
        watched = size > 1 or self._is_addressed
        if watched:
            self._flusher.watch(self)
        try:
            produced = collect(islice(results, size))
            self._pace.measured(produced or 1, perf_counter() - started - (self.blocked - blocked))
            self.flush()
        finally:
            if watched:
                self._flusher.unwatch(self)
        if self._is_addressed:
            self._look()  # also where nothing was put: all results may be for branches that have ended, or dropped
        for collection in self._collections:
            collection.clear()
        return produced == size

    @property
    def _most(self) -> int:
        """What is collected for all results' one writer is one frame. Of several, each gets its frames as they fill."""
        return MOST if self._is_addressed else self._collections[0].writer.frame_size

    def _collect_all(self, parts: Iterator[object]) -> int:
        (collection,) = self._collections
        collection.parts.extend(parts)
        return len(collection.parts)

    def _collect_addressed(self, results: Iterator[Any]) -> int:
        before, collections = self._addressed, self._collections
        full: list[_Collection] = []
        for pairs in results:
            self._addressed += 1
            for index, part in pairs:
                if collections[index].add(part):
                    full.append(collections[index])
            while full:
                self._flush(full.pop())
        return self._addressed - before

    def flush_before_waiting(self) -> None:
        """Hand on what is collected, for a worker that is about to wait for input.

        Where the stage's function has given its items to another thread, that one leaves it to the flusher.
        """
        if threading.get_ident() == self._activity.thread:
            self.flush()

    def flush(self) -> None:
        """Hand on what is collected; waits for room."""
        for collection in self._collections:
            self._flush(collection)

    def _flush(self, collection: _Collection) -> None:
        parts = collection.take()
        if not parts:
            return
        doing, _ = self._activity.now
        self._activity.begin(Doing.WRITING)
        try:
            collection.wanted = collection.wanted and collection.writer.put(parts)
            self._check_wanted()
        except Released:
            self._activity.released = True
            raise
        self._activity.begin(doing)

    def _look(self) -> None:
        for collection in self._collections:
            collection.wanted = collection.wanted and collection.writer.is_wanted
        self._check_wanted()

    def _check_wanted(self) -> None:
        if not any(collection.wanted for collection in self._collections):
            self._activity.released = True
            raise Released

    def offer(self) -> None:
        """Hand on what is collected if that needs no waiting; for the flusher's thread."""
        for collection in self._collections:
            collection.offer()


class _Collection:
    """What is collected for one writer."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer
        self.wanted = True  # somebody reads there
        self._earlier = 0  # results before those in `parts`
        self._lock = threading.Lock()
        # Only the worker's thread appends, in C, without the lock; whoever sends takes what lies beyond `_sent`, under
        # the lock. Assumes that a list may be sliced while another thread appends to it: true with the GIL, and on
        # free-threaded builds by the list's own lock.
        self.parts: list[object] = []
        self._sent = 0
        self._free = 1  # of the frame that is being filled, where they are added one by one

    @property
    def collected(self) -> int:
        with self._lock:
            return self._earlier + len(self.parts)

    def add(self, part: object) -> bool:
        """Add one; True when the frame is full."""
        self.parts.append(part)
        self._free -= 1
        return self._free <= 0

    def take(self) -> list[object]:
        """What has not been handed on, to be handed on now."""
        self._free = self.writer.frame_size
        with self._lock:
            return self._take()

    def offer(self) -> None:
        with self._lock:
            sent = self._sent
            try:
                parts = self._take()
                accepted = not parts or self.writer.offer(parts)
            except (Exception, Released):  # no memory to pack them, say: the worker's own `flush` meets it again
                accepted = False
            if not accepted:
                self._sent = sent

    def clear(self) -> None:
        with self._lock:
            self._earlier += len(self.parts)
            self.parts = []
            self._sent = 0

    def _take(self) -> list[object]:
        parts = self.parts[self._sent :]
        self._sent += len(parts)
        return parts
