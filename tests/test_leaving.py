"""Leaving the results in any way ends the run and leaves nothing behind (what is left is checked after each test)."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually, items_travel_alone, workers_alive

from pipekit import PipekitError, ProcessBackend, Results, StartError, TaskException, map_stage, stage
from pipekit._channel import Channel
from pipekit._run import Run
from pipekit._worker import Outcome
from pipekit.backends import _launch, process
from pipekit.backends._hub import Hub
from pipekit.backends.thread import _ThreadWorker

#: Seconds that leaving may take, by promise; everything else in a test takes far less.
PROMISED = 2.0


def endless(backend: str) -> Any:
    return itertools.count() | map_stage(workers=2, backend=backend)(lambda number: number)


def _break(results: Results[int]) -> None:
    for _ in results:
        break


def _close(results: Results[int]) -> None:
    next(results)
    results.close()


def _with(results: Results[int]) -> None:
    with results:
        next(results)


def _exception(results: Results[int]) -> None:
    with pytest.raises(KeyError):
        for _ in results:
            raise KeyError


def _never_started(results: Results[int]) -> None:
    results.close()


def _never_read(results: Results[int]) -> None:
    """Its caller drops them, too."""


def _through_a_generator(results: Results[int]) -> None:
    reading = (number for number in results)
    next(reading)
    reading.close()


def _through_islice(results: Results[int]) -> None:
    assert len(list(itertools.islice(results, 3))) == 3


def _in_another_thread(results: Results[int]) -> None:
    reader = threading.Thread(target=_break, args=(results,))
    reader.start()
    reader.join()


def _close_twice(results: Results[int]) -> None:
    results.close()
    results.close()


LEAVE = [
    _break,
    _close,
    _with,
    _exception,
    _never_started,
    _never_read,
    _through_a_generator,
    _through_islice,
    _in_another_thread,
    _close_twice,
]


@pytest.mark.parametrize("leave", LEAVE)
def test_leaving_takes_less_than_promised(backend_pair: tuple[str, str], leave: Any) -> None:
    first, second = backend_pair
    pipe = endless(first) | map_stage(backend=second)(lambda number: number)
    results = pipe.results()
    started = time.monotonic()
    leave(results)
    del results
    assert time.monotonic() - started < PROMISED
    assert workers_alive() == []


def test_dropping_the_results_ends_the_run(backend: str) -> None:
    results = endless(backend).results()
    next(results)
    del results
    assert workers_alive() == []


def test_results_in_a_reference_cycle_end_the_run_when_collected(backend: str) -> None:
    cycle: list[Any] = [endless(backend).results()]
    cycle.append(cycle)
    del cycle
    gc.collect()
    assert workers_alive() == []


def test_a_closed_iterator_gives_nothing_more(backend: str) -> None:
    results = endless(backend).results()
    next(results)
    results.close()
    assert list(results) == []


def test_results_read_to_the_end_leave_no_worker(backend: str) -> None:
    results = (range(10) | map_stage(workers=2, backend=backend)(lambda number: number)).results()
    assert len(list(results)) == 10
    assert workers_alive() == []
    assert results.stats().state == "stopped"


def test_leaving_runs_the_finally_blocks_of_every_stage(backend_pair: tuple[str, str], tmp_path: Path) -> None:
    def tidy(numbers: Iterable[int], name: str) -> Iterator[int]:
        try:
            yield from numbers
        finally:
            (tmp_path / name).touch()

    first, second = (stage(backend=backend)(tidy) for backend in backend_pair)
    _close((itertools.count() | first("first") | second("second")).results())
    assert sorted(os.listdir(tmp_path)) == ["first", "second"]


def test_leaving_runs_the_finally_block_of_a_stage_that_waits_for_input(backend: str, tmp_path: Path) -> None:
    never = threading.Event()

    def one_item() -> Iterator[int]:
        yield 1
        never.wait(60)

    def tidy(numbers: Iterable[int]) -> Iterator[int]:
        try:
            yield from numbers
        finally:
            (tmp_path / "tidied").touch()

    results = (one_item() | stage(backend=backend)(tidy)).results()
    next(results)
    closer = threading.Thread(target=results.close)
    closer.start()
    eventually((tmp_path / "tidied").exists)
    never.set()
    closer.join()


def test_leaving_closes_a_generator_that_is_the_source(backend: str) -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    _close((source() | map_stage(backend=backend)(lambda number: number)).results())
    assert closed.is_set()


def test_leaving_stops_processes_in_long_calls() -> None:
    results = (itertools.count() | map_stage(workers=3)(_sleep_long)).results()
    eventually(lambda: results.stats().stages[1].received >= 3)
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < PROMISED
    assert workers_alive() == []


@items_travel_alone
def test_leaving_leaves_a_thread_in_a_long_call_to_itself_and_gives_it_no_further_item() -> None:
    release, seen = threading.Event(), []

    def busy(number: int) -> int:
        seen.append(number)
        release.wait(60)
        return number

    results = (itertools.count() | map_stage(backend="thread")(busy)).results()
    eventually(lambda: bool(seen))
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < PROMISED
    release.set()
    eventually(lambda: all(thread.name != "busy-0" for thread in threading.enumerate()))
    assert seen == [0]


def _sleep_long(_: int) -> None:
    time.sleep(60)


def test_a_pipeline_runs_in_a_thread_that_is_not_the_main_one(backend: str) -> None:
    sums: list[int] = []
    pipe = range(100) | map_stage(workers=2, backend=backend)(lambda number: number)
    runner = threading.Thread(target=lambda: sums.append(sum(pipe.results())))
    runner.start()
    runner.join()
    assert sums == [4950]


def test_results_made_in_one_thread_are_read_in_another(backend_pair: tuple[str, str]) -> None:
    first, second = backend_pair
    made: list[Results[int]] = []
    sums: list[int] = []

    def make() -> None:
        pipe = range(100) | map_stage(workers=2, backend=first)(lambda number: number)
        made.append((pipe | map_stage(backend=second)(lambda number: number)).results())

    for target in (make, lambda: sums.append(sum(made[0]))):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()
    assert sums == [4950]
    assert made[0].stats().state == "stopped"


def test_a_failure_is_raised_in_the_thread_that_reads(backend: str) -> None:
    results = (range(3) | map_stage(backend=backend)(lambda number: 1 // (number - 2))).results()
    raised: list[BaseException | None] = []
    reader = threading.Thread(target=lambda: raised.append(_error_of(results)))
    reader.start()
    reader.join()
    assert isinstance(raised[0], TaskException)


def _error_of(results: Results[int]) -> BaseException | None:
    try:
        list(results)
    except BaseException as error:
        return error
    return None


@pytest.mark.parametrize("leave", [_never_started, _never_read, _with])
def test_leaving_a_run_that_has_failed_raises_nothing(backend: str, leave: Any) -> None:
    results = _failed(backend)
    leave(results)
    del results
    assert workers_alive() == []


def _failed(backend: str) -> Results[int]:
    results = (range(3) | map_stage(backend=backend)(lambda number: 1 // (number - 2))).results()
    eventually(lambda: results.stats().state == "stopping")
    return results


def test_many_runs_of_a_pipeline_at_once(backend: str) -> None:
    pipe = range(200) | map_stage(workers=2, backend=backend)(lambda number: number)
    running = [pipe.results() for _ in range(8)]
    assert [sum(results) for results in running] == [19900] * 8


def test_a_pipeline_inside_a_worker_of_another(backend_pair: tuple[str, str]) -> None:
    outer, inner = backend_pair

    def total(count: int) -> int:
        return sum((range(count) | map_stage(backend=inner)(lambda number: number)).results())

    assert sorted((range(1, 4) | map_stage(workers=2, backend=outer)(total)).results()) == [0, 1, 3]


@contextmanager
def read_but_for_the_last(backend: str) -> Iterator[Results[int]]:
    """Results of which one has been read, and the next does not come before the block ends."""
    release = threading.Event()

    def one_item() -> Iterator[int]:
        yield 1
        release.wait(60)

    results = (one_item() | map_stage(backend=backend)(lambda number: number)).results()
    assert next(results) == 1
    try:
        yield results
    finally:
        release.set()


def test_results_closed_by_another_thread_are_an_error_for_who_reads_them(backend: str) -> None:
    with read_but_for_the_last(backend) as results:
        closer = threading.Thread(target=results.close)
        closer.start()
        with pytest.raises(PipekitError, match="closed while they were read"):
            next(results)
    closer.join()


def test_results_closed_by_a_thread_that_has_ended_are_an_error_for_who_reads_them_next() -> None:
    """It may have the number of the one that has ended."""
    results = endless("thread").results()
    next(results)
    closer = threading.Thread(target=results.close)
    closer.start()
    closer.join()
    with ThreadPoolExecutor(1) as pool, pytest.raises(PipekitError, match="closed while they were read"):
        pool.submit(next, results).result()


def end_of_worker(reads: int | None, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a worker has ended, and all have been told, that reads from this edge; None: that has no input."""
    told, report = threading.Event(), Run._report

    def report_and_tell(run: Run, index: int, edge: int | None, outcome: Outcome) -> None:
        report(run, index, edge, outcome)
        if edge == reads:
            told.set()

    monkeypatch.setattr(Run, "_report", report_and_tell)
    return told


def test_results_closed_while_the_last_workers_end_do_not_look_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who closes them is held up until all workers have ended, the first by itself."""
    closing, end_early = threading.Event(), Run._end_early
    source_has_ended, all_have_ended = (end_of_worker(edge, monkeypatch) for edge in (None, 0))

    def wait_and_end_early(run: Run, *, deliver: bool) -> None:
        closing.set()
        assert all_have_ended.wait(30)
        end_early(run, deliver=deliver)

    def some() -> Iterator[int]:
        yield from range(3)
        closing.wait(60)

    def waits(number: int) -> int:
        if number:
            source_has_ended.wait(60)
        return number

    monkeypatch.setattr(Run, "_end_early", wait_and_end_early)
    results = (some() | map_stage(backend="thread")(waits)).results()
    assert next(results) == 0
    closer = threading.Thread(target=results.close)
    closer.start()
    with pytest.raises(PipekitError, match="closed while they were read"):
        list(results)
    closer.join()


def test_two_threads_that_read_the_same_results_are_both_told_so(backend: str) -> None:
    release = threading.Event()

    def one_item() -> Iterator[int]:
        release.wait(60)
        yield 1

    results = (one_item() | map_stage(backend=backend)(lambda number: number)).results()
    errors: list[str] = []

    def read() -> None:
        try:
            list(results)
        except PipekitError as error:
            errors.append(str(error))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    eventually(lambda: len(errors) == 2)  # the third waits for the item
    release.set()
    for reader in readers:
        reader.join()
    assert [error.partition(":")[0] for error in errors] == [
        "the same results are read twice at the same time, by two threads or by a signal handler"
    ] * 3


def test_statistics_may_be_asked_for_and_results_closed_by_a_signal_handler(backend: str) -> None:
    """It comes in the middle of anything; results that it closes while they are read must not look complete."""
    results = endless(backend).results()
    asked = itertools.count()

    def on_signal(*_: object) -> None:
        results.stats()
        if next(asked) == 200:
            results.close()

    original = signal.signal(signal.SIGALRM, on_signal)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for _ in results:  # as fast as possible
            pass
    except PipekitError as error:
        assert "closed while they were read" in str(error)  # noqa: PT017  # or it was closed between two reads
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, original)
    eventually(lambda: results.stats().state == "stopped")


def test_results_closed_by_a_signal_handler_while_they_are_waited_for_do_not_look_complete(backend: str) -> None:
    with read_but_for_the_last(backend) as results:
        original = signal.signal(signal.SIGALRM, lambda *_: results.close())
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            with pytest.raises(PipekitError, match="closed while they were read"):
                next(results)
        finally:
            signal.signal(signal.SIGALRM, original)


def test_threads_that_take_turns_may_read_the_same_results(backend: str) -> None:
    results = (range(100) | map_stage(qsize=1, backend=backend)(lambda number: number)).results()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        seen = [pool.submit(next, results).result() for _ in range(50) for pool in (one, other)]
    assert seen == list(range(100))
    assert list(results) == []


def test_a_pipeline_inside_a_stage_that_is_left_does_not_look_complete(backend: str, tmp_path: Path) -> None:
    """What a stage does behind a loop over its own pipeline must not happen with half of the items."""
    started, done = tmp_path / "started", tmp_path / "done"

    def nested(numbers: Iterable[int]) -> Iterator[int]:
        for result in (numbers | map_stage(backend="thread")(lambda number: number)).results():
            started.touch()
            yield result
        done.touch()

    def endless() -> Iterator[int]:
        while True:
            yield 1

    results = (endless() | stage(backend=backend)(nested)).results()
    next(results)
    results.close()
    assert (started.exists(), done.exists()) == (True, False)


def test_a_pipeline_inside_a_stage_that_is_released_has_no_error_of_its_own(backend: str, tmp_path: Path) -> None:
    """`except Exception` around it does not hide that its items are cut off."""
    done = tmp_path / "done"
    runs: list[Results[None]] = []

    def one_and_waits() -> Iterator[int]:
        yield 1
        eventually(lambda: bool(runs) and runs[0].stats().state != "running")

    def nested(numbers: Iterable[int]) -> Iterator[int]:
        with suppress(Exception):
            yield from (numbers | map_stage(backend="thread")(lambda number: number)).results()
        done.touch()

    def fails(_: int) -> None:
        raise ValueError

    runs.append((one_and_waits() | stage(backend=backend)(nested) | map_stage(backend="thread")(fails)).results())
    with pytest.raises(TaskException, match="fails-0"):
        list(runs[0])
    assert not done.exists()


@pytest.mark.parametrize("ends", ["left", "failed"])
def test_a_stage_does_not_take_the_end_of_the_run_for_that_of_its_items(
    backend_pair: tuple[str, str], ends: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who ends the run is held up when the queue before the first stage is cut off, until that stage has ended."""
    started, done = tmp_path / "started", tmp_path / "done"
    may_fail, cut_off = threading.Event(), threading.Event()
    cancel = Channel.cancel
    first_has_ended = end_of_worker(0, monkeypatch)

    def cancel_and_wait(channel: Channel) -> None:
        cancel(channel)
        if channel is queues[0]:
            cut_off.set()
            assert first_has_ended.wait(30)

    def one_and_waits() -> Iterator[int]:
        yield 1
        cut_off.wait(60)
        yield from itertools.count()

    def commits(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            started.touch()
            yield number
        done.touch()

    def fails(number: int) -> int:
        may_fail.wait(60)
        if ends == "failed":
            raise ValueError
        return number

    first, second = backend_pair
    same: Any = map_stage(backend=first, fuse=False)(lambda number: number)
    pipe = one_and_waits() | same | stage(backend=second, fuse=False)(commits) | map_stage(backend="thread")(fails)
    results = pipe.results()
    queues = results._run._channels
    monkeypatch.setattr(Channel, "cancel", cancel_and_wait)
    may_fail.set()
    with pytest.raises(TaskException) if ends == "failed" else nullcontext():
        next(results)
    results.close()
    assert cut_off.is_set()
    assert (started.exists(), done.exists()) == (True, False)


def test_a_stage_does_not_take_a_start_that_fails_for_the_end_of_its_items(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last stage cannot be started while the others are at work; the first has ended before the second is told."""
    read, first_is_killed, done = (threading.Event() for _ in range(3))
    kill = _ThreadWorker.kill
    first_has_ended = end_of_worker(0, monkeypatch)

    def kill_and_wait(worker: _ThreadWorker) -> None:
        kill(worker)
        if worker._thread.name == "same-0":
            first_is_killed.set()
            assert first_has_ended.wait(30)

    def no_more_threads(_: Hub) -> None:
        assert read.wait(30)
        raise RuntimeError("can't start new thread")

    def one_and_waits() -> Iterator[int]:
        yield 1
        first_is_killed.wait(60)

    def commits(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            read.set()
            yield number
        done.set()

    monkeypatch.setattr(_ThreadWorker, "kill", kill_and_wait)
    monkeypatch.setattr(Hub, "start", no_more_threads)
    same: Any = map_stage(backend="thread", name="same")(lambda number: number)
    with pytest.raises(StartError):
        (one_and_waits() | same | stage(backend="thread")(commits) | map_stage()(str)).results()
    assert not done.is_set()


def test_a_stage_that_closes_the_results_of_its_own_run_leaves_nothing() -> None:
    holder: list[Results[int]] = []
    given = threading.Event()

    def closes(number: int) -> int:
        given.wait(60)
        holder[0].close()
        return number

    pipe = range(10) | map_stage()(lambda number: number) | map_stage(backend="thread")(closes)
    holder.append(pipe.results())
    given.set()
    with pytest.raises(PipekitError, match="closed while they were read"):
        list(holder[0])
    eventually(lambda: holder[0].stats().state == "stopped")


def test_leaving_ends_the_pipelines_inside_the_workers(backend: str) -> None:
    def endless_inner(numbers: Iterable[int]) -> Iterator[int]:
        yield from (itertools.count() | map_stage()(lambda number: number)).results()

    _close(([1] | stage(backend=backend)(endless_inner)).results())
    eventually(lambda: workers_alive() == [])


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize(("where", "name"), [(_launch, "_start"), (process._ProcessWorker, "flush")])
def test_ctrl_c_while_a_worker_starts_leaves_nothing(
    method: Any, where: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        original(*args)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)  # to this thread: others do not block it

    pipe = [1] | map_stage(backend=ProcessBackend(method))(_sleep_long)
    original = getattr(where, name)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(where, name, interrupted)
        pipe.results()
    assert workers_alive() == []
    assert multiprocessing.active_children() == []
