"""Queues are bounded, backpressure reaches the source, and no finished item waits behind a slow one."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from conftest import REMOTE, eventually, items_travel_alone
from stage_functions import Counting

from pipekit import Stage, map_stage, stage
from pipekit._plan import DEFAULT_QSIZE


def process_workers(*stages: Stage[Any, Any]) -> int:
    return sum(one.options.workers for one in stages if one.options.backend in REMOTE)


@pytest.mark.parametrize("qsize", [1, 2, 7, 30, 200])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_source_is_read_no_further_ahead_than_documented(
    backend_pair: tuple[str, str], qsize: int, workers: int
) -> None:
    first, second = (stage(workers=workers, qsize=qsize, backend=name)(lambda items: items) for name in backend_pair)
    source = Counting()
    bound = (qsize + 1) + 2 * (qsize + workers) + process_workers(first, second)
    with (source | first | second).results() as results:
        for delivered, _ in zip(range(1, 2000), results, strict=False):
            assert source.read - delivered <= bound


def test_with_default_queues_the_source_is_read_no_further_ahead_than_documented(backend: str) -> None:
    same = map_stage(workers=2, backend=backend)(lambda number: number)
    source = Counting()
    with (source | same).results() as results:
        for delivered, _ in zip(range(1, 100_000), results, strict=False):
            assert source.read - delivered <= 2 * DEFAULT_QSIZE


def test_a_queue_without_limit_takes_everything(backend: str) -> None:
    gate = threading.Event()
    count = 20_000
    same = map_stage(workers=2, qsize=0, backend=backend)(lambda number: number)

    def blocked(number: int) -> int:
        gate.wait(60)
        return number

    results = (range(count) | same | map_stage(backend="thread")(blocked)).results()
    eventually(lambda: results.stats().stages[1].results == count, seconds=30)
    gate.set()
    assert sorted(results) == list(range(count))


@pytest.mark.parametrize("qsize", [1, 3])
def test_at_most_qsize_items_wait(backend: str, qsize: int) -> None:
    same = map_stage(workers=2, qsize=qsize, backend=backend)(lambda number: number)
    with (itertools.count() | same | map_stage(backend="thread")(lambda n: n)).results() as results:
        for _ in zip(range(500), results, strict=False):
            assert results.stats().stages[1].waiting <= qsize


def test_a_finished_item_leaves_although_the_next_one_takes_long(backend: str) -> None:
    """After a thousand fast items a frame would hold many: the one before a slow item must not wait for it."""
    release = threading.Event()

    def slow_after_fast() -> Iterator[int]:
        yield from range(1000)
        release.wait(60)
        yield 1000

    results = (slow_after_fast() | map_stage(backend=backend)(lambda number: number)).results()
    assert [next(results) for _ in range(1000)] == list(range(1000))
    release.set()
    assert list(results) == [1000]


def test_a_finished_result_leaves_although_the_worker_is_busy_with_the_next_item(backend: str, tmp_path: Any) -> None:
    gate = tmp_path / "gate"

    def waits_at_1000(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            while number == 1000 and not gate.exists():
                time.sleep(0.001)
            yield number

    results = (range(1001) | stage(backend=backend)(waits_at_1000)).results()
    assert [next(results) for _ in range(1000)] == list(range(1000))
    gate.touch()
    assert list(results) == [1000]


@items_travel_alone
def test_slow_items_are_spread_over_all_workers(backend: str, tmp_path: Any) -> None:
    """Each worker takes an item and waits for the others: bound to one worker, they would wait for ever."""

    def meet(number: int) -> int:
        (tmp_path / str(number)).touch()
        while len(list(tmp_path.iterdir())) < 4:
            time.sleep(0.001)
        return number

    assert sorted((range(4) | map_stage(workers=4, backend=backend)(meet)).results()) == [0, 1, 2, 3]


def test_statistics_count_what_was_received_and_handed_on(backend: str) -> None:
    odd = stage(workers=2, backend=backend)(lambda numbers: (number for number in numbers if number % 2))
    results = (range(100) | odd).results()
    assert len(list(results)) == 50
    source, filtered = results.stats().stages
    assert (source.name, source.results, source.waiting) == ("source", 100, 0)
    assert (filtered.received, filtered.results, filtered.waiting, filtered.running) == (100, 50, 0, 0)
    assert results.stats().state == "stopped"
