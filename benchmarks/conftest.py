"""Suites, fixtures, and the summary of figures.

    python -m pytest benchmarks -m overhead                  # one question; those of benchmarks/questions.py
    python -m pytest benchmarks -m 'cpu and process' -k pipekit
    python -m pytest benchmarks --benchmark-group-by=group
    python -m pytest benchmarks --smoke --benchmark-disable  # does everything still run? asserts no times

A figure is the median of the rounds. For comparisons use benchmarks/compare.py, which interleaves the systems.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.jobs import JOBS
from benchmarks.measure import SMOKE, Meter, Ratios
from benchmarks.runs import environment

#: Seconds that a benchmark may take, also on a busy machine; only a deadlock takes longer.
LIMIT = 600

RATIOS = pytest.StashKey[dict[str, Ratios]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--smoke", action="store_true", help="benchmarks: tiny sizes and one round")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RATIOS] = {}
    SMOKE.on = bool(config.getoption("--smoke"))
    config.addinivalue_line("markers", "not_in_smoke: skipped with --smoke")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(LIMIT))
            if SMOKE.on and item.get_closest_marker("not_in_smoke"):
                item.add_marker(pytest.mark.skip(reason="--smoke: peers do the jobs, not the probes"))


@pytest.fixture(
    params=[pytest.param("thread", marks=pytest.mark.thread), pytest.param("process", marks=pytest.mark.process)]
)
def backend(request: pytest.FixtureRequest) -> str:
    """Each backend in turn."""
    return str(request.param)


@pytest.fixture(scope="session", autouse=True)
def _environment() -> Iterator[None]:
    """The server and the files that some questions need."""
    words = JOBS["words"]
    with environment(SMOKE.size(words.sizes["fast"], words.smoke)):
        yield


@pytest.fixture
def meter(request: pytest.FixtureRequest, benchmark: BenchmarkFixture) -> Meter:
    """Measures, and keeps the ratios for the summary."""
    ratios = request.config.stash[RATIOS].setdefault(request.node.nodeid, {})
    return Meter(benchmark, ratios)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The figures, which the table of times does not show."""
    rows = {name: ratios for name, ratios in config.stash[RATIOS].items() if ratios}
    if not rows:
        return
    terminalreporter.section("figures")
    for name, ratios in rows.items():
        shown = ", ".join(f"{key.replace('_', ' ')}: {value:g}" for key, value in ratios.items())
        terminalreporter.write_line(f"{name.rpartition('/')[2]}  {shown}")
