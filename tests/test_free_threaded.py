"""What is particular to an interpreter without a GIL: where that backend runs, and what two threads must not do."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from conftest import BACKENDS, eventually
from test_backends import run

from pipekit import (
    BackendUnavailable,
    Doing,
    FreeThreadedBackend,
    PipekitError,
    TaskException,
    WorkerState,
    map_stage,
    merge,
    stage,
)
from pipekit._gil import gil_is_on
from pipekit._output import QUICK, TICK
from pipekit._stack import calls_of

FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
needs_a_gil = pytest.mark.skipif(FREE_THREADED, reason="a free-threaded build of Python")
needs_no_gil = pytest.mark.skipif(gil_is_on(), reason="this interpreter has a GIL")
on_threads = pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "process"])
needs_a_free_threaded_build = pytest.mark.skipif(not FREE_THREADED, reason="not a free-threaded build of Python")


def run_with(environment: dict[str, str], code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(code, *arguments, env={**os.environ, **environment})


def same(number: int) -> int:
    return number


# -- where it runs


@needs_a_free_threaded_build
def test_the_tests_run_without_a_gil_on_a_free_threaded_build() -> None:
    """An extension module that one of them imports could have switched it on, and nobody would have noticed."""
    assert not gil_is_on()


@needs_a_gil
def test_with_a_gil_it_is_unavailable_when_the_pipeline_is_compiled_and_the_error_says_what_runs() -> None:
    pipe = range(3) | map_stage(backend="free-threaded")(same)
    for compiled in (pipe.plan, pipe.results):
        with pytest.raises(BackendUnavailable) as caught:
            compiled()
        message = str(caught.value)
        assert f"(CPython {sys.version_info.major}.{sys.version_info.minor}) has it" in message
        assert "free-threaded build, such as python3.14t" in message
        assert 'backend="process" runs here' in message
        assert 'backend="auto"' in message


@pytest.mark.parametrize("option", ["free-threaded", FreeThreadedBackend()])
def test_it_may_be_declared_everywhere(option: str | FreeThreadedBackend) -> None:
    assert map_stage(same).setup(backend=option).options.backend == option


def test_auto_is_the_cheapest_backend_that_runs_python_code_in_parallel() -> None:
    pipe = range(3) | map_stage(backend="auto", workers=2)(same)
    expected = "process" if gil_is_on() else "free-threaded"
    assert f"same: 2 x {expected} -> results" in pipe.plan().explain()
    assert sorted(pipe.results()) == [0, 1, 2]


@needs_no_gil
def test_its_workers_are_threads_that_pass_items_on_as_they_are() -> None:
    item = object()
    pipe = [item] | map_stage(backend="free-threaded")(lambda one: (one, os.getpid(), threading.current_thread().name))
    assert list(pipe.results()) == [(item, os.getpid(), "<lambda>-0")]


# -- an interpreter whose GIL is switched on

REPORT = """
from pipekit import BackendUnavailable, map_stage
def same(number):
    return number
print((range(1) | map_stage(backend="auto")(same)).plan().explain().count("process"))
try:
    (range(1) | map_stage(backend="free-threaded")(same)).results()
except BackendUnavailable as error:
    print(error)
"""


@needs_a_free_threaded_build
def test_where_the_gil_was_asked_for_it_is_unavailable_and_auto_takes_processes() -> None:
    done = run_with({"PYTHON_GIL": "1"}, REPORT)
    assert done.stderr == ""
    processes, message = done.stdout.splitlines()
    assert processes == "1"
    assert "has it switched on: by PYTHON_GIL, by -X gil" in message
    assert 'backend="process" runs here' in message


MODULE = """
#include <Python.h>

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "needs_the_gil"};

PyMODINIT_FUNC PyInit_needs_the_gil(void) { return PyModule_Create(&module); }
"""

IN_THE_MIDDLE = """
from pipekit import BackendUnavailable, map_stage

def same(number):
    if number == 5000:
        import needs_the_gil
    return number

pipe = range(10_000) | map_stage(backend="free-threaded", workers=2)(same)
assert sorted(pipe.results()) == list(range(10_000))
try:
    pipe.results()
except BackendUnavailable as error:
    print(error)
"""


@pytest.fixture
def module_that_needs_the_gil(tmp_path: Path) -> Path:
    """A directory with an extension module that does not say that it does without."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    headers = sysconfig.get_paths()["include"]
    if compiler is None or not (Path(headers) / "Python.h").exists():
        pytest.skip("no C compiler, or no headers of this Python")
    (tmp_path / "module.c").write_text(MODULE)
    target = str(tmp_path / "needs_the_gil.so")
    subprocess.run([compiler, "-shared", "-fPIC", f"-I{headers}", str(tmp_path / "module.c"), "-o", target], check=True)
    return tmp_path


@needs_a_free_threaded_build
def test_one_warning_names_the_module_that_switches_the_gil_on_while_a_pipeline_runs(
    module_that_needs_the_gil: Path,
) -> None:
    done = run_with({"PYTHONPATH": str(module_that_needs_the_gil)}, IN_THE_MIDDLE)
    ours = [line for line in done.stderr.splitlines() if "RuntimeWarning: the GIL was switched on" in line]
    assert len(ours) == 1, done.stderr
    assert "by the import of 'needs_the_gil' while a pipeline ran" in ours[0]
    assert "has switched it on to load 'needs_the_gil'" in done.stdout


@needs_a_free_threaded_build
def test_the_warning_comes_without_a_name_where_pythons_own_is_ignored(module_that_needs_the_gil: Path) -> None:
    unheard = "ignore:The global interpreter lock:RuntimeWarning"
    done = run_with({"PYTHONPATH": str(module_that_needs_the_gil)}, IN_THE_MIDDLE, "-W", unheard)
    assert done.stderr.count("the GIL was switched on by the import of an extension module") == 1, done.stderr


# -- what two threads must not do


def test_items_that_a_stage_reads_in_two_threads_are_an_error_also_where_it_hides_it(
    backend: str, tmp_path: Path
) -> None:
    """A generator that two threads advance ends CPython 3.13 without a GIL; with one, items were lost."""
    told = tmp_path / "told"

    def shares(items: Iterable[int]) -> Iterator[int]:
        taken: list[int] = []

        def read() -> None:
            try:
                taken.extend(items)
            except PipekitError:
                told.touch()

        threads = [threading.Thread(target=read) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        yield from taken

    def waits_for_two() -> Iterator[int]:
        eventually(told.exists, seconds=30)
        yield from range(10)

    with pytest.raises(TaskException, match="items of a stage are read twice at the same time"):
        list((waits_for_two() | stage(backend=backend)(shares)).results())


@on_threads
def test_a_generator_is_advanced_and_closed_by_one_thread(backend: str) -> None:
    """Closed by whoever leaves, it would be in the middle of a step."""

    def endless(items: Iterable[int], seen: set[int]) -> Iterator[int]:
        try:
            for item in items:
                seen.add(threading.get_ident())
                yield item
        finally:
            seen.add(threading.get_ident())

    for _ in range(20):
        threads: set[int] = set()
        with (itertools.count() | stage(backend=backend)(endless)(threads)).results() as results:
            next(results)
        assert len(threads) == 1


@on_threads
def test_a_slow_item_that_only_computes_keeps_back_nothing_of_other_workers(backend: str) -> None:
    """Without a GIL, the list that quick results before it are in is locked meanwhile."""
    count = 100 * QUICK
    spinning, release = threading.Event(), threading.Event()

    def spins_at_last(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            if number == count - 1:
                spinning.set()
                while not release.is_set():
                    pass
            yield number

    def waits(word: str) -> str:
        if word == "first":
            spinning.wait(60)
            time.sleep(20 * TICK)  # the flusher has looked at the other worker, again and again
        if word == "last":
            release.wait(60)
        return word

    words = ["first", *10 * ["quick"], "last"]
    pipe = merge(range(count) | stage(backend=backend)(spins_at_last), words | map_stage(backend=backend)(waits))
    arrived: Counter[object] = Counter()
    for result in pipe.results(stall_timeout=30):
        arrived[type(result)] += 1
        if arrived[str] == len(words) - 1:
            release.set()
    assert arrived == {int: count, str: len(words)}


# -- where a thread is


def test_where_another_thread_is_can_be_asked_while_it_runs_and_while_it_waits() -> None:
    release = threading.Event()

    def waits() -> None:
        release.wait(60)

    def runs() -> None:
        while not release.is_set():
            sum(range(100))

    for target in (waits, runs):
        release.clear()
        thread = threading.Thread(target=target)
        thread.start()
        eventually(lambda name=target.__name__, of=thread: f"in {name}" in calls_of(of.ident or 0, ()))  # type: ignore[misc]
        release.set()
        thread.join()


@on_threads
def test_what_each_of_two_workers_does_can_be_asked_while_they_run(backend: str) -> None:
    """Without a GIL, to look at the frames of a thread that runs may end the program."""
    stop = threading.Event()
    begun = threading.Barrier(3)

    def deep(number: int) -> int:
        return deep(number - 1) + 1 if number else 0

    def spins(items: Iterable[int]) -> Iterator[int]:
        for item in items:
            begun.wait(60)
            while not stop.is_set():
                deep(20)
            yield item

    def left(items: Iterable[int]) -> Iterator[int]:
        yield from spins(items)

    def right(items: Iterable[int]) -> Iterator[int]:
        yield from spins(items)

    results = merge([1] | stage(backend=backend)(left), [2] | stage(backend=backend)(right)).results()
    begun.wait(60)
    answers: list[WorkerState] = []
    for _ in range(100):
        for worker in results._run._workers:
            worker.inquire(answers.extend, detail=True)
    stop.set()
    assert sorted(results) == [1, 2]
    working = [state for state in answers if state.doing is Doing.WORKING]
    other = {"left": "in right", "right": "in left"}
    assert not [state for state in working if other[state.stage] in state.traceback]
    named = [state for state in working if f"in {state.stage}" in state.traceback]
    assert len(working) == 2 * 100
    assert len(named) > 0.9 * len(working)  # a thread that gets no processor time does not answer
