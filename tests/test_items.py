"""Any value is an item, nothing is lost and nothing doubled, whatever the backends, sizes and workers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import eventually

import pipekit
from pipekit import ItemNotPicklable, Stage, TaskException, map_stage, stage


class OddEquality:
    """Equal to everything, and to nothing when asked for a truth value."""

    def __eq__(self, other: object) -> Any:
        return np.array([True, False])

    __hash__ = object.__hash__


ODD_ITEMS: list[Any] = [
    None,
    ValueError("an item"),
    StopIteration(),
    StopIteration,
    ...,
    float("nan"),
    OddEquality(),
    (),
]


def test_any_value_is_an_item(backend_pair: tuple[str, str]) -> None:
    first, second = (stage(backend=name)(lambda items: items) for name in backend_pair)
    results = list((ODD_ITEMS | first | second).results())
    assert [type(result) for result in results] == [type(item) for item in ODD_ITEMS]


def test_numpy_arrays_are_items(backend_pair: tuple[str, str]) -> None:
    arrays = [np.arange(size) for size in (0, 1, 100_000)]
    first, second = (map_stage(backend=name)(lambda array: array + 1) for name in backend_pair)
    for result, array in zip((arrays | first | second).results(), arrays, strict=True):
        np.testing.assert_array_equal(result, array + 2)


def test_an_item_larger_than_any_pipe_buffer_arrives(backend_pair: tuple[str, str]) -> None:
    item = bytes(range(256)) * 40_000
    first, second = (map_stage(backend=name)(lambda data: data[::-1]) for name in backend_pair)
    assert list(([item] * 3 | first | second).results()) == [item] * 3


def test_a_process_gets_a_snapshot_of_an_item_that_changes_later(backend: str) -> None:
    def growing() -> Iterator[list[int]]:
        numbers: list[int] = []
        for number in range(50):
            numbers.append(number)
            yield numbers

    sums = Stage(growing).setup(backend=backend) | map_stage(backend="process")(sum)
    assert list(sums.results()) == [sum(range(n + 1)) for n in range(50)]


def test_a_thread_gets_the_very_object() -> None:
    item = object()
    assert next(([item] | map_stage(backend="thread")(lambda it: it)).results()) is item


def test_one_worker_keeps_the_order(backend_pair: tuple[str, str]) -> None:
    first, second = (map_stage(backend=name)(lambda n: n + 1) for name in backend_pair)
    assert list((range(5000) | first | second).results()) == list(range(2, 5002))


@pytest.mark.parametrize("items", [0, 1, 2, 7])
def test_more_workers_than_items(backend: str, items: int) -> None:
    same = map_stage(workers=5, backend=backend)(lambda n: n)
    assert sorted((range(items) | same | same).results()) == list(range(items))


def test_a_large_number_of_items_arrives_once_each(backend_pair: tuple[str, str]) -> None:
    first, second = (map_stage(workers=3, backend=name)(lambda n: n + 1) for name in backend_pair)
    assert sorted((range(100_000) | first | second).results()) == list(range(2, 100_002))


def test_a_stage_that_stops_reading_ends_those_before_it_and_loses_no_item_of_its_own(
    backend_pair: tuple[str, str],
) -> None:
    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    def first_three(numbers: Iterable[int]) -> Iterator[int]:
        for count, number in enumerate(numbers, start=1):
            yield number
            if count == 3:
                return

    before, behind = backend_pair
    pipe = Stage(endless).setup(backend=before) | stage(workers=2, backend=behind)(first_three)
    results = list(pipe.results())
    assert len(results) == len(set(results)) == 6


def test_what_a_stopping_worker_has_not_read_is_read_by_the_others(backend: str) -> None:
    """However many items travel together, a worker that returns after one leaves the rest to its peers."""

    def one_or_all(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            yield number
            if number == 400:
                return

    pipe = range(1000) | stage(workers=2, backend=backend)(one_or_all)
    assert sorted(pipe.results()) == list(range(1000))


def test_a_worker_that_stops_while_the_queue_is_empty_takes_no_later_item_with_it(backend: str, tmp_path: Path) -> None:
    """A process worker asks for a frame ahead: it must not be handed one after it has left."""
    left = tmp_path / "left"

    def first_then_rest() -> Iterator[int]:
        yield from range(10)
        while not left.exists():
            time.sleep(0.001)
        yield from range(10, 30)

    def one_leaves(numbers: Iterable[int]) -> Iterator[int]:
        for count, number in enumerate(numbers, start=1):
            yield number
            if count == 3:
                with suppress(FileExistsError):  # the other one was first
                    left.touch(exist_ok=False)
                    return

    pipe = first_then_rest() | stage(workers=2, backend=backend)(one_leaves)
    assert sorted(pipe.results()) == list(range(30))


def test_a_stage_may_read_its_items_through_a_pipeline_of_its_own(backend: str) -> None:
    """Its items are then read, and its results handed on, by two threads."""

    def nested(numbers: Iterable[int]) -> Iterator[int]:
        yield from (numbers | map_stage(backend="thread")(lambda number: number + 1)).results()

    pipe = range(3000) | stage(qsize=5, backend=backend)(nested) | map_stage(backend="thread")(lambda number: number)
    assert sorted(pipe.results()) == list(range(1, 3001))


def test_a_stage_that_never_reads_its_input_does_not_hold_up_the_run(backend: str) -> None:
    pipe = range(100_000) | stage(workers=2, backend=backend)(lambda items: ["done"])
    assert list(pipe.results()) == ["done", "done"]


def test_an_exception_that_interrupts_the_reading_of_items_is_not_their_end(tmp_path: Path) -> None:
    """An iterator that has raised has ended, also for a function that catches the exception and reads on."""
    interrupted = tmp_path / "interrupted"

    def source() -> Iterator[int]:
        yield 0
        while not interrupted.exists():
            time.sleep(0.001)
        yield from range(1, 30)

    def in_time(numbers: Iterator[int]) -> Iterator[int]:
        def on_alarm(*_: object) -> None:
            raise TimeoutError

        signal.signal(signal.SIGALRM, on_alarm)
        while True:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            try:
                yield next(numbers)
            except StopIteration:
                return
            except TimeoutError:
                interrupted.touch()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)

    limited: Any = stage(in_time)
    with pytest.raises(TaskException, match=r"TimeoutError\(\) cut off its input"):
        list((source() | limited).results())


def test_a_function_that_gives_a_list_is_a_stage(backend: str) -> None:
    def in_order(numbers: Iterable[int]) -> list[int]:
        return sorted(numbers)

    assert list(([3, 1, 2] | stage(backend=backend)(in_order)).results()) == [1, 2, 3]


def test_a_sink_that_reads_everything_and_returns_none_has_no_results(backend: str, tmp_path: Path) -> None:
    def write(numbers: Iterable[int]) -> None:
        (tmp_path / "written").write_text(str(sum(numbers)))

    sink = stage(backend=backend)(write)
    assert list((range(100) | sink).results()) == []
    assert (tmp_path / "written").read_text() == "4950"


@pytest.mark.parametrize("given", [None, 42])
def test_a_function_that_gives_no_iterable_is_an_error_that_says_what_to_do(backend: str, given: object) -> None:
    wrong: Stage[Any, Any] = stage(backend=backend)(lambda items: given)  # type: ignore[arg-type, return-value]
    with pytest.raises(TaskException, match="write `yield`, or use map_stage"):
        ([1] | wrong).execute()


def test_a_stop_iteration_from_a_mapped_function_is_an_error_and_loses_nothing_unseen(backend: str) -> None:
    def stops(number: int) -> int:
        if number == 3:
            raise StopIteration
        return number

    with pytest.raises(TaskException, match="raised StopIteration"):
        list((range(10) | map_stage(backend=backend)(stops)).results())


class NeverPickles:
    def __reduce__(self) -> Any:
        raise TypeError("this object stays here")

    def __repr__(self) -> str:
        return "<never>"


class NeverUnpickles:
    def __reduce__(self) -> Any:
        return _fail, ()


def _fail() -> None:
    raise StopIteration("this object does not arrive")


def test_an_item_that_cannot_be_pickled_is_a_named_error() -> None:
    with pytest.raises(ItemNotPicklable, match='"source-0" could not pickle its result <never>: TypeError') as caught:
        list(([1, NeverPickles()] | map_stage(lambda item: item)).results())
    assert isinstance(caught.value.__cause__, TypeError)


def test_a_result_that_cannot_be_pickled_is_a_named_error() -> None:
    broken = map_stage(backend="process")(lambda _: NeverPickles())
    with pytest.raises(ItemNotPicklable, match="could not pickle its result <never>: TypeError") as caught:
        list(([7] | broken).results())
    assert caught.value.item == "7"


def test_an_item_that_cannot_be_unpickled_in_the_worker_is_a_named_error() -> None:
    with pytest.raises(ItemNotPicklable, match="could not unpickle an item: StopIteration"):
        list(([1, NeverUnpickles(), 2] | map_stage(lambda item: item)).results())


def test_a_result_that_cannot_be_unpickled_for_the_consumer_comes_after_those_before_it() -> None:
    delivered = []
    with pytest.raises(ItemNotPicklable, match='"results" could not unpickle an item') as caught:
        for item in ([1, 2] | stage(lambda items: [*items, NeverUnpickles()])).results():
            delivered.append(item)
    assert delivered == [1, 2]
    assert caught.value.stage == "<lambda>"


def test_results_after_one_that_cannot_be_unpickled_are_delivered() -> None:
    results = ([1] | stage(lambda items: [*items, NeverUnpickles(), 3])).results()
    eventually(lambda: results.stats().stages[1].running == 0)
    delivered = []
    with pytest.raises(ItemNotPicklable):
        for item in results:
            delivered.append(item)
    assert delivered == [1, 3]


def test_an_argument_that_cannot_be_pickled_is_an_error_at_the_start_that_names_it() -> None:
    def locked(items: Iterable[int], lock: Any) -> Iterable[int]:
        return items

    with pytest.raises(pipekit.NotPicklable, match="stage 'locked' .* its argument 1 is <unlocked") as caught:
        (range(3) | Stage(locked, threading.Lock())).results()
    assert 'backend="thread"' in str(caught.value)
