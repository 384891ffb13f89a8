"""What the suites share: sizes, timing, a system's answer to a question."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from operator import truediv
from time import perf_counter
from typing import Any, TypeAlias

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.jobs import JOBS
from benchmarks.probes import PROBES, Figures
from benchmarks.questions import QUESTIONS, Question
from benchmarks.runs import Run, run
from benchmarks.systems import System

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
        pedantic(function, setup=None if setup is None else arguments, rounds=SMOKE.size(ROUNDS, 1))
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

    def ask(self, question: Question, system: System) -> None:
        """Let a system answer, each round in a program of its own; notes the medians of its figures."""
        items = question.items(system, SMOKE.on)
        if question.name in JOBS and not SMOKE.on:
            run(system, question, JOBS[question.name].smoke, "--check")
        opened: list[Run] = []
        figures: list[Figures] = []

        def close() -> None:
            while opened:
                opened.pop().close()

        def start() -> Run:
            close()
            opened.append(Run(system, question, items))
            return opened[-1]

        try:
            took = self.time(lambda started: figures.append(started.figures()), setup=start)
        finally:
            close()
        if took is not None:
            self.note(**{name: statistics.median(found[name] for found in figures) for name in figures[0]})

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


def _seconds(function: Callable[[], object]) -> float:
    started = perf_counter()
    function()
    return perf_counter() - started


Test: TypeAlias = Callable[[Meter, System], None]


def answers(name: str) -> Callable[[Test], Test]:
    """A benchmark for each system that answers the question; the question's name is marker and group."""

    def decorate(test: Test) -> Test:
        question = QUESTIONS[name]
        marked: Test = pytest.mark.parametrize("system", list(_params(question)))(test)
        for mark in (getattr(pytest.mark, name), pytest.mark.benchmark(group=f"{name}: {question.title}")):
            marked = mark(marked)
        return marked

    return decorate


def _params(question: Question) -> Iterator[Any]:
    for system in question.systems:
        kinds = [system.where] if system.where is not None else ["thread", "process", "mixed"]
        marks: list[Any] = [getattr(pytest.mark, kind) for kind in kinds]
        if not system.installed:
            marks.append(pytest.mark.skip(reason=f"{system.package} is not installed"))
        if system.is_peer and question.name in PROBES:
            marks.append(pytest.mark.not_in_smoke)
        yield pytest.param(system, id=system.name, marks=marks)
