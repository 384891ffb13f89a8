"""What is asked of a system besides the time of a job. A probe gives figures by name.

Times of different processes are compared: on Linux `perf_counter` is the same clock in all of them.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter, sleep
from typing import Any, TypeAlias

from benchmarks.jobs import Job, Step, loops_for, same, spin
from benchmarks.systems import System

Figures: TypeAlias = dict[str, float]
Probe: TypeAlias = Callable[[System, int], Figures]

SOURCE_PAUSE = 0.005
HELD_EVERY, HELD_SECONDS = 50, 0.05
CONSUMER_SECONDS = 0.001


@contextmanager
def running(system: System, steps: tuple[Step, ...], source: Iterable[Any], size: int) -> Iterator[Iterator[Any]]:
    """The results of these steps; what the system has opened is closed at the end."""
    job = Job(steps, {}, lambda _: None)
    with ExitStack() as stack:
        yield iter(system.run(job, source, size, stack))


# Start

FIRST_OF = 10
START_WORKERS = 4


def start(system: System, _: int) -> Figures:
    """Ten items on four workers, and once more in the same program."""
    first, whole = _start_once(system)
    first_again, whole_again = _start_once(system)
    return {"first": first, "whole": whole, "first_again": first_again, "whole_again": whole_again}


def _start_once(system: System) -> tuple[float, float]:
    """Milliseconds to the first result, and to the end of the run with its workers."""
    started = perf_counter()
    with running(system, (Step(same, START_WORKERS),), range(FIRST_OF), FIRST_OF) as results:
        found = {next(results)}
        first = perf_counter() - started
        found.update(results)
    whole = perf_counter() - started
    assert found == set(range(FIRST_OF))
    return first * 1e3, whole * 1e3


def import_cost(_: System, rounds: int) -> Figures:
    """Milliseconds that `import pipekit` adds to starting Python."""
    programs = ("pass", "import pipekit")
    _program_seconds(programs[-1])  # compiles what is not compiled yet
    seconds = [[_program_seconds(program) for program in programs] for _ in range(rounds)]
    bare, with_import = (statistics.median(column) for column in zip(*seconds, strict=True))
    return {"import": (with_import - bare) * 1e3, "python": bare * 1e3}


def _program_seconds(program: str) -> float:
    started = perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return perf_counter() - started


# Latency


def latency(system: System, items: int) -> Figures:
    """Milliseconds from a slow source to the reader, through two steps."""

    def source() -> Iterator[float]:
        for _ in range(items):
            sleep(SOURCE_PAUSE)
            yield perf_counter()

    with running(system, (Step(same),) * 2, source(), items) as results:
        late = sorted((perf_counter() - made) * 1e3 for made in results)
    assert len(late) == items
    return {"p50": late[items // 2], "p99": late[items * 99 // 100], "max": late[-1]}


def _slow_now_and_then(item: int) -> float:
    if item % HELD_EVERY == 0:
        sleep(HELD_SECONDS)
    return perf_counter()


def held(system: System, items: int) -> Figures:
    """Milliseconds from a function's return to the reader, where every 50th item takes 50 ms."""
    with running(system, (Step(_slow_now_and_then),), range(items), items) as results:
        late = sorted((perf_counter() - done) * 1e3 for done in results)
    assert len(late) == items
    return {"p50": late[items // 2], "p99": late[items * 99 // 100], "max": late[-1]}


# Memory


def read_ahead(system: System, items: int) -> Figures:
    """How many items are taken from the source before the reader, who needs a millisecond for each, has read them."""
    taken = itertools.count()
    stop = threading.Event()
    source = itertools.takewhile(lambda _: not stop.is_set(), taken)
    first_rss = most = 0
    with running(system, (Step(same),) * 2, source, sys.maxsize) as results:
        for delivered in range(1, items + 1):
            next(results)
            most = max(most, _value(taken) - delivered)
            if delivered == items // 4:
                first_rss = rss_bytes()
            sleep(CONSUMER_SECONDS)
        stop.set()
        return {"items": most, "rss_growth": (rss_bytes() - first_rss) / 1e6}


def _value(counter: itertools.count[int]) -> int:
    """The next value, without taking it."""
    return int(repr(counter)[len("count(") : -1])


def flat_memory(system: System, items: int) -> Figures:
    """Megabytes that the program and its children grow by, from a tenth of the items to the end; a fast reader."""
    growth = 0
    with running(system, (Step(same),) * 2, range(items), items) as results:
        skip(results, items // 10)
        before = rss_bytes()
        for _ in range(9):
            skip(results, items // 10)
            growth = max(growth, rss_bytes() - before)
    return {"rss_growth": growth / 1e6}


def skip(items: Iterator[object], count: int) -> None:
    deque(itertools.islice(items, count), maxlen=0)


def rss_bytes() -> int:
    """Of this program and all its children."""
    import psutil

    program = psutil.Process()
    total = program.memory_info().rss
    for child in program.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            pass
    return int(total)


# A busy parent

BUSY_WORKERS = max(1, (os.cpu_count() or 2) - 1)  # a core is left for the parent
ITEM_MS, PARENT_MS = 1.0, 0.8


def compute_1_ms(item: int) -> int:
    spin(loops_for(ITEM_MS))
    return item


def parent_work(item: int) -> int:
    spin(loops_for(PARENT_MS / BUSY_WORKERS))
    return item


def busy_parent(system: System, items: int) -> Figures:
    """How busy the workers stay, in percent of a run with an idle parent."""
    work = Step(compute_1_ms, BUSY_WORKERS, "process")
    in_stage = Step(parent_work, 1, "thread")
    idle = _busy_run(system, (work,), items, same)
    return {
        "consumer": 100 * idle / _busy_run(system, (work,), items, parent_work),
        "thread_stage": 100 * idle / _busy_run(system, (in_stage, work), items, same),
        "other_thread": 100 * idle / _beside_a_busy_thread(lambda: _busy_run(system, (work,), items, same)),
    }


def _busy_run(system: System, steps: tuple[Step, ...], items: int, read: Callable[[int], int]) -> float:
    """Seconds from the first result to the last."""
    with running(system, steps, range(items), items) as results:
        read(next(results))
        started = perf_counter()
        assert 1 + sum(1 for _ in map(read, results)) == items
        return perf_counter() - started


def _beside_a_busy_thread(run: Callable[[], float]) -> float:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            spin(1000)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        return run()
    finally:
        stop.set()
        thread.join()


PROBES: dict[str, Probe] = {
    "start": start,
    "import_cost": import_cost,
    "latency": latency,
    "held": held,
    "read_ahead": read_ahead,
    "flat_memory": flat_memory,
    "busy_parent": busy_parent,
}
