"""How well does waiting overlap? 10 ms of sleep per item on many threads; the start is counted."""

from __future__ import annotations

from time import sleep

import pytest

from benchmarks.measure import SMOKE, Meter
from pipekit import map_stage

ITEM_SECONDS = 0.01
ROUND_TRIPS = 100

pytestmark = [pytest.mark.thread, pytest.mark.benchmark(group="io: 10 ms of waiting per item")]


def wait(item: int) -> int:
    sleep(ITEM_SECONDS)
    return item


@pytest.mark.parametrize("workers", [10, 100])
def test_threads(meter: Meter, workers: int) -> None:
    items = workers * SMOKE.size(ROUND_TRIPS, 2)
    pipe = range(items) | map_stage(workers=workers, backend="thread")(wait)

    def run() -> None:
        assert sorted(pipe.results()) == list(range(items))

    took = meter.time(run)
    if took is not None:
        meter.note(times_ideal=took / (items * ITEM_SECONDS / workers))
