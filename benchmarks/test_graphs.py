"""What does a fan-out cost an item? Against the same pipeline that goes straight on; the start is not counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pytest

from benchmarks.measure import SMOKE, Meter
from pipekit import Pipeline, Stage, map_stage, route, stage, tee

ITEMS = 300_000

pytestmark = [pytest.mark.graphs, pytest.mark.benchmark(group="graphs: items that fan out")]


def same(item: int) -> int:
    return item


def parity(item: int) -> int:
    return item % 2


def counted(items: Iterable[int]) -> Iterator[int]:
    yield sum(1 for _ in items)


class Shape(NamedTuple):
    """What the prefix goes on to, and how often its items are counted there."""

    ends: Callable[[str], Stage[int, int]]
    times: int


def end(backend: str) -> Stage[int, int]:
    return stage(backend=backend)(counted)


SHAPES = {
    "tee": Shape(lambda backend: tee(end(backend), end(backend)), 2),
    "route": Shape(lambda backend: route(parity, {0: end(backend), 1: end(backend)}), 1),
    "key": Shape(lambda backend: end(backend).setup(workers=2, key=same), 1),
}


def pipeline(size: int, backend: str, ends: Callable[[str], Stage[int, int]]) -> Pipeline[Any, int]:
    return range(size) | map_stage(backend=backend)(same) | ends(backend)


@pytest.mark.parametrize("shape", SHAPES)
def test_fan_out(meter: Meter, backend: str, shape: str) -> None:
    """`us more per item`: than straight on, the work of a second reader included."""
    size = SMOKE.size(ITEMS, 500)
    ends, times = SHAPES[shape]
    straight, fanned = pipeline(size, backend, end), pipeline(size, backend, ends)

    def run(pipe: Pipeline[Any, int], expected: int) -> None:
        assert sum(pipe.results()) == expected

    ratios = meter.beside(lambda: run(fanned, times * size), straight=lambda: run(straight, size))
    if ratios is not None:
        took = meter.median
        meter.note(times_straight=ratios["straight"], us_more_per_item=took * (1 - 1 / ratios["straight"]) / size * 1e6)
