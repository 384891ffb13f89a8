"""A run in which nothing moves is given up when it has been allowed to be, and says what its workers were doing."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from conftest import eventually, workers_alive

from pipekit import Doing, OptionError, Stage, Stalled, TaskException, map_stage, stage

#: Seconds that nothing may move. Tests wait for workers to start before they read.
SHORT = 0.4
#: Seconds that a call in a stage takes; no test waits for it.
LONG = 1000.0


def same(number: int) -> int:
    return number


def stuck_at_three(number: int) -> int:
    if number == 3:
        time.sleep(LONG)
    return number


def stall(pipe: Any) -> Stalled:
    """What comes of a pipeline that gets stuck."""
    results = pipe.results(stall_timeout=SHORT)
    eventually(lambda: results.stats().stages[1].received > 0)  # so it has started
    with pytest.raises(Stalled) as caught:
        list(results)
    return caught.value


def doing(error: Stalled) -> dict[str, Doing]:
    return {state.worker: state.doing for state in error.workers}


def test_a_worker_in_a_call_without_end_is_named_with_its_item_and_place() -> None:
    pipe = range(10) | map_stage(qsize=1)(stuck_at_three) | map_stage(backend="thread")(same)
    error = stall(pipe)
    assert doing(error) == {
        "source-0": Doing.WRITING,
        "stuck_at_three-0": Doing.WORKING,
        "same-0": Doing.READING,
    }
    stuck = error.workers[1]
    assert (stuck.stage, stuck.item, stuck.read) == ("stuck_at_three", "3", 4)
    assert stuck.seconds >= SHORT / 2
    assert "time.sleep(LONG)" in stuck.traceback
    assert workers_alive() == []


def test_the_message_says_it_stage_by_stage() -> None:
    lines = str(stall(range(10) | map_stage(qsize=1)(stuck_at_three))).splitlines()
    assert lines[0].startswith("nothing has moved for 0.4 s although the results were waited for")
    assert lines[1:3] == ["  source: 1 waiting to hand on", "  stuck_at_three: 1 in user code"]
    assert "s on the item 3, File " in lines[3]
    assert lines[3].endswith("in stuck_at_three")
    assert "results(stall_timeout=...)" in lines[-1]


def test_a_thread_in_a_call_without_end_is_named_too() -> None:
    release = threading.Event()

    def waits(number: int) -> int:
        release.wait(60)
        return number

    error = stall([7] | map_stage(backend="thread")(waits))
    release.set()
    assert (error.workers[1].doing, error.workers[1].item) == (Doing.WORKING, "7")
    assert "in waits" in error.workers[1].traceback
    assert error.workers[0].doing is Doing.ENDED


def test_a_source_that_gives_nothing_is_in_user_code(backend: str) -> None:
    error = stall(Stage(_one_and_no_more).setup(backend="process") | map_stage(backend=backend)(same))
    assert doing(error) == {"_one_and_no_more-0": Doing.WORKING, "same-0": Doing.READING}


def _one_and_no_more() -> Iterator[int]:
    yield 1
    time.sleep(LONG)


def test_a_worker_stopped_by_a_signal_does_not_answer() -> None:
    def stops_itself(number: int) -> int:
        os.kill(os.getpid(), signal.SIGSTOP)
        return number

    error = stall([1] | map_stage(stops_itself))
    assert doing(error)["stops_itself-0"] is Doing.UNKNOWN
    assert "1 not answering (stopped by a signal, in native code" in str(error)
    assert workers_alive() == []


def test_an_item_whose_repr_does_not_return_does_not_hold_up_the_error() -> None:
    release = threading.Event()

    class Slow:
        def __repr__(self) -> str:
            release.wait(60)
            return "slow"

    def waits(item: Any) -> Any:
        release.wait(60)
        return item

    error = stall([Slow()] | map_stage(backend="thread")(waits))
    release.set()
    assert (error.workers[1].doing, error.workers[1].item) == (Doing.WORKING, None)


def test_an_aggregate_that_reads_for_long_has_not_stalled(backend: str) -> None:
    """It gives nothing for longer than the limit, but its input moves."""

    def total(numbers: Iterable[int]) -> Iterator[int]:
        yield sum(numbers)

    def slow() -> Iterator[int]:
        until = time.monotonic() + 3 * SHORT
        while time.monotonic() < until:
            time.sleep(0.01)
            yield 0

    results = (slow() | stage(backend=backend)(total)).results(stall_timeout=SHORT)
    eventually(lambda: results.stats().stages[1].received > 0)
    assert list(results) == [0]


def test_items_that_are_read_inside_a_frame_are_movement() -> None:
    """The parent cannot see them; the worker is asked."""
    count = 2000

    def slower(numbers: Iterable[int]) -> Iterator[int]:
        read = 0
        for number in numbers:
            read += 1
            if number >= count - 30:  # the frames before have taught that items are fast
                time.sleep(3 * SHORT / 30)
        yield read

    results = (range(count) | stage(slower)).results(stall_timeout=SHORT)
    eventually(lambda: results.stats().stages[1].received > 0)
    assert list(results) == [count]


def test_time_that_the_consumer_takes_does_not_count(backend: str) -> None:
    results = (range(20) | map_stage(qsize=1, backend=backend)(same)).results(stall_timeout=SHORT)
    eventually(lambda: results.stats().stages[1].received > 0)
    assert next(results) == 0
    time.sleep(2 * SHORT)
    assert list(results) == list(range(1, 20))


def test_a_failure_is_raised_as_it_is_although_a_stall_was_watched_for(backend: str) -> None:
    pipe = range(5) | map_stage(backend=backend)(lambda number: 1 // number)
    with pytest.raises(TaskException, match="ZeroDivisionError"):
        list(pipe.results(stall_timeout=60))


def test_execute_takes_the_limit_too() -> None:
    with pytest.raises(Stalled):
        (range(10) | map_stage(backend="thread")(stuck_for_a_while)).execute(stall_timeout=0.05)


def stuck_for_a_while(number: int) -> int:
    time.sleep(1)
    return number


def test_a_stall_can_be_pickled() -> None:
    error = stall([3] | map_stage(stuck_at_three))
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.workers) == (str(error), error.workers)


@pytest.mark.parametrize("wrong", [0, -1, float("nan"), float("inf"), 1e12, 10**400, True, "1"])
def test_a_limit_that_cannot_work_is_an_error_before_anything_starts(wrong: Any) -> None:
    with pytest.raises(OptionError, match="stall_timeout=.* cannot work"):
        ([1] | map_stage(same)).results(stall_timeout=wrong)
