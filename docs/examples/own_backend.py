"""A backend of your own: a thread for each worker, and a count of the results of each worker."""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipekit import map_stage, stage
from pipekit.backends import (
    Answer,
    Backend,
    BlockingReader,
    BlockingWriter,
    Executor,
    Flusher,
    Inbox,
    Outbox,
    Report,
    Task,
    Worker,
    WorkerLoop,
)


@dataclass(frozen=True, eq=False)  # a backend is a hashable value
class CountingBackend(Backend):
    name = "counting"
    remote = False  # items need no pickling to get here
    counts: Counter[str] = field(default_factory=Counter)

    def prepare(self, task: Task) -> Task:
        return task  # nothing to check: a thread can run everything

    def executor(self) -> Executor:
        return CountingExecutor(self.counts)


class CountingExecutor(Executor):
    """All workers of one run."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._flusher = Flusher()  # hands on what is ready while a worker is busy with a long item
        self._workers: list[CountingWorker] = []

    def open(self, prepared: Any, name: str, inbox: Inbox | None, outboxes: Sequence[Outbox], report: Report) -> Worker:
        reader = None if inbox is None else BlockingReader(inbox)
        writers = [
            CountingWriter(outbox, pickled=pickled) for outbox, pickled in zip(outboxes, prepared.pickled, strict=True)
        ]
        loop = WorkerLoop(prepared, name, reader, writers, self._flusher)

        def run() -> None:
            outcome = loop.run()  # never raises
            self._counts[name] += sum(writer.count for writer in writers)
            report(outcome)  # exactly once

        worker = CountingWorker(threading.Thread(target=run, name=name, daemon=True), loop)
        self._workers.append(worker)
        return worker

    def start(self) -> None:
        for worker in self._workers:
            worker.thread.start()

    def close(self) -> None:
        self._flusher.stop()


class CountingWorker(Worker):
    def __init__(self, thread: threading.Thread, loop: WorkerLoop) -> None:
        self.thread = thread
        self.loop = loop

    def abort(self) -> None:
        self.loop.stop()  # at its next result, if it hands on none; else at its next read or write

    def kill(self) -> None:
        """A thread cannot be killed."""

    def join(self, timeout: float) -> bool:
        if self.thread.ident is not None:  # it was started
            self.thread.join(timeout)
        return not self.thread.is_alive()

    def inquire(self, answer: Answer, *, detail: bool) -> None:
        answer(self.loop.states(detail=detail))


class CountingWriter(BlockingWriter):
    """`put` is called by the worker, `offer` by the flusher, never both with the same results."""

    def __init__(self, channel: Outbox, *, pickled: bool) -> None:
        super().__init__(channel, pickled=pickled)
        self.count = 0
        self._counting = threading.Lock()

    def put(self, parts: list[object], *, plain: bool) -> bool:
        accepted = super().put(parts, plain=plain)
        if accepted:
            self._add(len(parts))
        return accepted

    def offer(self, parts: list[object], *, plain: bool) -> bool:
        accepted = super().offer(parts, plain=plain)
        if accepted:
            self._add(len(parts))
        return accepted

    def _add(self, items: int) -> None:
        with self._counting:
            self.count += items


@stage
def halves(numbers: Iterable[int]) -> Iterator[float]:
    for number in numbers:
        if number % 2 == 0:
            yield number / 2


@map_stage
def negate(number: float) -> float:
    return -number


counting = CountingBackend()
pipe = range(1000) | halves.setup(backend=counting) | negate.setup(backend="process")
print(sum(pipe.results()))
print(dict(counting.counts))

# Output:
# -124750.0
# {'halves-0': 500}
