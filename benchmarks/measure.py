"""What the benchmarks share: sizes, timing, work of known cost."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from operator import truediv
from time import perf_counter, process_time
from typing import Any, TypeAlias

from pytest_benchmark.fixture import BenchmarkFixture

Ratios: TypeAlias = dict[str, float]

#: Rounds of a measurement, and of what it is compared with.
ROUNDS = 5


class Smoke:
    """Whether only to see that everything runs; set by `--smoke`."""

    on = False

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.on else full


SMOKE = Smoke()


class Meter:
    """pytest-benchmark's fixture, with types, and with ratios in `extra_info`."""

    def __init__(self, benchmark: BenchmarkFixture, ratios: Ratios) -> None:
        self._benchmark = benchmark
        self._ratios = ratios

    def time(self, function: Callable[..., object], *, setup: Callable[[], Any] | None = None) -> float | None:
        """The median seconds of some rounds, None if benchmarks are disabled; then it has run once.

        Args:
            function: what is timed, called with what `setup` gives.
            setup: called before each round, not timed.
        """

        def arguments() -> tuple[tuple[Any], dict[str, Any]]:
            assert setup is not None
            return (setup(),), {}

        pedantic: Any = self._benchmark.pedantic
        pedantic(function, setup=None if setup is None else arguments, rounds=rounds())
        return None if self._benchmark.stats is None else self.median

    def beside(self, function: Callable[[], object], **others: Callable[[], object]) -> dict[str, float] | None:
        """How many times as long as each of `others` the function takes, None if benchmarks are disabled.

        The others run before each round: the median of the ratios holds where the speed of the machine drifts.
        """
        seconds: dict[str, list[float]] = {name: [] for name in others}

        def run_others() -> None:
            for name, other in others.items():
                seconds[name].append(_seconds(other))

        if self.time(lambda _: function(), setup=run_others) is None:
            return None
        stats: Any = self._benchmark.stats
        took = stats.stats.data
        return {name: statistics.median(map(truediv, took, beside)) for name, beside in seconds.items()}

    @property
    def median(self) -> float:
        """The median seconds of what was timed."""
        stats: Any = self._benchmark.stats
        return float(stats.stats.median)

    def note(self, **ratios: float) -> None:
        """Keep ratios, to three digits."""
        rounded = {name: float(f"{value:.3g}") for name, value in ratios.items()}
        self._ratios.update(rounded)
        self._benchmark.extra_info.update(rounded)


def rounds() -> int:
    return SMOKE.size(ROUNDS, 1)


def median_seconds(function: Callable[[], object]) -> float:
    """As `Meter.time`, for what a measurement is compared with."""
    return statistics.median(_seconds(function) for _ in range(rounds()))


def _seconds(function: Callable[[], object]) -> float:
    started = perf_counter()
    function()
    return perf_counter() - started


def drain(items: Iterator[object]) -> int:
    """Read to the end at the least cost; gives the number of items."""
    counter = count()
    deque(zip(items, counter, strict=False), maxlen=0)
    return next(counter)


def spin(loops: int) -> int:
    """Keep a core busy with Python code."""
    total = 0
    for number in range(loops):
        total += number & 1
    return total


@cache
def loops_for(seconds: float) -> int:
    """How many loops of `spin` need so much processor time here; by the fastest of many tries."""
    loops = 1000
    while (took := min(_processor_seconds(loops) for _ in range(20))) < seconds / 4:
        loops *= 2
    return round(loops * seconds / took)


def _processor_seconds(loops: int) -> float:
    started = process_time()
    spin(loops)
    return process_time() - started
