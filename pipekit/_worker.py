"""The worker loop: the one piece of code that runs a stage, in a thread, in a process or on another machine.

A worker knows its task, the end that it reads and the end that it writes; no pipeline, no plan, no backend.

    reader ── frames ──> Input ── items ──> the stage's function ── results ──> Output ── frames ──> writers

Items pass through `chain`, `map`, `islice` and `list.extend`: the loop is per frame, not per item.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from types import TracebackType

from pipekit import _output, _steps
from pipekit._activity import Activity, this_thread_is
from pipekit._errors import REPR_LENGTH, Failure, ItemNotPicklable, Misdirected, Released, TaskException, short_repr
from pipekit._frame import CannotTravel
from pipekit._input import Input, Reader
from pipekit._output import Flusher, ManyOutputs, OneOutput, Output, Writer
from pipekit._stats import Doing, WorkerState
from pipekit._steps import Steps
from pipekit._task import Task

#: Where a stage's function is called from.
LOOP_FILES = (__file__, _steps.__file__, _output.__file__)
_PACKAGE = os.path.dirname(__file__) + os.sep


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a worker ended: with a failure, or without (then it had finished, or was cancelled)."""

    failure: Failure | None = None


class WorkerLoop:
    """A worker at its task. The thread that is the worker calls `run`, once; others `stop` it or ask its `state`."""

    def __init__(
        self, task: Task, worker: str, reader: Reader | None, writers: Sequence[Writer], flusher: Flusher
    ) -> None:
        self._task = task
        self._activity = activity = Activity()
        self._output: Output
        if task.outlet is None:
            self._output = OneOutput(
                writers[0], flusher, activity, pickled=task.pickled[0], frame_seconds=task.frame_seconds
            )
        else:
            self._output = ManyOutputs(
                writers, task.outlet, task.pickled, flusher, activity, frame_seconds=task.frame_seconds
            )
        before_waiting = self._output.flush_before_waiting
        self._input = None if reader is None else Input(reader, self._output, activity, before_waiting)
        self._steps = Steps(task, worker, self._input)

    def stop(self) -> None:
        """The results are not wanted any more; from any thread. Where it waits, its reader or writer releases it."""
        self._output.stop()

    def run(self) -> Outcome:
        """Run the task to its end. Raises nothing: what goes wrong is in the outcome."""
        self._activity.thread = threading.get_ident()
        self._activity.begin(Doing.WORKING)
        try:
            with this_thread_is(self.names):
                failure = self._attempt()
            if self._input is not None:
                self._input.leave()
        except BaseException as error:  # not the stage's doing, but a worker that says nothing would be waited for
            failure = describe(error, *self.names(), None)
        self._activity.begin(Doing.ENDED)
        return Outcome(failure)

    def names(self) -> tuple[str, str]:
        """The stage whose function is in a call, or was last, and the worker's name in it."""
        return self._steps.names[self._steps.active]

    def states(self, *, detail: bool) -> tuple[WorkerState, ...]:
        """What it is doing now, for each stage that it runs; `detail`: with item and traceback (runs the `repr` of the
        item)."""
        steps, (doing, since) = self._steps, self._activity.now
        active, seconds = steps.active, perf_counter() - since
        read = steps.read(doing)
        results = [*read[1:], self._output.results]
        return tuple(
            WorkerState(
                stage,
                worker,
                _doing_of(step, active, doing),
                seconds,
                read[step],
                results[step],
                item=steps.last_item(step) if detail else None,
                traceback=_where(self._activity.thread) if detail and doing is Doing.WORKING and step == active else "",
            )
            for step, (stage, worker) in enumerate(steps.names)
        )

    def _attempt(self) -> Failure | None:
        try:
            try:
                batches = self._steps.batches()
                while self._output.pump(batches):
                    pass
                self._steps.check_nothing_hidden()
            except BaseException:
                if not self._activity.released:
                    with suppress(Released):
                        self._output.flush()  # what was finished before is handed on
                raise
            finally:
                self._output.close()
                self._steps.close()
        except BaseException as error:
            if self._activity.released and isinstance(error, Released):
                return None
            return describe(error, *self.names(), self._steps.last_item(self._steps.active))
        return None


def _doing_of(step: int, active: int, doing: Doing) -> Doing:
    """What a step is doing in a worker that is doing `doing`: while one is in a call, the others wait for it."""
    if doing is not Doing.WORKING or step == active:
        return doing
    return Doing.WRITING if step < active else Doing.READING


def _where(thread: int) -> str:
    """Where the stage's code is in this thread, as a traceback without the frames of the loop; "" if not known."""
    from pipekit._stack import calls_of  # only a run that stands still asks

    return calls_of(thread, LOOP_FILES)


def describe(error: BaseException, stage: str, worker: str, item: str | None, did: str = "raised") -> Failure:
    """The failure record of an exception that was caught in a worker's own thread."""
    kind: type[TaskException] = TaskException
    if isinstance(error, CannotTravel):
        kind, did, error = ItemNotPicklable, error.what + ":", error.error
    elif isinstance(error, Misdirected):
        did, item, error = error.what + ":", short_repr(error.result), error.error
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
