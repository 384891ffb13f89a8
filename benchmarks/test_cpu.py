"""How well does work for the processor spread? 5 ms of Python code per item on two workers; the start is counted.

`times ideal` takes half of the serial time for the ideal, so it is only true on a machine with two idle cores;
`times bare programs` compares with two programs that share the work and do nothing else, at the same load.
"""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable

import pytest

from benchmarks.measure import SMOKE, Meter, loops_for, spin
from pipekit import map_stage

WORKERS = 2
ITEMS = 300
ITEM_SECONDS = 0.005

pytestmark = pytest.mark.benchmark(group="cpu: 5 ms items, two workers")


def work() -> tuple[Callable[[int], int], int]:
    """The function of an item, and the number of items."""
    loops = loops_for(ITEM_SECONDS)

    def compute(item: int) -> int:
        spin(loops)
        return item

    return compute, SMOKE.size(ITEMS, 10)


def run_bare_programs(items: int) -> None:
    loops = loops_for(ITEM_SECONDS)
    program = f"{inspect.getsource(spin)}\nfor _ in range({items // WORKERS}): spin({loops})"
    running = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(WORKERS)]
    assert [started.wait() for started in running] == [0] * WORKERS


def test_two_workers(meter: Meter, backend: str) -> None:
    compute, items = work()
    pipe = range(items) | map_stage(workers=WORKERS, backend=backend)(compute)

    def run() -> None:
        assert sorted(pipe.results()) == list(range(items))

    ratios = meter.beside(run, serial=lambda: list(map(compute, range(items))), bare=lambda: run_bare_programs(items))
    if ratios is not None:
        meter.note(times_ideal=ratios["serial"] * WORKERS, times_bare_programs=ratios["bare"])


@pytest.mark.thread
@pytest.mark.process
def test_serial(meter: Meter) -> None:
    compute, items = work()
    took = meter.time(lambda: list(map(compute, range(items))))
    if took is not None:
        meter.note(ms_per_item=took / items * 1e3)
