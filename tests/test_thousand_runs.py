"""Runs leave nothing, however many there are and however they end."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from multiprocessing import forkserver
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import psutil
import pytest
from conftest import BACKENDS, eventually, workers_alive

from pipekit import ProcessBackend, TaskException, WorkerDied, map_stage

#: Makes a pipeline of a source and a function.
Pipe: TypeAlias = Callable[[Iterable[int], Callable[[int], Any]], Any]

RUNS = 1000
#: Runs before anything is counted: then imports are done, and caches and the allocator's pools have their sizes.
WARM_UP = 100
#: Bytes that a process may grow by in them: 4 KiB a run. A leak is more; the allocator takes steps of 1 MiB at times.
GROWTH = 4 << 20


def _pipe(*backends: Any) -> Pipe:
    def pipe(source: Iterable[int], function: Callable[[int], Any]) -> Any:
        stages: Any = source
        for backend in backends:
            stages |= map_stage(backend=backend)(function)
        return stages

    return pipe


PIPES = {
    **{backend: _pipe(backend) for backend in BACKENDS},
    "mixed": _pipe("process", "thread"),
    "spawn": _pipe(ProcessBackend("spawn")),
    "fork": _pipe(ProcessBackend("fork")),
}


def _succeed(pipe: Pipe) -> None:
    assert sorted(pipe(range(3), lambda number: number).results()) == [0, 1, 2]


def _fail(pipe: Pipe) -> None:
    with pytest.raises(TaskException, match="ZeroDivisionError"):
        list(pipe(range(5), lambda number: 1 // (number - 2)).results())


def _break(pipe: Pipe) -> None:
    for _ in pipe(itertools.count(), lambda number: number).results():
        break


def _drop_unread(pipe: Pipe) -> None:
    pipe(itertools.count(), lambda number: number).results()


def _die(pipe: Pipe) -> None:
    with pytest.raises(WorkerDied, match="SIGKILL"):
        list(pipe(range(5), lambda _: os.kill(os.getpid(), signal.SIGKILL)).results())


OUTCOMES: dict[str, list[Callable[[Pipe], None]]] = {
    "succeed": [_succeed],
    "fail": [_fail],
    "break": [_break],
    "drop unread": [_drop_unread],
    "die": [_die],
    "all in turn": [_succeed, _fail, _break, _drop_unread],
}
CASES = [
    *((kind, outcome) for kind in (*BACKENDS, "mixed") for outcome in OUTCOMES if outcome != "die"),
    ("process", "die"),
    ("spawn", "all in turn"),
    ("fork", "all in turn"),
]


@dataclass(frozen=True, slots=True)
class Level:
    """What is in use now. The fork server serves all runs of a program, and may keep nothing of one either."""

    descriptors: int
    threads: int
    workers: int
    shared_files: int
    server_descriptors: int
    objects: Counter[str]

    def __le__(self, other: Level) -> bool:
        """Whether nothing has come. (What an earlier test had left in a cycle may have gone meanwhile.)"""
        return all(getattr(self, each.name) <= getattr(other, each.name) for each in fields(self))


def _level() -> Level:
    gc.collect()
    shared = Path("/dev/shm")
    return Level(
        descriptors=len(os.listdir("/proc/self/fd")),
        threads=threading.active_count(),
        workers=len(workers_alive()),
        shared_files=len(os.listdir(shared)) if shared.is_dir() else 0,
        server_descriptors=_fork_server().num_fds(),
        objects=Counter(type(each).__qualname__ for each in gc.get_objects() if _is_ours(each)),
    )


def _is_ours(each: object) -> bool:
    module: object = type(each).__module__
    return isinstance(module, str) and module.partition(".")[0] == "pipekit"  # some classes have a descriptor there


def _fork_server() -> psutil.Process:
    server: Any = forkserver._forkserver
    return psutil.Process(server._forkserver_pid)


def _grown(sizes: list[int]) -> int:
    """Bytes from the beginning to the end, in both without the outliers."""
    tenth = len(sizes) // 10
    return int(median(sizes[-tenth:]) - median(sizes[:tenth]))


@pytest.mark.nightly
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize(("kind", "outcome"), CASES)
def test_a_thousand_runs_leave_nothing(kind: str, outcome: str) -> None:
    run_in_turn = itertools.cycle(OUTCOMES[outcome])
    for _ in range(WARM_UP):
        next(run_in_turn)(PIPES[kind])
    before = _level()
    own, server = psutil.Process(), _fork_server()
    sizes, server_sizes = [], []
    for number in range(RUNS):
        next(run_in_turn)(PIPES[kind])
        if number % 50 == 0:
            gc.collect()  # tracebacks are in cycles, and without a GIL CPython 3.13 lets them be until there are many
        sizes.append(own.memory_info().rss)
        server_sizes.append(server.memory_info().rss)
    eventually(lambda: _level() <= before, lambda: f"{_level()} is more than it was: {before}")
    print(f"{kind}, {outcome}: {_grown(sizes) >> 10} KiB, the fork server {_grown(server_sizes) >> 10} KiB")
    assert _grown(sizes) < GROWTH
    assert _grown(server_sizes) < GROWTH


def test_two_hundred_short_runs_leave_nothing(backend: str) -> None:
    """The short form of the thousand runs, for each time."""
    in_turn = itertools.cycle(OUTCOMES["all in turn"])
    next(in_turn)(PIPES[backend])
    before = _level()
    for _ in range(200):
        next(in_turn)(PIPES[backend])
    eventually(lambda: _level() <= before, lambda: f"{_level()} is more than it was: {before}")


def test_a_run_that_succeeds_leaves_nothing_to_the_garbage_collector(backend: str) -> None:
    _succeed(PIPES[backend])
    gc.collect()
    gc.disable()
    try:
        _succeed(PIPES[backend])
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        left = {type(each).__qualname__ for each in gc.garbage if _is_ours(each)}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == set()
