"""A run: starts a plan's workers, watches over them, ends them.

One state machine: new, running, stopping, stopped. Whatever ends the run first is its cause; what comes later is noted.
Workers report from any thread; the decision is taken under the run's lock, the acting (telling channels and workers)
happens outside it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from enum import Enum
from functools import partial
from time import monotonic, perf_counter
from typing import Any

from pipekit._channel import BlockingReader, Channel, ConsumerReader
from pipekit._edge import Edge
from pipekit._errors import Failure, PipekitError, Released, StartError
from pipekit._fan_out import FanOut
from pipekit._frame import CannotTravel, Frame
from pipekit._graph import claim_all
from pipekit._layout import add_place
from pipekit._live import forget, is_exiting, remember, stop_all_at_exit
from pipekit._plan import Plan, PlannedGroup
from pipekit._stats import RunStats, StageStats
from pipekit._task import Names, worker_names
from pipekit._watch import PatientReader, Watch
from pipekit._worker import Outcome, describe
from pipekit.backends._base import Backend, Executor, Worker

#: Seconds that workers get to stop by themselves, before they are stopped by force.
GRACE = 0.7
#: Seconds after which `stop` returns in any case (leaving takes less than 2 s, a promise).
PATIENCE = 1.3


class State(Enum):
    NEW = "new"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"


class Run:
    """One run of a plan; made by `results()`, used once."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._channels = [Channel(Edge(edge.limits, edge.writers, edge.readers)) for edge in plan.edges]
        self._outboxes = [[self._outbox(group, edges) for edges in group.outboxes] for group in plan.groups]
        self._executors: dict[Backend, Executor] = {}
        self._workers_by_group: list[list[Worker]] = [[] for _ in plan.groups]
        self._names: list[Names] = []  # of each worker
        self._lock = threading.Lock()
        self._state = State.NEW
        self._running = [group.workers for group in plan.groups]
        self._failures: list[Failure] = []
        self._left_behind = 0  # thread workers that did not end
        self._delivering: Iterator[Any] = iter(())  # the frame that the consumer is reading
        self._stop_begun = False
        self._stopped_by: threading.Thread | None = None
        self._stopped = threading.Event()
        self._pid = os.getpid()

    @property
    def _workers(self) -> list[Worker]:
        return [worker for workers in self._workers_by_group for worker in workers]

    def _outbox(self, group: PlannedGroup, edges: Sequence[int]) -> Channel | FanOut:
        channels = [self._channels[edge] for edge in edges]
        if len(edges) == 1 and self._plan.edges[edges[0]].writers == group.workers:
            return channels[0]
        return FanOut(channels)

    # -- starting

    def start(self) -> None:
        """Start all workers.

        Raises:
            PipelineError: the source is an iterator that an earlier run has read.
            StartError: one could not be started; the others are stopped.
        """
        remember(self)
        try:
            claim_all(self._plan.one_shots)
            self._state = State.RUNNING
            for index, group in enumerate(self._plan.groups):
                for number in range(group.workers):
                    self._workers_by_group[index].append(self._open(index, group, number))
            stop_all_at_exit()
            self._start_executors()
        except BaseException:
            try:
                with self._lock:
                    self._state = State.STOPPING
                for worker in self._workers:
                    worker.kill()
            finally:  # also where a second Ctrl-C comes
                self.stop()
            raise

    def _open(self, index: int, group: PlannedGroup, number: int) -> Worker:
        stages = [stage.name for stage in group.stages]
        name = f"{stages[0]}-{number}"
        edge = group.input_of(number)
        inbox = None if edge is None else self._channels[edge]
        self._names.append(worker_names(stages, name))
        report = partial(self._report, index, edge)
        try:
            if group.backend not in self._executors:
                self._executors[group.backend] = group.backend.executor()
            return self._executors[group.backend].open(group.prepared, name, inbox, self._outboxes[index], report)
        except PipekitError:
            raise
        except Exception as error:
            raise _not_started(f'the worker "{name}"', error) from error

    def _start_executors(self) -> None:
        for backend, executor in self._executors.items():
            try:
                executor.start()
            except PipekitError:
                raise
            except Exception as error:
                raise _not_started(f"a worker on the backend {backend.name!r}", error) from error

    # -- what workers report

    def _report(self, index: int, edge: int | None, outcome: Outcome) -> None:
        with self._lock:
            self._running[index] -= 1
        if outcome.failure is not None:
            self._fail(outcome.failure)
        if edge is not None:
            self._channels[edge].reader_done()
            self._stop_unwanted(edge)
        self._end_outputs(self._plan.groups[index].outputs)

    def _end_outputs(self, outputs: set[int]) -> None:
        """Tell those who read from a worker that it has ended.

        Where the run ends early, to a stage that must not look like the end of its items: it would do what it does when
        it has them all. Who ends the run may be still on the way to these channels. Of one that has failed, the last
        channel is still delivered: the failure comes after it.
        """
        with self._lock:
            ends_early, failed = self._state is not State.RUNNING, bool(self._failures)
        for output in outputs:
            if ends_early and not (failed and output == len(self._channels) - 1):
                self._channels[output].cancel()
            else:
                self._channels[output].writer_done()

    def _stop_unwanted(self, edge: int) -> None:
        """When the last reader of an edge has gone: stop the stages of which nobody reads anything any more.

        Those that wait for room there are told by the channel; others may have nothing more to put there.
        """
        if not self._channels[edge].is_closed:
            return
        for index, workers in enumerate(self._workers_by_group):
            outputs = self._plan.groups[index].outputs
            if self._running[index] and edge in outputs and all(self._channels[one].is_closed for one in outputs):
                for worker in workers:
                    worker.abort()

    def _fail(self, failure: Failure) -> None:
        """The first failure ends the run; what has reached the last queue is still delivered."""
        with self._lock:
            self._failures.append(failure)
            first = self._state is State.RUNNING
            if first:
                self._state = State.STOPPING
        if first:
            self._end_early(deliver=True)

    def _end_early(self, *, deliver: bool) -> None:
        """Release everybody: channels first, so that no worker finds anything more to do, then the workers.

        The consumer's channel before all others: workers that are released end, and an END that comes of it must not
        look like the end of the results.
        """
        *others, last = self._channels
        if deliver:
            last.drain()
        else:
            last.cancel()
        for channel in others:
            channel.cancel()
        for worker in self._workers:
            worker.abort()

    # -- the consumer's side

    def frames(self, stall_timeout: float | None) -> Iterator[Iterator[Any]]:
        """The results, a frame at a time. At the end the run is stopped, and its failure raised if there is one.

        Raises Stalled when nothing moves for `stall_timeout` seconds (None: never) while it waits.

        Has no `finally`: it may be finalized by the garbage collector in any thread, which is no place to wait in.
        Whoever leaves earlier calls `stop`.
        """
        reader: BlockingReader = ConsumerReader(self._channels[-1])
        if stall_timeout is not None:
            watch = Watch(self._names, self._workers, self._channels)
            reader = PatientReader(self._channels[-1], watch, stall_timeout)
        while (frame := self._next_frame(reader)) is not None:
            started = perf_counter()
            items = self._opened(frame)
            self._delivering = iter(items)
            yield self._delivering
            reader.finished(frame.count, perf_counter() - started, 0.0)
        self.stop()
        self._raise_failure()

    def _next_frame(self, reader: BlockingReader) -> Frame | None:
        if os.getpid() != self._pid:
            raise PipekitError(
                "these results belong to the process that started the run, and this one was forked from it"
            )
        try:
            return reader.get(_nothing)
        except Released:
            if self._stopped_by is not threading.current_thread():
                if is_exiting():
                    raise SystemExit from None  # ends a thread without a word
                raise PipekitError(
                    "the results were closed while they were read, by another thread or a signal handler"
                ) from None
            return None
        except BaseException:  # KeyboardInterrupt, Stalled
            self.stop()
            raise

    def _opened(self, frame: Frame) -> Sequence[Any]:
        """The items of a frame. One that cannot be opened is left out, and the run fails."""
        parts, decode = frame.open()
        if decode is None:
            return parts
        items: list[Any] = []
        for part in parts:
            try:
                items.append(decode(part))
            except KeyboardInterrupt:
                self.stop()
                raise
            except BaseException as error:
                self._fail_to_open(error)
        return items

    def _fail_to_open(self, error: BaseException) -> None:
        ends = [group.stages[-1].name for group in self._plan.groups if len(self._channels) - 1 in group.outputs]
        failure = CannotTravel("could not unpickle an item", error)
        self._fail(describe(failure, " or ".join(ends), "results", None))

    def _raise_failure(self) -> None:
        with self._lock:
            failures = list(self._failures)
        if not failures:
            return
        if isinstance(failures[0].exception, Released):  # the source is the input of a worker that is released
            raise failures[0].exception
        error = failures[0].to_exception(failures[1:])
        add_place(error, self._plan.stages)
        if self._left_behind:
            error.add_note(
                f"{self._left_behind} thread worker(s) could not be stopped: they are left to finish their call, "
                "and take no further item"
            )
        try:
            raise error
        finally:
            del error, failures  # the traceback holds this frame: no cycle, or all that it refers to lives on

    def stats(self) -> RunStats:
        """How the run is doing now."""
        counts = [channel.counts() for channel in self._channels]
        state, running = self._state, list(self._running)  # without the lock, as the counts
        stages: list[StageStats] = []
        for group, outboxes, alive in zip(self._plan.groups, self._outboxes, running, strict=True):
            received = sum(counts[edge][0] - counts[edge][1] for edge in group.inputs)
            passed = received - sum(counts[edge][2] for edge in group.inputs)  # from one stage of the group to the next
            for stage in group.stages[:-1]:
                stages.append(StageStats(stage.name, alive, received, passed, waiting=0))
                received = passed
            results = group.outlet.total([outbox.entered for outbox in outboxes])
            waiting = sum(counts[edge][1] for edge in group.outputs)
            stages.append(StageStats(group.stages[-1].name, alive, received, results, waiting))
        return RunStats(state.value, tuple(stages))

    # -- stopping

    @property
    def is_stopped(self) -> bool:
        return self._stopped.is_set()

    def stop(self) -> None:
        """End the run, whatever its state; returns within two seconds with nothing left that can be stopped."""
        if os.getpid() != self._pid:  # a forked copy: the run belongs to the parent
            return
        with self._lock:
            begun, self._stop_begun = self._stop_begun, True
            if not begun:
                self._state, self._stopped_by = State.STOPPING, threading.current_thread()
        if begun:
            self._stopped.wait(PATIENCE)
            return
        try:
            self._end_early(deliver=False)
            for _ in self._delivering:  # what the consumer has not taken is not delivered after it has left
                pass
            self._join_workers()
        except BaseException:  # Ctrl-C again: no more patience
            for worker in self._workers:
                worker.kill()
            raise
        finally:
            self._release()

    def _release(self) -> None:
        try:
            with ExitStack() as executors:  # each is closed, also where another's `close` raises
                for executor in self._executors.values():
                    executors.callback(executor.close)
        finally:
            self._workers_by_group, self._executors = [], {}  # they refer back to the run
            with self._lock:
                self._state = State.STOPPED
            self._stopped.set()
            forget(self)

    def _join_workers(self) -> None:
        deadline = monotonic() + GRACE
        left = [worker for worker in self._workers if not worker.join(max(0.0, deadline - monotonic()))]
        for worker in left:
            worker.kill()
        deadline += PATIENCE - GRACE
        self._left_behind = sum(not worker.join(max(0.0, deadline - monotonic())) for worker in left)


def _not_started(what: str, error: Exception) -> StartError:
    return StartError(
        f"{what} could not be started ({error!r}): all workers of this run are stopped. "
        "If the system has no more processes, threads or memory to give, use fewer workers"
    )


def _nothing() -> None:
    pass
