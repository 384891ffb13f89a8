"""Suites, fixtures, and the summary of ratios.

    python -m pytest benchmarks -m 'thread or process' --benchmark-group-by=group
    python -m pytest benchmarks -m mixed
    python -m pytest benchmarks --smoke --benchmark-disable     # does everything still run? asserts no times

A ratio is of the median of the rounds.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.measure import SMOKE, Meter, Ratios

#: Seconds that a benchmark may take, also on a busy machine; only a deadlock takes longer.
LIMIT = 600

RATIOS = pytest.StashKey[dict[str, Ratios]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="benchmarks: tiny sizes and one round")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RATIOS] = {}
    SMOKE.on = bool(config.getoption("--smoke"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(LIMIT))


@pytest.fixture(
    params=[pytest.param("thread", marks=pytest.mark.thread), pytest.param("process", marks=pytest.mark.process)]
)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    return str(request.param)


@pytest.fixture
def meter(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Meter:
    """Measures, and keeps the ratios for the summary."""
    ratios = request.config.stash[RATIOS].setdefault(request.node.nodeid, {})
    return Meter(benchmark, ratios)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The ratios, which the table of times does not show."""
    rows = {name: ratios for name, ratios in config.stash[RATIOS].items() if ratios}
    if not rows:
        return
    terminalreporter.section("ratios")
    for name, ratios in rows.items():
        shown = ", ".join(f"{key.replace('_', ' ')}: {value:g}" for key, value in ratios.items())
        terminalreporter.write_line(f"{name.rpartition('/')[2]}  {shown}")
