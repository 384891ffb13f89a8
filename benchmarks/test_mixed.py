"""Does a slow stage hide the others? 10 ms of waiting on threads, 5 ms of work on processes, one that adds up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from time import sleep

import pytest

from benchmarks.measure import SMOKE, Meter, loops_for, median_seconds, spin
from pipekit import map_stage, stage

THREADS = 20
PROCESSES = 2
ITEMS = 600
IO_SECONDS = 0.01
CPU_SECONDS = 0.005

pytestmark = [pytest.mark.mixed, pytest.mark.benchmark(group="mixed: waiting, computing, adding up")]


@map_stage(workers=THREADS, backend="thread")
def fetch(item: int) -> int:
    sleep(IO_SECONDS)
    return item


@map_stage(workers=PROCESSES, backend="process")
def compute(item: int, loops: int) -> int:
    spin(loops)
    return item


@stage(backend="thread")
def total(items: Iterable[int]) -> Iterator[int]:
    yield sum(items)


def test_threads_then_processes_then_sum(meter: Meter) -> None:
    """The ideal is the time of the slowest stage alone, the start is counted."""
    items = SMOKE.size(ITEMS, 10)
    loops = loops_for(CPU_SECONDS)
    pipe = range(items) | fetch | compute(loops) | total

    def run() -> None:
        assert pipe.execute() == sum(range(items))

    took = meter.time(run)
    if took is not None:
        computing = median_seconds(lambda: [spin(loops) for _ in range(items)])
        waiting = items * IO_SECONDS
        ideal = max(waiting / THREADS, computing / PROCESSES)
        meter.note(times_ideal=took / ideal, times_faster_than_serial=(waiting + computing) / took)
