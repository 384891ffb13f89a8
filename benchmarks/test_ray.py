"""Stages on Ray: what they cost beside processes, and the same job by Ray Data.

Needs Ray and its data library: `pip install "ray[data]"`. `-m ray` chooses this module.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest

from benchmarks.jobs import compute_5_ms, compute_20_us, pages, same
from benchmarks.measure import SMOKE, Meter
from pipekit import RayBackend, Results, map_stage

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "ray[data]"')

pytestmark = [pytest.mark.ray, pytest.mark.benchmark(group="what does Ray cost?")]

#: A worker on a Ray that has no more CPUs than the machine, which Ray Data would use all at once.
ON_RAY = RayBackend(num_cpus=0)


@pytest.fixture(scope="module", autouse=True)
def _ray_started() -> Iterator[None]:
    """A Ray with the CPUs of this machine, as Ray Data needs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        here = str(Path(__file__).parents[1])  # where workers of Ray Data find this module
        patch.setenv("PYTHONPATH", here, prepend=os.pathsep)
        ray.init("local", include_dashboard=False, object_store_memory=1 << 30, logging_level="ERROR")
        for backend in (ON_RAY, "process"):
            read((range(100) | map_stage(workers=2, backend=backend)(same)).results())
        yield
        ray.shutdown()


def read(results: Iterable[object]) -> None:
    """All of them, at the least cost."""
    deque(results, maxlen=0)


def flow(results: Results[Any]) -> float:
    """Seconds from the first result to the last: actors take a fifth of a second to start, once for each run."""
    next(results)
    started = perf_counter()
    read(results)
    return perf_counter() - started


def test_5_ms_on_two_workers(meter: Meter) -> None:
    """`of process`: the share of the processes' throughput, between the first and the last result. The goal is 0.85."""
    items = SMOKE.size(1_600, 20)
    seconds: dict[Any, list[float]] = {ON_RAY: [], "process": []}

    def through(backend: Any) -> Callable[[], None]:
        def run() -> None:
            pipe = range(items) | map_stage(workers=2, backend=backend)(compute_5_ms)
            seconds[backend].append(flow(pipe.results()))

        return run

    meter.beside(through(ON_RAY), process=through("process"))
    shares = [process / actors for process, actors in zip(seconds["process"], seconds[ON_RAY], strict=True)]
    meter.note(of_process=sorted(shares)[len(shares) // 2])


@pytest.mark.parametrize("stages", [1, 3])
def test_nothing_with_integers(meter: Meter, stages: int) -> None:
    """`us per item`, start included. The goal is 10. Not fused: each stage is an actor."""
    items = SMOKE.size(2_000_000, 100)
    pipe: Any = range(items)
    for _ in range(stages):
        pipe = pipe | map_stage(backend=ON_RAY, fuse=False)(same)
    if meter.time(lambda: read(pipe.results())) is not None:
        meter.note(us_per_item=meter.median / items * 1e6)


@pytest.mark.parametrize("size", [10_000, 1_000_000])
def test_nothing_with_bytes(meter: Meter, size: int) -> None:
    """`us per item` for two stages that pass on what they get, from one actor to the other."""
    items = SMOKE.size(min(20_000, 400_000_000 // size), 20)
    one = map_stage(backend=ON_RAY, fuse=False)(same)
    if (
        meter.time(lambda: read((pages(items, size) | one | one | map_stage(backend=ON_RAY)(len)).results()))
        is not None
    ):
        meter.note(us_per_item=meter.median / items * 1e6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray Data's own
def test_three_stages_against_ray_data(meter: Meter) -> None:
    """`ray data`: what share of the time that `map_batches` takes for the same three functions. The goal is less
    than 1."""
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = False
    items = SMOKE.size(60_000, 100)

    def by_pipekit() -> None:
        stages = [map_stage(workers=2, backend=ON_RAY)(compute_20_us) for _ in range(3)]
        results = (range(items) | stages[0] | stages[1] | stages[2]).results()
        assert sum(results) == sum(range(items))

    def by_ray_data() -> None:
        data = ray.data.range(items)
        for _ in range(3):
            data = data.map_batches(compute_batch, batch_size=1024)
        assert sum(row["id"] for row in data.iter_rows()) == sum(range(items))

    meter.note(ray_data=(meter.beside(by_pipekit, ray_data=by_ray_data) or {}).get("ray_data", 0.0))


def compute_batch(batch: dict[str, Any]) -> dict[str, Any]:
    return {"id": [compute_20_us(int(item)) for item in batch["id"]]}
