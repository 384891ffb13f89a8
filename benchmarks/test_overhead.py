"""What does an item cost where stages do nothing? Three stages of two workers; the start is not counted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.measure import SMOKE, Meter, drain, median_seconds
from pipekit import Pipeline, map_stage

WORKERS = 2
ITEMS = 300_000
CHECKED_ITEMS = 5_000

pytestmark = pytest.mark.benchmark(group="overhead: three identity stages")


def same(item: int) -> int:
    return item


def items() -> int:
    return SMOKE.size(ITEMS, 500)


def pipeline(size: int, *backends: str) -> Pipeline[Any, int]:
    first, second, third = (map_stage(workers=WORKERS, backend=backend)(same) for backend in backends)
    return range(size) | first | second | third


def serial(size: int) -> Iterator[int]:
    return map(same, map(same, map(same, range(size))))


def measure(meter: Meter, *backends: str) -> None:
    size = items()
    checked = min(size, CHECKED_ITEMS)
    assert sorted(pipeline(checked, *backends).results()) == list(range(checked))

    def start() -> Iterator[int]:
        results = pipeline(size, *backends).results()
        next(results)
        return results

    def finish(results: Iterator[int]) -> None:
        assert drain(results) == size - 1

    took = meter.time(finish, setup=start)
    if took is not None:
        meter.note(us_per_item=took / size * 1e6, times_serial=took / median_seconds(lambda: drain(serial(size))))


def test_one_backend(meter: Meter, backend: str) -> None:
    measure(meter, backend, backend, backend)


@pytest.mark.mixed
@pytest.mark.parametrize("backends", [("thread", "process", "thread"), ("process", "thread", "process")], ids="-".join)
def test_backends_in_turn(meter: Meter, backends: tuple[str, str, str]) -> None:
    measure(meter, *backends)


@pytest.mark.thread
@pytest.mark.process
@pytest.mark.mixed
def test_serial_floor(meter: Meter) -> None:
    size = items()
    took = meter.time(drain, setup=lambda: serial(size))
    if took is not None:
        meter.note(us_per_item=took / size * 1e6)
