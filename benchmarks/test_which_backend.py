"""Which backend for which work? Against the serial program, and against processes; docs/backends.md has the figures.

Run it with a Python that has a GIL, and with one that has none: `-m free_threaded` chooses what only the latter does.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import repeat
from random import Random
from typing import Any, NamedTuple

import pytest

from benchmarks.jobs import compute_5_ms, compute_20_us, pages, same, wait
from benchmarks.measure import SMOKE, Meter
from pipekit import Pipeline, map_stage
from pipekit._gil import gil_is_on

pytestmark = [pytest.mark.which_backend, pytest.mark.benchmark(group="which backend for which work?")]

needs_no_gil = pytest.mark.skipif(gil_is_on(), reason="needs a Python without the GIL")
BACKENDS = [
    pytest.param("thread", marks=pytest.mark.thread),
    pytest.param("process", marks=pytest.mark.process),
    pytest.param("free-threaded", marks=[pytest.mark.free_threaded, needs_no_gil]),
]


def _texts(items: int) -> Iterator[bytes]:
    """The same text each time: to make it would take as long as to compress it."""
    return repeat(Random(1).randbytes(20_000).hex().encode(), items)


def _dicts(items: int) -> Iterator[dict[str, object]]:
    return ({"id": item, "name": f"item {item}", "tags": ["a", "b"]} for item in range(items))


class Work(NamedTuple):
    """What is done with items: by how many workers, with how many items, and what they are."""

    function: Callable[[Any], object]
    items: int
    workers: int = 2
    source: Callable[[int], Iterable[Any]] = range


WORKS = {
    "10 ms of waiting": Work(wait, 1_000, workers=20),
    "native code, 1 ms": Work(zlib.compress, 1_500, source=_texts),
    "Python code, 5 ms": Work(compute_5_ms, 400),
    "Python code, 20 us": Work(compute_20_us, 100_000),
    "nothing, with integers": Work(same, 1_000_000),
    "nothing, with small dicts": Work(same, 200_000, source=_dicts),
    "nothing, with 10 KB": Work(same, 50_000, source=pages),
    "nothing, with 1 MB": Work(same, 1_000, source=partial(pages, size=1_000_000)),
}


def read(results: Iterable[object]) -> None:
    """All of them, at the least cost."""
    deque(results, maxlen=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", WORKS)
def test_work(meter: Meter, kind: str, backend: str) -> None:
    """`times serial`: how many times as fast as `map`, from the call to the last result."""
    work = WORKS[kind]
    items = SMOKE.size(work.items, 20)

    def parallel() -> None:
        stage = map_stage(workers=work.workers, backend=backend)(work.function)
        read((work.source(items) | stage).results())

    ratios = meter.beside(parallel, serial=lambda: read(map(work.function, work.source(items))))
    if ratios is not None:
        meter.note(times_serial=1 / ratios["serial"], us_per_item=meter.median / items * 1e6)


@pytest.mark.free_threaded
@needs_no_gil
def test_stages_that_do_nothing(meter: Meter) -> None:
    """`serial`: how many times as long as three `map`, one in the other. The goal is 2."""
    items = SMOKE.size(2_000_000, 100)
    pipe: Pipeline[Any, int] = range(items) | _stage(same) | _stage(same) | _stage(same)
    ratios = meter.beside(
        lambda: read(pipe.results()), serial=lambda: read(map(same, map(same, map(same, range(items)))))
    )
    meter.note(**ratios or {})


@pytest.mark.free_threaded
@needs_no_gil
@pytest.mark.parametrize("size", [1_000, 10_000, 100_000, 1_000_000])
def test_payload_against_processes(meter: Meter, size: int) -> None:
    """`process`: what share of the time of the same two stages on processes, apart and fused. The goal is less than 1
    from 10 KB on."""
    items = SMOKE.size(min(100_000, 500_000_000 // size), 20)

    def through(backend: str, *, fuse: bool) -> None:
        first, second = (map_stage(workers=2, backend=backend, fuse=fuse)(same) for _ in range(2))
        read((pages(items, size) | first | second).results())

    ratios = meter.beside(
        lambda: through("free-threaded", fuse=False),
        process=lambda: through("process", fuse=False),
        process_fused=lambda: through("process", fuse=True),
    )
    meter.note(**ratios or {})


@pytest.mark.free_threaded
@needs_no_gil
def test_a_second_stage(meter: Meter) -> None:
    """`alone`: how many times as long two stages of 20 us take as one, each in a thread of its own. Where they used a
    lock or a counter together for each item, it would be nearer to 2."""
    items = SMOKE.size(50_000, 20)
    one = range(items) | _stage(compute_20_us)
    two = one | _stage(compute_20_us)
    meter.note(**meter.beside(lambda: read(two.results()), alone=lambda: read(one.results())) or {})


def _stage(function: Callable[[Any], Any]) -> Any:
    return map_stage(backend="free-threaded")(function)
