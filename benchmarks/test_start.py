"""How soon is there a first result of ten items?"""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest

from benchmarks.measure import Meter
from pipekit import Results, map_stage

ITEMS = 10

pytestmark = pytest.mark.benchmark(group="start: first of ten results")

#: A program as users write it; says how many seconds after its call of `results()` it had the first result.
PROGRAM = """
from time import perf_counter
from pipekit import map_stage

@map_stage(backend={backend!r})
def same(item):
    return item

started = perf_counter()
with (range({items}) | same).results() as results:
    assert next(results) == 0
    print(perf_counter() - started)
"""


def same(item: int) -> int:
    return item


def test_later_run(meter: Meter, backend: str) -> None:
    """In a program that has run a pipeline before."""
    pipe = range(ITEMS) | map_stage(backend=backend)(same)
    assert sorted(pipe.results()) == list(range(ITEMS))
    opened: list[Results[int]] = []

    def close() -> None:
        while opened:
            opened.pop().close()

    def first(_: None) -> None:
        opened.append(pipe.results())
        assert next(opened[-1]) == 0

    took = meter.time(first, setup=close)
    close()
    if took is not None:
        meter.note(seconds=took)


def test_new_program(meter: Meter, backend: str) -> None:
    """In a program that has just begun; the time is the program's, with the interpreter's start and end."""
    program = [sys.executable, "-c", PROGRAM.format(backend=backend, items=ITEMS)]
    seconds: list[float] = []

    def run() -> None:
        done = subprocess.run(program, check=True, capture_output=True, text=True, timeout=60)
        seconds.append(float(done.stdout))

    if meter.time(run) is not None:
        meter.note(seconds_to_first_result=statistics.median(seconds))
