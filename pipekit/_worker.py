"""The worker loop: the one piece of code that runs a stage, in a thread, in a process or on another machine.

A worker knows its task, the end that it reads and the end that it writes; no pipeline, no plan, no backend.

    reader ── frames ──> _Input ── items ──> the stage's function ── results ──> _Output ── frames ──> writer

Items pass through `chain`, `map`, `islice` and `list.extend`: the loop is per frame, not per item.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from operator import length_hint
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol

from pipekit._errors import REPR_LENGTH, Failure, ItemNotPicklable, Released, TaskException, short_repr
from pipekit._frame import Frame, Pace, part_repr, to_part
from pipekit._task import Kind, Task

#: Seconds of its own work that a worker collects in a frame before it hands it on.
WRITER_SECONDS = 0.001
#: Seconds after which a started frame is handed on although it is not full (a slow item keeps nobody else's waiting).
HOLD = 0.005
#: Seconds that the flusher's thread gets to finish what it is doing; nothing of it takes long.
STOP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a worker ended: with a failure, or without (then it had finished, or was cancelled)."""

    failure: Failure | None = None


class Reader(Protocol):
    """Where a worker's frames come from."""

    def get(self, before_waiting: Callable[[], None]) -> Frame | None:
        """The next frame, None at the end; raises Released. Calls `before_waiting` if there is none yet."""

    def finished(self, items: int, seconds: float) -> None:
        """The last frame's items are all read and needed that long."""

    def leave(self, consumed: int) -> None:
        """The worker reads no more; of its unfinished frame, if it has one, it has read `consumed` items."""


class Writer(Protocol):
    """Where a worker's results go."""

    #: Seconds that `put` has waited so far.
    blocked: float

    @property
    def frame_size(self) -> int:
        """Results that a frame should hold now."""

    def put(self, parts: list[object]) -> None:
        """Hand on a frame, waiting for room; raises Released if nobody wants it."""

    def offer(self, parts: list[object]) -> bool:
        """Hand on a frame if that needs no waiting."""


class Flusher:
    """Hands on started frames whose worker is busy with a long item. One thread for many workers, asleep when idle."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._stopped = threading.Event()
        self._watched: set[_Output] = set()
        self._idle = False
        self._thread: threading.Thread | None = None

    def watch(self, output: _Output) -> None:
        with self._changed:
            self._watched.add(output)
            if self._thread is None and not self._stopped.is_set():
                self._thread = _started(self._run)
            elif self._idle:
                self._idle = False
                self._changed.notify()

    def unwatch(self, output: _Output) -> None:
        with self._changed:
            self._watched.discard(output)

    def stop(self) -> None:
        """End the thread and wait for it."""
        with self._changed:
            self._stopped.set()
            self._changed.notify()
            thread = self._thread
        if thread is not None:
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


class _Output:
    """Collects a worker's results into frames."""

    def __init__(self, writer: Writer, flusher: Flusher) -> None:
        self._writer = writer
        self._flusher = flusher
        self._pace = Pace(1 << 20, WRITER_SECONDS)
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        # Only the worker's thread appends, in C, without the lock; whoever sends takes what lies beyond `_sent`, under
        # the lock. Assumes that a list may be sliced while another thread appends to it: true with the GIL, and on
        # free-threaded builds by the list's own lock.
        self._parts: list[object] = []
        self._sent = 0

    def pump(self, results: Iterator[object]) -> bool:
        """Hand on one frame of results; False when there are no more."""
        size = min(self._writer.frame_size, self._pace.size)
        blocked = self._writer.blocked
        started = perf_counter()
        if size > 1:
            self._flusher.watch(self)
        try:
            self._parts.extend(islice(results, size))
        finally:
            if size > 1:
                self._flusher.unwatch(self)
        produced = len(self._parts)
        self._pace.measured(produced or 1, perf_counter() - started - (self._writer.blocked - blocked))
        self.flush()
        self._clear()
        return produced == size

    def flush_before_waiting(self) -> None:
        """Hand on what is collected, for a worker that is about to wait for input.

        Where the stage's function has given its items to another thread, that one leaves it to the flusher.
        """
        if threading.get_ident() == self._thread:
            self.flush()

    def flush(self) -> None:
        """Hand on what is collected; waits for room."""
        with self._lock:
            parts = self._take()
        if parts:
            self._writer.put(parts)

    def offer(self) -> None:
        """Hand on what is collected if that needs no waiting; for the flusher's thread."""
        with self._lock:
            sent = self._sent
            try:
                parts = self._take()
                accepted = not parts or self._writer.offer(parts)
            except (Exception, Released):  # no memory to pack them, say: the worker's own `flush` meets it again
                accepted = False
            if not accepted:
                self._sent = sent

    def _take(self) -> list[object]:
        parts = self._parts[self._sent :]
        self._sent += len(parts)
        return parts

    def _clear(self) -> None:
        with self._lock:
            self._parts = []
            self._sent = 0


class _Input:
    """The items that a stage's function reads; remembers where it stands, for messages and for giving back."""

    def __init__(self, reader: Reader, writer: Writer, before_waiting: Callable[[], None]) -> None:
        self.ended = False
        self.error: CannotTravel | None = None
        self._reader = reader
        self._writer = writer
        self._before_waiting = before_waiting
        self._parts: Sequence[Any] = ()
        self._position: Iterator[Any] = iter(())
        self._decode: Callable[[Any], object] | None = None
        self.items: Iterator[object] = chain.from_iterable(self._frames())

    def _frames(self) -> Iterator[Iterator[object]]:
        while (frame := self._reader.get(self._before_waiting)) is not None:
            blocked = self._writer.blocked
            started = perf_counter()
            self._parts, self._decode = frame.open()
            self._position = iter(self._parts)
            yield self._position if self._decode is None else map(self._decoded, self._position)
            self._reader.finished(frame.count, perf_counter() - started - (self._writer.blocked - blocked))
        self.ended = True

    def _decoded(self, part: object) -> object:
        assert self._decode is not None
        try:
            return self._decode(part)
        except BaseException as error:  # also StopIteration, which would end the frame unseen
            self.error = CannotTravel("could not unpickle an item", error)
            raise self.error from error

    def leave(self) -> None:
        """Give back what the function has not read."""
        self._reader.leave(self._consumed())
        self._parts, self._position = (), iter(())

    def last_item(self) -> str | None:
        """The shortened repr of the item that was read last."""
        consumed = self._consumed()
        if not consumed:
            return None
        return part_repr(self._parts[consumed - 1], self._decode)

    def _consumed(self) -> int:
        return len(self._parts) - length_hint(self._position)


class CannotTravel(Exception):
    """An item or result that cannot travel; the reason is its `__cause__`."""

    def __init__(self, what: str, error: BaseException) -> None:
        super().__init__(what)
        self.what = what
        self.error = error


def run_task(task: Task, worker: str, reader: Reader | None, writer: Writer, flusher: Flusher) -> Outcome:
    """Run a worker's task to its end. Raises nothing: what goes wrong is in the outcome."""
    output = _Output(writer, flusher)
    source = None if reader is None else _Input(reader, writer, output.flush_before_waiting)
    try:
        outcome = _attempt(task, worker, source, output)
        if source is not None:
            source.leave()
    except BaseException as error:  # not the stage's doing, but a worker that says nothing would be waited for
        return Outcome(describe(error, task.stage, worker, None))
    return outcome


def _attempt(task: Task, worker: str, source: _Input | None, output: _Output) -> Outcome:
    results: Iterator[object] = iter(())
    try:
        try:
            results = _start(task, source)
            parts = map(_to_part, results) if task.encode else results
            while output.pump(parts):
                pass
            _check_read_to_end(task, source)
        except Released:
            raise
        except BaseException:
            with suppress(Released):
                output.flush()  # what was finished before is handed on
            raise
        finally:
            _close(results)
    except Released:
        return Outcome()
    except BaseException as error:
        return Outcome(describe(error, task.stage, worker, source.last_item() if source is not None else None))
    return Outcome()


def _start(task: Task, source: _Input | None) -> Iterator[object]:
    if task.kind is Kind.MAP:
        assert source is not None  # the compiler lets no map stage come first
        if task.skip_errors:
            return _map_good(task, source.items)
        if not task.args and not task.kwargs:
            return map(task.function, source.items)
        return map(lambda item: task.function(item, *task.args, **task.kwargs), source.items)  # noqa: C417
    given = () if source is None else (source.items,)
    results = task.function(*given, *task.args, **task.kwargs)
    if results is None and source is not None and source.ended:  # a sink: it has read everything and gives nothing
        return iter(())
    if not isinstance(results, Iterable):
        raise TypeError(
            f"a stage's function must give an iterable of results, {task.stage!r} gave {short_repr(results)}: "
            "write `yield`, or use map_stage for a function of one item"
        )
    return iter(results)


def _map_good(task: Task, items: Iterator[object]) -> Iterator[object]:
    for item in items:
        try:
            result = task.function(item, *task.args, **task.kwargs)
        except Exception:
            continue
        yield result


def _check_read_to_end(task: Task, source: _Input | None) -> None:
    if source is None:
        return
    if source.error is not None:  # the function caught it and went on: still an item lost
        raise source.error
    if task.kind is Kind.MAP and not source.ended:  # map() takes it for the end of the items
        raise RuntimeError(f"the function of map_stage {task.stage!r} raised StopIteration")


def _to_part(result: object) -> object:
    try:
        return to_part(result)
    except BaseException as error:
        raise CannotTravel(f"could not pickle its result {short_repr(result)}", error) from error


def _close(results: Iterator[object]) -> None:
    """Run the `finally` blocks of a generator not read to its end. (A file has `close` too: it is the caller's.)"""
    if isinstance(results, Generator):
        results.close()


def describe(error: BaseException, stage: str, worker: str, item: str | None, did: str = "raised") -> Failure:
    """The failure record of an exception that was caught in a worker's own thread."""
    kind: type[TaskException] = TaskException
    if isinstance(error, CannotTravel):
        kind, did, error = ItemNotPicklable, error.what + ":", error.error
    error = error.with_traceback(_user_part(error.__traceback__))
    return Failure(
        stage=stage,
        worker=worker,
        kind=kind,
        type_name=type(error).__qualname__,
        message=f'The task "{worker}" {did} {short_repr(error, length=10 * REPR_LENGTH)}',
        traceback="".join(traceback.format_exception(error)),
        item=item,
        pid=os.getpid(),
        exception=error,
    )


def _user_part(trace: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame that is not this module's."""
    start = trace
    while start is not None and start.tb_frame.f_code.co_filename == __file__:
        start = start.tb_next
    return start or trace
