"""What `program.py` does: one run of one system."""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import ExitStack
from importlib import import_module
from itertools import chain
from time import perf_counter
from typing import Any

from benchmarks.jobs import JOBS, Job
from benchmarks.probes import PROBES, Figures
from benchmarks.systems import SYSTEMS, System


def run_job(system: System, job: Job, items: int) -> Figures:
    source = job.source(items)
    with ExitStack() as stack:
        called = perf_counter()
        results = system.run(job, source, items, stack)
        rest = iter(results)
        first = next(rest)
        began = called if system.at_once else perf_counter()
        answer = job.answer(chain((first,), rest))
        ended = perf_counter()
    expected = job.expected(items)
    assert answer == expected, f"the answer is {answer!r:.200}, not {expected!r:.200}"
    from_call = (ended - called) / items * 1e6
    from_first = (ended - began) / (items - 1) * 1e6
    per_item = from_first if job.from_first else from_call
    return {"per_item": per_item, "from_first": from_first, "from_call": from_call}


def check_job(system: System, job: Job, items: int) -> Figures:
    with ExitStack() as stack:
        found = list(system.run(job, job.source(items), items, stack))
    expected = list(SYSTEMS["serial"].run(job, job.source(items), items, ExitStack()))
    assert sorted(map(_comparable, found)) == sorted(map(_comparable, expected)), f"wrong results: {found!r:.500}"
    return {}


def _comparable(result: Any) -> Any:
    """Arrays and counters have no order."""
    if hasattr(result, "tobytes"):
        return result.tobytes()
    return sorted(result.items()) if isinstance(result, dict) else result


def main(system_name: str, question: str, size: str, *options: str) -> None:
    warnings.simplefilter("ignore")  # forks with threads, in the peers
    system, items = SYSTEMS[system_name], int(size)
    if system.module is not None:
        import_module(system.module)  # no import is timed
    print("ready", flush=True)
    sys.stdin.readline()
    if question in PROBES:
        figures = PROBES[question](system, items)
    elif "--check" in options:
        figures = check_job(system, JOBS[question], items)
    else:
        figures = run_job(system, JOBS[question], items)
    print(json.dumps(figures), flush=True)
    os._exit(0)  # some would wait for ever; who has started this program ends what it leaves
