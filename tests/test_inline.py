"""`run_inline` is the meaning of a pipeline in plain Python: serial, here, and with the errors of a run."""

from __future__ import annotations

import bdb
import itertools
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest

from pipekit import Cancelled, PipelineError, SignatureError, Stage, TaskException, map_stage, run_inline, stage


@map_stage
def inverse(number: float) -> float:
    return 1 / number


@stage(workers=3)
def same(items: Iterable[Any]) -> Iterator[Any]:
    yield from items


def test_results_come_in_order_and_one_at_a_time() -> None:
    log: list[str] = []

    def numbers() -> Iterator[int]:
        for number in range(3):
            log.append(f"read {number}")
            yield number

    log.extend(f"got {result}" for result in run_inline(numbers() | same | map_stage(lambda number: number * 10)))
    assert log == ["read 0", "got 0", "read 1", "got 10", "read 2", "got 20"]


def test_everything_runs_in_the_calling_thread_whatever_the_backends() -> None:
    @map_stage(workers=4, backend="process")
    def here(_: int) -> threading.Thread:
        return threading.current_thread()

    assert set(run_inline(range(3) | here)) == {threading.current_thread()}


def test_items_are_passed_as_they_are() -> None:
    lock = threading.Lock()
    assert next(run_inline([lock] | same)) is lock


def test_an_error_is_what_a_run_would_raise_with_the_original_traceback() -> None:
    delivered = []
    with pytest.raises(TaskException, match=r'The task "inverse-0" raised ZeroDivisionError') as caught:
        for result in run_inline([2, 1, 0, 5] | same | inverse):
            delivered.append(result)
    assert delivered == [0.5, 1.0]
    assert (caught.value.stage, caught.value.worker, caught.value.item) == ("inverse", "inverse-0", "0")
    cause = caught.value.__cause__
    assert isinstance(cause, ZeroDivisionError)
    assert cause.__traceback__ is not None
    assert cause.__traceback__.tb_frame.f_code is inverse.__wrapped__.__code__  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, StopIteration, ValueError])
def test_any_exception_of_any_place_is_an_error(kind: type[BaseException]) -> None:
    def fails(*_: object) -> Any:
        raise kind("on purpose")

    for pipe in (Stage(fails), [1] | map_stage(fails), [1] | stage(fails) | same):
        with pytest.raises(TaskException):
            list(run_inline(pipe))


def test_a_stage_that_passes_over_the_failure_of_another_gets_nothing_more_through() -> None:
    def tries_again(numbers: Iterable[float]) -> Iterator[float]:
        try:
            yield from numbers
        except BaseException:
            yield -1

    with pytest.raises(TaskException, match="inverse-0"):
        assert list(run_inline([0] | inverse | stage(tries_again))) == []


def test_bad_items_are_left_out_where_asked_for() -> None:
    @map_stage(filter_errors=True)
    def good(number: int) -> float:
        return 1 / number

    assert list(run_inline([1, 0, 2] | good)) == [1.0, 0.5]


def test_leaving_runs_the_finally_blocks_of_all_stages() -> None:
    closed: list[str] = []

    def tidy(items: Iterable[int], name: str) -> Iterator[int]:
        try:
            yield from items
        finally:
            closed.append(name)

    results = run_inline(itertools.count() | Stage(tidy, "first") | Stage(tidy, "second"))
    next(results)
    results.close()
    assert closed == ["second", "first"]


def test_an_error_of_a_finally_block_is_an_error() -> None:
    def untidy(items: Iterable[int]) -> Iterator[int]:
        try:
            yield from items
        finally:
            raise ValueError("untidy")

    def first(items: Iterable[int]) -> Iterator[int]:
        for item in items:
            yield item
            return

    with pytest.raises(TaskException, match="untidy"):
        list(run_inline(range(5) | stage(untidy) | stage(first)))


def test_a_stage_that_hides_a_failure_does_not_look_ended_to_the_next() -> None:
    complete: list[bool] = []

    def hides(numbers: Iterator[float]) -> Iterator[tuple[float, float]]:
        with suppress(Cancelled):
            while True:
                yield next(numbers), next(numbers)

    def commits(pairs: Iterable[tuple[float, float]]) -> Iterator[int]:
        number = len(list(pairs))
        complete.append(True)
        yield number

    hiding: Any = stage(hides)
    with pytest.raises(TaskException, match="inverse-0"):
        list(run_inline([3, 2, 1, 0] | inverse | hiding | stage(commits)))
    assert complete == []


def test_a_pipeline_without_its_source_is_an_error_at_once() -> None:
    with pytest.raises(SignatureError, match="needs an input"):
        run_inline(same | same)


def test_what_is_no_pipeline_is_an_error_that_says_so() -> None:
    with pytest.raises(SignatureError, match=r"runs a pipeline or a stage, not \[1\]"):
        run_inline([1])  # type: ignore[arg-type]


def test_inside_a_stage_that_is_left_it_does_not_look_complete() -> None:
    complete: list[bool] = []

    def nested(numbers: Iterable[float]) -> Iterator[float]:
        yield from run_inline(numbers | same)
        complete.append(True)

    with pytest.raises(TaskException, match="inverse-0"):
        list(run_inline([1, 0] | inverse | stage(nested)))
    results = (itertools.count(1) | inverse | stage(backend="thread")(nested)).results()
    next(results)
    results.close()
    assert complete == []


def test_an_iterator_can_be_read_once() -> None:
    pipe = iter([1, 2]) | same
    assert list(run_inline(pipe)) == [1, 2]
    with pytest.raises(PipelineError, match="an earlier run has read"):
        run_inline(pipe)


def test_ctrl_c_is_not_taken_for_an_error_of_a_stage() -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(run_inline([1] | map_stage(interrupted)))


def test_a_debugger_stops_in_a_stage() -> None:
    stopped: list[object] = []

    class Debugger(bdb.Bdb):
        def user_line(self, frame: Any) -> None:
            if frame.f_code is inverse.__wrapped__.__code__:  # type: ignore[attr-defined]
                stopped.append(frame.f_locals["number"])
            self.set_step()

    assert Debugger().runcall(lambda: list(run_inline([4.0, 2.0] | inverse))) == [0.25, 0.5]
    assert stopped == [4.0, 2.0]
