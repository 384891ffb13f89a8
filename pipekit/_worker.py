"""The worker loop: the one piece of code that runs a stage, in a thread, in a process or on another machine.

A worker knows its task, the end that it reads and the end that it writes; no pipeline, no plan, no backend.

    reader ── frames ──> Input ── items ──> the stage's function ── results ──> _Output ── frames ──> writer

Items pass through `chain`, `map`, `islice` and `list.extend`: the loop is per frame, not per item.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from operator import length_hint
from time import perf_counter
from types import TracebackType
from typing import Any, Protocol, cast

from pipekit._errors import REPR_LENGTH, Failure, ItemNotPicklable, Released, TaskException, short_repr
from pipekit._frame import Frame, Pace, part_repr, to_part
from pipekit._stats import Doing, WorkerState
from pipekit._task import Kind, Task

#: Seconds of its own work that a worker collects in a frame before it hands it on.
WRITER_SECONDS = 0.001
#: Seconds after which a started frame is handed on although it is not full (a slow item keeps nobody else's waiting).
HOLD = 0.005
#: Seconds that the flusher's thread gets to finish what it is doing; nothing of it takes long.
STOP_SECONDS = 1.0
_this_thread = threading.local()
_PACKAGE = os.path.dirname(__file__) + os.sep


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


class Activity:
    """What a worker is doing; written by the worker, read by whoever asks."""

    __slots__ = ("now", "released", "thread")

    def __init__(self) -> None:
        self.now = (Doing.STARTING, perf_counter())  # replaced as a whole, so that readers see both or neither
        self.thread = 0
        self.released = False  # it was told that its work is not wanted any more

    def begin(self, doing: Doing) -> None:
        self.now = (doing, perf_counter())


class _Output:
    """Collects a worker's results into frames."""

    def __init__(self, writer: Writer, flusher: Flusher, activity: Activity) -> None:
        self._writer = writer
        self._flusher = flusher
        self._activity = activity
        self._pace = Pace(1 << 20, WRITER_SECONDS)
        self._earlier = 0  # results before those in `_parts`
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
        if threading.get_ident() == self._activity.thread:
            self.flush()

    def flush(self) -> None:
        """Hand on what is collected; waits for room."""
        with self._lock:
            parts = self._take()
        if not parts:
            return
        doing, _ = self._activity.now
        self._activity.begin(Doing.WRITING)
        try:
            self._writer.put(parts)
        except Released:
            self._activity.released = True
            raise
        self._activity.begin(doing)

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
            self._earlier += len(self._parts)
            self._parts = []
            self._sent = 0

    @property
    def results(self) -> int:
        """Results that the function has given."""
        with self._lock:
            return self._earlier + len(self._parts)


class Input:
    """The items that a stage's function reads; remembers where it stands, for messages and for giving back."""

    def __init__(self, reader: Reader, writer: Writer, activity: Activity, before_waiting: Callable[[], None]) -> None:
        self.ended = False
        self.error: CannotTravel | None = None
        self._reader = reader
        self._writer = writer
        self._activity = activity
        self._before_waiting = before_waiting
        self._frame = _OpenFrame((), iter(()), None, 0)
        self.items: Iterator[object] = chain.from_iterable(self._frames())

    def _frames(self) -> Iterator[Iterator[object]]:
        while (frame := self._next_frame()) is not None:
            blocked = self._writer.blocked
            started = perf_counter()
            parts, decode = frame.open()
            self._frame = _OpenFrame(parts, iter(parts), decode, self.read)
            self._activity.begin(Doing.WORKING)
            yield self._frame.position if decode is None else map(self._decoded, self._frame.position)
            self._reader.finished(frame.count, perf_counter() - started - (self._writer.blocked - blocked))
        self._activity.begin(Doing.WORKING)
        self.ended = True

    def _next_frame(self) -> Frame | None:
        self._activity.begin(Doing.READING)
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
            self.error = CannotTravel("could not unpickle an item", error)
            raise self.error from error

    def leave(self) -> None:
        """Give back what the function has not read."""
        self._reader.leave(self._frame.consumed)
        self._frame = _OpenFrame((), iter(()), None, self.read)

    @property
    def read(self) -> int:
        """Items that the function has read."""
        frame = self._frame
        return frame.earlier + frame.consumed

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


class CannotTravel(Exception):
    """An item or result that cannot travel; the reason is its `__cause__`."""

    def __init__(self, what: str, error: BaseException) -> None:
        super().__init__(what)
        self.what = what
        self.error = error


class WorkerLoop:
    """A worker at its task. The thread that is the worker calls `run`, once; any thread may ask for the `state`."""

    def __init__(self, task: Task, worker: str, reader: Reader | None, writer: Writer, flusher: Flusher) -> None:
        self._task = task
        self._worker = worker
        self._activity = activity = Activity()
        self._output = _Output(writer, flusher, activity)
        self._input = None if reader is None else Input(reader, writer, activity, self._output.flush_before_waiting)

    def run(self) -> Outcome:
        """Run the task to its end. Raises nothing: what goes wrong is in the outcome."""
        self._activity.thread = threading.get_ident()
        _this_thread.names = (self._task.stage, self._worker)
        self._activity.begin(Doing.WORKING)
        try:
            failure = self._attempt()
            if self._input is not None:
                self._input.leave()
        except BaseException as error:  # not the stage's doing, but a worker that says nothing would be waited for
            failure = describe(error, self._task.stage, self._worker, None)
        self._activity.begin(Doing.ENDED)
        return Outcome(failure)

    def state(self, *, detail: bool) -> WorkerState:
        """What it is doing now; `detail`: with item and traceback (runs the `repr` of the item)."""
        doing, since = self._activity.now
        source = self._input
        return WorkerState(
            self._task.stage,
            self._worker,
            doing,
            seconds=perf_counter() - since,
            read=0 if source is None else source.read,
            results=self._output.results,
            item=source.last_item() if detail and source is not None else None,
            traceback=_where(self._activity.thread) if detail and doing is Doing.WORKING else "",
        )

    def _attempt(self) -> Failure | None:
        task, results = self._task, cast("Iterator[object]", iter(()))
        try:
            try:
                results = call_function(task, self._input)
                parts = map(_to_part, results) if task.encode else results
                while self._output.pump(parts):
                    pass
                check_read_to_end(task, self._input)
            except BaseException:
                if not self._activity.released:
                    with suppress(Released):
                        self._output.flush()  # what was finished before is handed on
                raise
            finally:
                close_generator(results)
        except BaseException as error:
            if self._activity.released and _says_released(error):
                return None
            return describe(error, task.stage, self._worker, None if self._input is None else self._input.last_item())
        return None


def names_of_this_thread() -> tuple[str, str] | None:
    """Stage and worker, in a thread that is one."""
    return getattr(_this_thread, "names", None)


def _says_released(error: BaseException) -> bool:
    """Whether all that an exception says is that the worker was released.

    Where a stage's function reads its items in a pipeline of its own, that one's source raises it.
    """
    return isinstance(error, Released) or (
        isinstance(error, TaskException) and isinstance(error.failure.exception, Released)
    )


def _where(thread: int) -> str:
    """Where the stage's code is in this thread, as a traceback without the frames of this module; "" if nowhere."""
    frame = sys._current_frames().get(thread)
    stack = [] if frame is None else traceback.extract_stack(frame)
    ours = [index for index, entry in enumerate(stack) if entry.filename == __file__]
    return "".join(traceback.format_list(stack[ours[-1] + 1 :] if ours else stack))


def call_function(task: Task, source: Input | None) -> Iterator[object]:
    """The results of the stage's function, called with the items of `source`."""
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


def check_read_to_end(task: Task, source: Input | None) -> None:
    """Raise what the function has hidden: it has given all its results, but an item was lost on the way."""
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


def close_generator(results: Iterator[object]) -> None:
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
    """The traceback from the first frame that is not pipekit's."""
    start = trace
    while start is not None and start.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        start = start.tb_next
    return start or trace
