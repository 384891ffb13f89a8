"""The contract's checks pass on our backends, and fail on those that break it."""

from __future__ import annotations

import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipekit import BackendUnavailable, StartError, ThreadBackend, map_stage
from pipekit.backends import Backend, Executor, Frame, Inbox, Outbox, Outcome, Report, Signal, Task, Waiter, Worker
from pipekit.testing import CHECKS, Check, CheckFailed, Faults, FaultyBackend, check_backend

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


@pytest.mark.parametrize("check", CHECKS, ids=repr)
def test_our_backends_keep_the_contract(check: Check, backend: str) -> None:
    check(backend)


@pytest.fixture(scope="module")
def documented_backend() -> Backend:
    """The one that docs/writing-a-backend.md shows."""
    backend = runpy.run_path(str(EXAMPLES / "own_backend.py"), run_name="__main__")["counting"]
    assert isinstance(backend, Backend)
    return backend


@pytest.mark.parametrize("check", CHECKS, ids=repr)
def test_the_backend_of_the_documentation_keeps_the_contract(check: Check, documented_backend: Backend) -> None:
    check(documented_backend)


class BrokenBackend(Backend):
    """Threads of which one thing is wrong."""

    name = "broken"
    remote = False

    def __init__(
        self, *, loses: bool = False, swaps: bool = False, stops_at_closed: bool = False, reports: int = 1
    ) -> None:
        self.loses = loses
        self.swaps = swaps
        self.stops_at_closed = stops_at_closed
        self.reports = reports

    def prepare(self, task: Task) -> Task:
        return task

    def executor(self) -> Executor:
        return BrokenExecutor(self)


class BrokenExecutor(Executor):
    def __init__(self, backend: BrokenBackend) -> None:
        self.backend = backend
        self.threads = ThreadBackend().executor()

    def open(self, prepared: Any, name: str, inbox: Inbox | None, outboxes: Sequence[Outbox], report: Report) -> Worker:
        def report_so_often(outcome: Outcome) -> None:
            for _ in range(self.backend.reports):
                report(outcome)

        given = list(outboxes)
        if self.backend.loses:
            given = [LosingOutbox(outbox) for outbox in outboxes]
        if self.backend.swaps:
            given.reverse()
        if self.backend.stops_at_closed:
            given = [StoppingOutbox(outbox) for outbox in outboxes]
        return self.threads.open(prepared, name, inbox, given, report_so_often)

    def start(self) -> None:
        self.threads.start()

    def close(self) -> None:
        self.threads.close()


class WrappedOutbox:
    """Never takes what is offered: everything goes through `put`."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox

    @property
    def frame_size(self) -> int:
        return self.outbox.frame_size

    @property
    def window(self) -> int:
        return self.outbox.window

    def put(self, waiter: Waiter, frame: Frame) -> Signal | None:
        return self.outbox.put(waiter, frame)

    def offer(self, frame: Frame) -> bool:
        return False


class StoppingOutbox(WrappedOutbox):
    """Stops its worker although others may still want its results."""

    def put(self, waiter: Waiter, frame: Frame) -> Signal | None:
        answer = self.outbox.put(StoppingWaiter(waiter), frame)
        return Signal.CANCELLED if answer is Signal.CLOSED else answer


class StoppingWaiter:
    def __init__(self, waiter: Waiter) -> None:
        self.waiter = waiter

    def wake(self, answer: Frame | Signal) -> None:
        self.waiter.wake(Signal.CANCELLED if answer is Signal.CLOSED else answer)


class LosingOutbox(WrappedOutbox):
    """Loses the last result of each frame that has several."""

    def put(self, waiter: Waiter, frame: Frame) -> Signal | None:
        assert isinstance(frame.payload, list)
        parts = frame.payload[:-1] or frame.payload
        return self.outbox.put(waiter, Frame(frame.sequence, len(parts), parts))


def named(name: str) -> Check:
    return next(check for check in CHECKS if check.name == name)


@pytest.mark.parametrize(
    ("broken", "name", "says"),
    [
        (BrokenBackend(loses=True), "every_item_once", "every item comes out exactly once"),
        (BrokenBackend(swaps=True), "routes", "goes to the outbox that its task's outlet names"),
        (BrokenBackend(stops_at_closed=True), "one_outbox_closes", "nobody reads any more keeps nothing from"),
        (BrokenBackend(reports=2), "keeps_the_rules", "reported its end 2 times"),
    ],
    ids=["loses", "swaps", "stops_at_closed", "reports_twice"],
)
def test_a_broken_backend_fails_the_check_of_the_promise_that_it_breaks(broken: Backend, name: str, says: str) -> None:
    with pytest.raises(CheckFailed, match=says):
        named(name)(broken)


def test_a_check_that_hangs_fails_and_shows_where_the_threads_are() -> None:
    results: list[Any] = []
    check = Check("hangs", "it ends", lambda backend: _hang(backend, results))
    with pytest.raises(CheckFailed, match=r"hangs; after 0.5 s the threads are here:\n[\s\S]*in _hang"):
        check(BrokenBackend(reports=0), timeout=0.5)
    results[0].close()


def _hang(backend: Backend, opened: list[Any]) -> None:
    results = (range(3) | map_stage(backend=backend)(same)).results()
    opened.append(results)
    for _ in results:
        pass


def test_check_backend_names_every_promise_that_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(backend: Backend) -> None:
        raise ValueError

    checks = (named("few_items"), Check("first", "the first holds", broken), Check("second", "the second", broken))
    monkeypatch.setattr("pipekit.testing._checks.CHECKS", checks)
    with pytest.raises(ExceptionGroup, match="2 of 3 promises are not kept by the backend 'thread'") as caught:
        check_backend("thread")
    assert [str(error)[:22] for error in caught.value.exceptions] == [
        "first: the first holds",
        "second: the second (Va",
    ]


def test_a_backend_that_cannot_run_here_is_unavailable_to_its_checks_too() -> None:
    class Elsewhere(BrokenBackend):
        def prepare(self, task: Task) -> Task:
            raise BackendUnavailable("not here")

    with pytest.raises(BackendUnavailable, match="not here"):
        check_backend(Elsewhere())


def test_check_backend_is_silent_about_a_backend_that_keeps_them_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipekit.testing._checks.CHECKS", CHECKS[:3])
    check_backend("thread")


def test_the_nth_start_that_fails_stops_those_already_started(backend: str) -> None:
    faulty = FaultyBackend(backend, Faults(fail_start=2))
    with pytest.raises(StartError, match='"same-2" could not be started .*Resource temporarily unavailable'):
        (range(3) | map_stage(workers=4, backend=faulty)(same)).results()


def same(number: int) -> int:
    return number


@pytest.mark.parametrize("qsize", [0, 1, None])
def test_workers_that_are_late_with_everything_lose_and_double_nothing(
    qsize: int | None, backend_pair: tuple[str, str]
) -> None:
    first, second = backend_pair
    faults = Faults(at_start=0.02, before_put=0.001, before_end=0.02)
    late = map_stage(workers=2, qsize=qsize, backend=FaultyBackend(first, faults))(same)
    pipe = range(50) | late | map_stage(workers=2, qsize=qsize, backend=second)(same) | late
    assert sorted(pipe.results()) == list(range(50))
