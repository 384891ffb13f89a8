"""Workers that are threads of this process: for I/O, and for native code that releases the GIL."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from pipekit._channel import BlockingReader, BlockingWriter
from pipekit._output import Flusher
from pipekit._public import public
from pipekit._signals import uninterrupted
from pipekit._task import Task
from pipekit._worker import WorkerLoop
from pipekit.backends._base import Answer, Backend, Executor, Inbox, Outbox, Report, Worker


@public
@dataclass(frozen=True, slots=True)
class ThreadBackend(Backend):
    """Run each worker in a thread of this process. Items are passed on as they are, not copied."""

    name = "thread"
    remote = False

    def prepare(self, task: Task) -> Task:
        return task

    def executor(self) -> ThreadExecutor:
        return ThreadExecutor()


class ThreadExecutor(Executor):
    """The threads of one run."""

    def __init__(self) -> None:
        self._flusher = Flusher()
        self._workers: list[_ThreadWorker] = []

    def open(
        self, prepared: Task, name: str, inbox: Inbox | None, outboxes: Sequence[Outbox], report: Report
    ) -> Worker:
        reader = None if inbox is None else self.reader(inbox)
        worker = _ThreadWorker(prepared, name, reader, outboxes, report, self._flusher)
        self._workers.append(worker)
        return worker

    def reader(self, inbox: Inbox) -> BlockingReader:
        """A worker's reading end."""
        return BlockingReader(inbox)

    def start(self) -> None:
        with uninterrupted():
            for worker in self._workers:
                worker.start()

    def close(self) -> None:
        self._flusher.stop()
        self._workers.clear()  # they may refer back


class _ThreadWorker(Worker):
    """A daemon thread: Python code in a thread cannot be interrupted, so the interpreter may exit without it."""

    def __init__(
        self,
        task: Task,
        name: str,
        reader: BlockingReader | None,
        outboxes: Sequence[Outbox],
        report: Report,
        flusher: Flusher,
    ) -> None:
        self._reader = reader
        self._writers = [
            BlockingWriter(outbox, pickled=pickled, share=share)
            for outbox, pickled, share in zip(outboxes, task.pickled, task.shared, strict=True)
        ]
        self._loop = WorkerLoop(task, name, reader, self._writers, flusher)
        self._report = report
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def abort(self) -> None:
        """Where it waits, it stops at once, else at its next result, read or write."""
        self._loop.stop()
        for end in (self._reader, *self._writers):
            if end is not None:
                end.stop()

    def kill(self) -> None:
        """Not possible for a thread: it is left to end by itself, and takes no further item."""
        self.abort()

    def join(self, timeout: float) -> bool:
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def inquire(self, answer: Answer, *, detail: bool) -> None:
        answer(self._loop.states(detail=detail))

    def _run(self) -> None:
        self._report(self._loop.run())
