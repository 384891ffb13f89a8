"""Odd uses: what nobody plans for and somebody does. Full results or an error that says what happened, never a hang."""

from __future__ import annotations

import functools
import itertools
import os
import queue
import resource
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.pool import Pool
from operator import itemgetter
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import BACKENDS, REMOTE, eventually

from pipekit import (
    ItemNotPicklable,
    RemoteTraceback,
    SignatureError,
    Stage,
    TaskException,
    WorkerDied,
    map_stage,
    stage,
)

#: Seconds that leaving may take, by promise, and what a loaded machine may add to what is measured here.
PROMISED = 2.0
SLACK = 3.0


# -- many and large


@pytest.fixture(params=["/".join(kinds) for kinds in itertools.product(BACKENDS, repeat=3)])
def three_levels(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    """A backend for the outer pipeline, for one in its workers, and for one in the workers of that."""
    outer, middle, inner = str(request.param).split("/")
    return outer, middle, inner


def test_pipelines_inside_the_workers_of_pipelines_inside_workers(three_levels: tuple[str, str, str]) -> None:
    outer, middle, inner = three_levels

    def inside(count: int) -> int:
        return sum((range(count) | map_stage(backend=inner)(lambda number: number)).results())

    def outside(count: int) -> int:
        return sum((range(count) | map_stage(workers=2, backend=middle)(inside)).results())

    assert sorted((range(6) | map_stage(workers=2, backend=outer)(outside)).results()) == [0, 0, 0, 1, 4, 10]


def test_a_failure_two_levels_below_arrives_with_its_whole_story(three_levels: tuple[str, str, str]) -> None:
    outer, middle, inner = three_levels

    def innermost(number: int) -> int:
        raise ValueError(f"deep {number}")

    def inside(number: int) -> Any:
        return ([number] | map_stage(backend=inner)(innermost)).execute()

    def outside(number: int) -> Any:
        return ([number] | map_stage(backend=middle)(inside)).execute()

    with pytest.raises(
        TaskException, match='"outside-0" raised TaskException.*"inside-0".*"innermost-0".*deep 7'
    ) as all_:
        ([7] | map_stage(backend=outer)(outside)).execute()
    story = "".join(traceback.format_exception(all_.value))
    assert 'raise ValueError(f"deep {number}")' in story
    assert "ValueError: deep 7" in story
    assert all(f", in {name}" in story for name in ("innermost", "inside", "outside"))


def test_leaving_ends_pipelines_two_levels_below(three_levels: tuple[str, str, str]) -> None:
    outer, middle, inner = three_levels

    def inside(_: Iterable[int]) -> Iterator[int]:
        yield from (itertools.count() | map_stage(backend=inner)(lambda number: number)).results()

    def outside(_: Iterable[int]) -> Iterator[int]:
        yield from ([0] | stage(backend=middle)(inside)).results()

    results = ([0] | stage(backend=outer)(outside)).results()
    assert next(results) == 0
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < PROMISED + SLACK  # that nothing is left is checked after each test


def test_fifty_pipelines_at_once(backend: str) -> None:
    pipes = [range(100) | map_stage(backend=backend)(lambda number, n=n: number + n) for n in range(50)]
    running = [pipe.results() for pipe in pipes]
    assert [sum(results) for results in running] == [4950 + 100 * n for n in range(50)]


def test_ten_stages_of_alternating_backends(backend: str) -> None:
    kinds = BACKENDS if backend == BACKENDS[0] else BACKENDS[::-1]
    pipe: Any = range(3000)
    for kind in itertools.islice(itertools.cycle(kinds), 10):
        pipe = pipe | map_stage(workers=2, backend=kind)(lambda number: number + 1)
    assert sorted(pipe.results()) == list(range(10, 3010))


def test_a_million_items_arrive_once_each(backend: str) -> None:
    results = (range(10**6) | map_stage(workers=2, backend=backend)(lambda number: -number)).results()
    assert sorted(results) == list(range(-(10**6) + 1, 1))


@pytest.mark.parametrize(
    "size", [100 * 10**6, pytest.param(2**30, marks=[pytest.mark.nightly, pytest.mark.timeout(300)])]
)
def test_a_huge_item_arrives(backend_pair: tuple[str, str], size: int) -> None:
    first, second = (map_stage(backend=name)(lambda item: item) for name in backend_pair)
    item = b"\xa5" * size
    assert list(([item] | first | second).results()) == [item]


# -- odd items


class Hostile:
    """Raises whatever one asks of it; pickles as any object does."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("not to be compared")

    def __hash__(self) -> int:
        raise ValueError("not to be hashed")

    def __bool__(self) -> bool:
        raise ValueError("neither true nor false")

    def __len__(self) -> int:
        raise ValueError("of no length")

    def __iter__(self) -> Iterator[object]:
        raise ValueError("not to be iterated")

    def __repr__(self) -> str:
        raise SystemExit("not to be shown")

    def __getitem__(self, key: object) -> object:
        raise ValueError("without items")

    def __call__(self) -> object:
        raise ValueError("not to be called")


class EqualToAll:
    """Would pass for any sentinel that is compared by `==`."""

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


class Length(int):
    """Says that it is a number, and that it has no items."""

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[object]:
        return iter(())


class Changeling:
    """Pickles as something else."""

    def __reduce__(self) -> Any:
        return EqualToAll, ()


class RaisesWhenDropped:
    def __del__(self) -> None:
        raise ValueError("dropped")


def test_items_that_raise_or_lie_when_they_are_looked_at_pass_through(backend_pair: tuple[str, str]) -> None:
    items: list[Any] = [Hostile(), EqualToAll(), Length(3), Hostile, NotImplemented, KeyboardInterrupt(), GeneratorExit]
    first, second = (map_stage(workers=2, backend=name)(lambda item: item) for name in backend_pair)
    results = list((items * 20 | first | second).results())
    assert Counter(map(type, results)) == Counter(20 * list(map(type, items)))


def test_what_an_item_pickles_as_is_what_arrives() -> None:
    assert type(([Changeling()] | map_stage(lambda item: item)).execute()) is EqualToAll


def test_items_that_raise_when_they_are_dropped_do_no_harm(
    backend: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # Python's own words on it; a worker's go to its stderr
    pipe = (RaisesWhenDropped() for _ in range(100)) | map_stage(workers=2, backend=backend)(
        lambda item: type(item).__name__
    )
    assert list(pipe.results()) == ["RaisesWhenDropped"] * 100
    capfd.readouterr()


class Unpicklable:
    """Does one of several things instead of being pickled."""

    def __init__(self, reduce: Callable[[], Any]) -> None:
        self.reduce = reduce

    def __reduce__(self) -> Any:
        return self.reduce()


def _raising(error: type[BaseException]) -> Callable[..., Any]:
    def reduce(*_: object) -> Any:
        raise error("instead")

    return reduce


class Recursive:
    """The classic: unpickling asks for an attribute, which asks for an attribute."""

    def __init__(self) -> None:
        self.target = 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.target, name)


class LiesAboutItsClass:
    @property  # type: ignore[misc]  # object's is not read-only
    def __class__(self) -> Any:
        return str


def _deep_list() -> list[Any]:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    return deep


UNPICKLABLE: dict[str, Callable[[], Any]] = {
    **{
        f"raises {error.__name__}": functools.partial(Unpicklable, _raising(error))
        for error in (RecursionError, StopIteration, GeneratorExit, KeyboardInterrupt, SystemExit, MemoryError)
    },
    "reduces to a number": lambda: Unpicklable(lambda: 42),
    "reduces to a name that is not there": lambda: Unpicklable(lambda: "no_such_name"),
    "reduces to itself without end": lambda: Unpicklable(
        lambda: (list, ([UNPICKLABLE["reduces to itself without end"]()],))
    ),
    "unpickles to a SystemExit": lambda: Unpicklable(lambda: (_raising(SystemExit), ())),
    "__getattr__ without end": Recursive,
    "another __class__": LiesAboutItsClass,
    "too deep": _deep_list,
    "a generator": lambda: (number for number in [1]),
    "a lock": threading.Lock,
}


@pytest.mark.parametrize("kind", UNPICKLABLE)
def test_items_that_cannot_be_pickled_however_they_refuse_are_a_named_error(kind: str) -> None:
    with pytest.raises(ItemNotPicklable, match="could not (un)?pickle"):
        list(([1, UNPICKLABLE[kind](), 2] | map_stage(lambda item: None)).results())


@pytest.mark.parametrize("kind", UNPICKLABLE)
def test_results_that_cannot_be_pickled_however_they_refuse_are_a_named_error(kind: str) -> None:
    make = UNPICKLABLE[kind]
    with pytest.raises(ItemNotPicklable, match="could not (un)?pickle"):
        list((range(3) | map_stage(lambda number: make())).results())


def test_a_keyboard_interrupt_while_a_result_is_unpickled_stops_the_run() -> None:
    def endless(_: Iterable[int]) -> Iterator[Any]:
        yield Unpicklable(lambda: (_raising(KeyboardInterrupt), ()))
        yield from itertools.count()

    results = ([0] | stage(endless)).results()
    with pytest.raises(KeyboardInterrupt):
        next(results)
    assert results.stats().state == "stopped"


# -- odd exceptions


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise SystemExit("no text")

    __repr__ = __str__


class Stubborn(Exception):
    """As a frozen dataclass: takes no attributes."""

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError("frozen")


class Falsy(Exception):
    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = Exception.__hash__


class HoldsALock(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class Chameleon(Exception):
    @property  # type: ignore[misc]  # object's is not read-only
    def __class__(self) -> Any:
        return ValueError


class ReducesToANumber(Exception):
    def __reduce__(self) -> Any:
        return int, ()


class RaisesWhenPickled(Exception):
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def _with_notes() -> BaseException:
    error = ValueError("noted")
    error.add_note("a note")
    return error


def _in_a_circle() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first
    return first


def _with_odd_notes() -> BaseException:
    error = ValueError("noted")
    error.__notes__ = 5  # type: ignore[assignment]
    return error


# How it is made, its class, and whether it comes out of a pickle as it went in.
ODD_EXCEPTIONS: dict[str, tuple[Callable[[], BaseException], type[BaseException], bool]] = {
    "str and repr raise": (Unspeakable, Unspeakable, True),
    "takes no attributes": (Stubborn, Stubborn, True),
    "false and equal to all": (Falsy, Falsy, True),
    "holds a lock": (lambda: HoldsALock("held"), HoldsALock, False),
    "another __class__": (Chameleon, Chameleon, True),
    "unpickles as a number": (ReducesToANumber, ReducesToANumber, False),
    "raises when pickled": (RaisesWhenPickled, RaisesWhenPickled, False),
    "a huge message": (lambda: ValueError("x" * 10**7), ValueError, True),
    "notes": (_with_notes, ValueError, True),
    "notes that are none": (_with_odd_notes, ValueError, True),
    "contexts in a circle": (_in_a_circle, ValueError, True),
    "a group": (lambda: ExceptionGroup("both", [ValueError(1), OSError(2, "two")]), ExceptionGroup, True),
    "a group of odd ones": (lambda: BaseExceptionGroup("all", [HoldsALock("held")]), ExceptionGroup, False),
}


@pytest.mark.parametrize("kind", ODD_EXCEPTIONS)
def test_odd_exceptions_arrive_as_they_are_or_as_text(backend: str, kind: str) -> None:
    make, expected, travels = ODD_EXCEPTIONS[kind]

    def fail(number: int) -> int:
        raise make()

    with pytest.raises(TaskException, match='The task "fail-0" raised') as caught:
        list(([7] | map_stage(backend=backend)(fail)).results())
    assert caught.value.failure.type_name == expected.__name__
    assert type(caught.value.__cause__) is (expected if travels or backend not in REMOTE else RemoteTraceback)
    assert len(str(caught.value)) < 3000
    assert ", in fail\n" in caught.value.failure.traceback
    assert "TaskException" in "".join(traceback.format_exception(caught.value))


def test_an_exception_of_a_class_made_in_a_function_is_caught_by_that_class(backend: str) -> None:
    class Local(Exception):
        pass

    def fail(number: int) -> int:
        raise Local(number)

    with pytest.raises(TaskException) as caught:
        list(([7] | map_stage(backend=backend)(fail)).results())
    assert type(caught.value.__cause__) is Local


def test_what_an_exception_came_from_and_its_notes_are_shown(backend: str) -> None:
    def fail(number: int) -> int:
        try:
            raise KeyError("the context")
        except KeyError:
            try:
                raise OSError("the cause")
            except OSError as cause:
                error = ValueError("the error")
                error.add_note("a note")
                raise error from cause

    with pytest.raises(TaskException) as caught:
        list(([7] | map_stage(backend=backend)(fail)).results())
    shown = "".join(traceback.format_exception(caught.value))
    assert all(text in shown for text in ("the context", "the cause", "the error", "a note"))
    assert caught.value.__cause__ is not None
    assert caught.value.__cause__.__notes__ == ["a note"]


def test_the_members_of_an_exception_group_can_be_handled(backend: str) -> None:
    def fail(number: int) -> int:
        raise ExceptionGroup("both", [ValueError(1), OSError(2, "two")])

    with pytest.raises(TaskException) as caught:
        list(([7] | map_stage(backend=backend)(fail)).results())
    group = caught.value.__cause__
    assert isinstance(group, ExceptionGroup)
    assert [type(error) for error in group.exceptions] == [ValueError, FileNotFoundError]


def _recurse(number: int) -> int:
    return _recurse(number + 1) + 1


def _ask_for_too_much_memory(number: int) -> int:
    return len(bytearray(1 << 62)) + number


ODD_RAISERS: dict[str, Callable[[int], int]] = {
    **{
        kind.__name__: _raising(kind)
        for kind in (StopIteration, StopAsyncIteration, GeneratorExit, KeyboardInterrupt, SystemExit)
    },
    "RecursionError": _recurse,
    "MemoryError": _ask_for_too_much_memory,
}


@pytest.mark.parametrize("kind", ODD_RAISERS)
def test_what_python_gives_a_meaning_of_its_own_is_a_failure_of_the_stage_that_raises_it(
    backend: str, kind: str
) -> None:
    odd = ODD_RAISERS[kind]

    def called(items: Iterable[int]) -> Iterable[int]:
        return [odd(item) for item in items]

    def generated(items: Iterable[int]) -> Iterator[int]:
        for item in items:
            yield odd(item)

    failing: list[Any] = [stage(backend=backend)(called), stage(backend=backend)(generated)]
    failing.append(map_stage(backend=backend)(odd))
    for one in failing:
        with pytest.raises(TaskException, match=kind) as caught:
            list((range(10) | one).results())
        # A StopIteration in a generator becomes a RuntimeError, by Python; in map_stage, by pipekit.
        assert type(caught.value.__cause__).__name__ in (kind, "RuntimeError" if kind == "StopIteration" else kind)


@pytest.mark.parametrize("kind", ODD_RAISERS)
def test_filter_errors_leaves_out_what_is_an_exception_and_nothing_else(backend: str, kind: str) -> None:
    odd = ODD_RAISERS[kind]

    def sometimes(number: int) -> int:
        return odd(number) if number % 2 else number

    pipe = range(10) | map_stage(backend=backend, filter_errors=True)(sometimes)
    if kind in ("GeneratorExit", "KeyboardInterrupt", "SystemExit"):
        with pytest.raises(TaskException, match=kind):
            list(pipe.results())
    else:
        assert list(pipe.results()) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("kind", ODD_RAISERS)
def test_what_python_gives_a_meaning_of_its_own_is_a_failure_of_the_source_that_raises_it(
    backend: str, kind: str
) -> None:
    def source() -> Iterator[int]:
        yield 1
        yield ODD_RAISERS[kind](2)

    with pytest.raises(TaskException, match=f'"source-0" raised .*{kind}'):
        list((source() | map_stage(backend=backend)(lambda number: number)).results())


class NoIterator:
    def __init__(self, iterate: Callable[[], Any]) -> None:
        self.iterate = iterate

    def __iter__(self) -> Any:
        return self.iterate()


@pytest.mark.parametrize("iterate", [lambda: 42, _raising(SystemExit), _raising(StopIteration)])
def test_a_source_that_cannot_be_iterated_is_a_failure_of_the_source(backend: str, iterate: Callable[[], Any]) -> None:
    with pytest.raises(TaskException, match='"source-0" raised'):
        list((NoIterator(iterate) | map_stage(backend=backend)(lambda number: number)).results())


# -- odd functions


class Adder:
    """Its instances, and their methods, are functions."""

    step = 10

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, items: Iterable[int]) -> Iterator[int]:
        return (item + self.step for item in items)

    def of_instance(self, items: Iterable[int]) -> Iterator[int]:
        return (item + self.step for item in items)

    @classmethod
    def of_class(cls, items: Iterable[int]) -> Iterator[int]:
        return (item + cls.step for item in items)

    @staticmethod
    def of_nobody(items: Iterable[int]) -> Iterator[int]:
        return (item + 1 for item in items)

    def one(self, item: int) -> int:
        return item + self.step


def _add(step: int, items: Iterable[int]) -> Iterator[int]:
    return (item + step for item in items)


@functools.cache
def _cached(item: int) -> int:
    return -item


STAGE_FUNCTIONS: dict[str, Callable[..., Iterable[Any]]] = {
    "partial": functools.partial(_add, 3),
    "partial of a method": functools.partial(Adder(4).of_instance),
    "object": Adder(5),
    "method": Adder(6).of_instance,
    "class method": Adder.of_class,
    "static method": Adder.of_nobody,
    "built-in function": sorted,
    "built-in class": enumerate,
    "class": Counter,
    "from itertools": itertools.pairwise,
}

MAP_FUNCTIONS: dict[str, Callable[[Any], Any]] = {
    "partial": functools.partial(pow, 2),
    "object": itemgetter(0),
    "method": Adder(6).one,
    "built-in function": abs,
    "built-in class": complex,
    "method of a class": int.bit_length,
    "method of a list": list(range(100, 110)).__getitem__,
    "cached": _cached,
}


@pytest.mark.parametrize("kind", STAGE_FUNCTIONS)
def test_whatever_can_be_called_with_items_is_a_stage(backend: str, kind: str) -> None:
    function = STAGE_FUNCTIONS[kind]
    assert list((range(10) | Stage(function).setup(backend=backend)).results()) == list(function(range(10)))


@pytest.mark.parametrize("kind", MAP_FUNCTIONS)
def test_whatever_can_be_called_with_an_item_is_a_map_stage(backend: str, kind: str) -> None:
    function = MAP_FUNCTIONS[kind]
    items: list[Any] = [(3,)] if kind == "object" else list(range(10))
    assert list((items | map_stage(backend=backend)(function)).results()) == list(map(function, items))


async def coroutine(items: Iterable[int]) -> Iterable[int]:
    return items


async def generator(items: Iterable[int]) -> Any:
    yield 1


@pytest.mark.parametrize("function", [coroutine, generator, functools.partial(coroutine, [1])])
def test_an_async_function_is_an_error_where_it_is_declared(function: Any) -> None:
    for declare in (Stage, stage, map_stage):
        with pytest.raises(SignatureError, match="is async, and a stage calls plain functions"):
            declare(function)


def test_a_generator_that_yields_when_it_is_closed_does_not_hold_up_leaving(backend: str) -> None:
    def clings(items: Iterable[int]) -> Iterator[int]:
        while True:
            try:
                yield 1
            except GeneratorExit:
                yield 2

    results = ([0] | stage(backend=backend)(clings)).results()
    assert next(results) == 1
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < PROMISED + SLACK


def test_a_stage_may_read_its_items_in_another_thread(backend: str) -> None:
    def reads_elsewhere(items: Iterable[int]) -> Iterator[int]:
        read: queue.Queue[int | None] = queue.Queue()
        thread = threading.Thread(target=lambda: list(map(read.put, itertools.chain(items, [None]))))
        thread.start()
        yield from iter(read.get, None)
        thread.join()

    pipe = range(2000) | stage(workers=2, backend=backend)(reads_elsewhere)
    assert sorted(pipe.results()) == list(range(2000))


def test_a_thread_that_a_process_worker_leaves_running_does_not_hold_up_the_end() -> None:
    def leaves_a_thread(items: Iterable[int]) -> list[int]:
        threading.Thread(target=time.sleep, args=(60,)).start()
        return list(items)

    started = time.monotonic()
    assert list((range(10) | stage(leaves_a_thread)).results()) == list(range(10))
    assert time.monotonic() - started < PROMISED + SLACK


def test_a_stage_may_fork(tmp_path: Path) -> None:
    def forks(number: int) -> int:
        child = os.fork()
        if child == 0:
            os._exit(number)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert sorted((range(20) | map_stage(workers=2)(forks)).results()) == list(range(20))


def test_the_copy_of_a_worker_that_was_forked_by_its_stage_and_goes_on_doubles_nothing_and_ends() -> None:
    def forks_and_goes_on(items: Iterable[int]) -> Iterator[int]:
        for item in items:
            if item == 50:
                os.fork()
            yield item

    assert list((range(1000) | stage(forks_and_goes_on)).results()) == list(range(1000))


def test_a_process_worker_may_use_the_pools_of_the_standard_library() -> None:
    def futures(items: Iterable[int]) -> Iterator[int]:
        with ProcessPoolExecutor(2) as pool:
            yield from pool.map(abs, items)

    def multiprocessing_pool(items: Iterable[int]) -> Iterator[int]:
        with Pool(2) as pool:
            yield from pool.imap(abs, items)

    pipe = range(-50, 0) | stage(futures) | stage(multiprocessing_pool)
    assert sorted(pipe.results()) == list(range(1, 51))


def _ignore_all_signals() -> None:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_IGN)


def _bad_hook(*_: object) -> None:
    raise SystemExit("a hook that raises")


def _set_hooks() -> None:
    sys.excepthook = sys.unraisablehook = threading.excepthook = _bad_hook


SELF_HARM: dict[str, Callable[[], object]] = {
    "changes its directory": lambda: os.chdir("/"),
    "ignores all signals": _ignore_all_signals,
    "blocks all signals": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals()),
    "closes stdin": lambda: os.close(0),
    "closes stdout": lambda: os.close(1),
    "closes stderr": lambda: os.close(2),
    "closes all three": lambda: os.closerange(0, 3),
    "deletes sys.stdout": lambda: delattr(sys, "stdout"),
    "has no sys.stderr": lambda: setattr(sys, "stderr", None),
    "has hooks that raise": _set_hooks,
    "allows little recursion": lambda: sys.setrecursionlimit(120),
    "empties its environment": os.environ.clear,
    "leads a session": os.setsid,
    "opens no more files": lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0)),
    "lets sockets time out": lambda: socket.setdefaulttimeout(0.0001),
    "traces": lambda: sys.settrace(lambda *_: None),
}


@pytest.mark.parametrize("kind", SELF_HARM)
def test_what_a_stage_does_to_its_own_process_loses_nothing(kind: str) -> None:
    harm = SELF_HARM[kind]

    def harms(items: Iterable[int]) -> Iterator[int]:
        harm()
        yield from items

    assert sorted((range(2000) | stage(workers=2)(harms) | map_stage(lambda n: n)).results()) == list(range(2000))


def test_a_worker_that_ignores_all_signals_does_not_outlive_the_run() -> None:
    def deaf(items: Iterable[int]) -> Iterator[int]:
        _ignore_all_signals()
        yield 1
        time.sleep(60)

    results = ([0] | stage(deaf)).results()
    assert next(results) == 1
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < PROMISED + SLACK


def test_a_worker_that_closes_all_its_descriptors_is_an_error() -> None:
    def severs(number: int) -> int:
        os.closerange(3, 1000)
        return number

    with pytest.raises(WorkerDied, match='"severs-0" died'):
        list((range(10) | map_stage(severs)).results())


def test_a_process_worker_may_be_interrupted_by_an_alarm_of_its_own() -> None:
    def too_long(*_: object) -> None:
        raise TimeoutError("too long")

    def limited(number: int) -> str:
        signal.signal(signal.SIGALRM, too_long)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        try:
            time.sleep(60)
        except TimeoutError as error:
            return str(error)
        return "not reached"

    assert list((range(3) | map_stage(limited)).results()) == ["too long"] * 3


def test_the_program_may_let_its_sockets_time_out(backend: str) -> None:
    socket.setdefaulttimeout(0.0001)
    try:
        assert sorted((range(1000) | map_stage(workers=2, backend=backend)(lambda n: n)).results()) == list(range(1000))
    finally:
        socket.setdefaulttimeout(None)


# -- programs of their own


def run(code: str, *prefix: str, seconds: float = 50.0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program, in a session of its own, and see that it leaves no process."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [*prefix, sys.executable, "-B", "-c", textwrap.dedent(code)]
    program = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**environment, **variables},
    )
    try:
        out, err = program.communicate(timeout=seconds)
        eventually(lambda: _session(program.pid) == [], lambda: f"left: {_session(program.pid)}")
    finally:
        for process in _session(program.pid):
            process.kill()
    return subprocess.CompletedProcess(command, program.returncode, out, err)


def _session(leader: int) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if _session_of(process.pid) == leader and _alive(process)]


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_program_without_standard_streams_runs_pipelines(tmp_path: Path) -> None:
    """As a daemon: the sockets and pipes of the run then get the numbers 0, 1 and 2."""
    done = run(
        f"""
        import os
        os.closerange(0, 3)
        from pipekit import map_stage
        for backend in {BACKENDS}:
            for _ in range(3):
                same = map_stage(workers=2, backend=backend)(lambda n: n)
                total = sum((range(1000) | same | same).results())
                with open({str(tmp_path / "sums")!r}, "a") as file:
                    print(total, file=file)
        """
    )
    assert done.returncode == 0
    assert (tmp_path / "sums").read_text() == "499500\n" * 3 * len(BACKENDS)


def test_lines_that_workers_print_arrive_whole_and_in_order() -> None:
    done = run(
        """
        import os
        from pipekit import map_stage
        def chatty(n):
            print(os.getpid(), n, "x" * (n % 200))
            return n
        assert len(list((range(3000) | map_stage(workers=3)(chatty)).results())) == 3000
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split() for line in done.stdout.splitlines()]
    assert sorted(int(number) for _, number, *_ in lines) == list(range(3000))
    for worker in {worker for worker, *_ in lines}:
        numbers = [int(line[1]) for line in lines if line[0] == worker]
        assert numbers == sorted(numbers)


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)", "time.sleep(60)"])
def test_what_a_worker_has_printed_arrives_although_it_is_killed(end: str, tmp_path: Path) -> None:
    """By a signal, by itself, or because the consumer has left."""
    done = run(
        f"""
        import os, signal, time
        from pathlib import Path
        from pipekit import WorkerDied, map_stage
        def last_words(n):
            print("first line")
            print("last words")
            Path({str(tmp_path / "printed")!r}).touch()
            {end}
        try:
            with ([1] | map_stage(last_words)).results() as results:
                while not Path({str(tmp_path / "printed")!r}).exists():
                    time.sleep(0.001)
                if {"sleep" not in end}:
                    list(results)
        except WorkerDied:
            print("died")
        """
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "first line\nlast words\n" + ("" if "sleep" in end else "died\n")


def test_a_warning_is_shown_once_by_each_process_worker() -> None:
    done = run(
        """
        import warnings
        from pipekit import stage
        @stage(workers=2)
        def warns(items):
            for _ in range(3):
                warnings.warn("odd")
            yield from items
        for _ in range(2):
            assert sorted((range(10) | warns).results()) == list(range(10))
        """
    )
    assert done.returncode == 0
    assert done.stderr.count("UserWarning: odd") == 2 * 2


FORK_UNSAFE = """
import _imp, faulthandler, importlib, json, logging, os, sys, threading, time
from pipekit import map_stage

faulthandler.dump_traceback_later(140, exit=True)
logging.basicConfig()
sys.setswitchinterval(0.0002)  # two of the threads never wait
result, sys.stdout = sys.stdout, open(os.pipe()[1], "w")  # nobody reads: whoever writes much waits, and holds its lock
held = threading.Barrier(4)
done = threading.Event()

def hold(lock):
    with lock:
        held.wait()
        done.wait()

def hold_stdout():
    held.wait()
    sys.stdout.write("x" * 1_000_000)
    sys.stdout.flush()

def hold_imports():
    while not done.is_set():
        _imp.acquire_lock()
        time.sleep(0.002)
        _imp.release_lock()
        time.sleep(0.001)

def allocate():
    while not done.is_set():
        [bytes(size) for size in range(0, 3000, 7)]

def import_again():
    while not done.is_set():
        importlib.reload(json)

targets = [(hold, logging._lock), (hold, logging.getLogger().handlers[0].lock), (hold_stdout,)]
targets += [(hold_imports,), (allocate,), (import_again,)]
for target, *arguments in targets:
    threading.Thread(target=target, args=arguments, daemon=True).start()
held.wait()
for _ in range(15):
    same = map_stage(workers=2)(lambda n: n)
    assert sorted((range(100) | same).results()) == list(range(100))
    with (range(10**9) | same).results() as results:
        next(results)
done.set()
os.write(result.fileno(), b"done")
os._exit(0)
"""


@pytest.mark.timeout(180)  # its threads take all cores that there are, without a GIL
def test_locks_that_threads_of_the_program_hold_do_not_hang_its_runs() -> None:
    done = run(FORK_UNSAFE, seconds=150)
    assert (done.stdout, done.stderr) == ("done", "")


# -- a machine that has no more to give

#: Tries a pipeline under one limit after another, each a little higher than the last: so everything that may fail does
#: fail once. Each time the results are complete or the error is pipekit's, and afterwards all is as it was before.
#: To be given: `backend`; `lower(n)` and `lift()`, which set the limit; ERRORS, what the run may raise.
UNDER_LIMITS = """
import faulthandler, gc, os, resource, sys, threading, time
from multiprocessing import forkserver
from pipekit import StartError, TaskException, map_stage
faulthandler.dump_traceback_later(40, exit=True)

def things():
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()

def eventually(reached):
    deadline = time.monotonic() + 5
    while not reached():
        assert time.monotonic() < deadline, "the state was not reached"
        time.sleep(0.005)

def small():
    assert list(([1] | map_stage(backend=backend)(lambda n: n)).results()) == [1]

def sweep(limits):
    failed = complete = 0
    for number in limits:
        small()
        before = things()
        started = time.monotonic()
        lower(number)
        try:
            results = (range(100) | map_stage(workers=4, backend=backend)(lambda n: n)).results()
            assert sorted(results) == list(range(100))
            complete += 1
        except ERRORS as error:
            assert "could not" in str(error), error
            failed += 1
        finally:
            lift()
        assert time.monotonic() - started < 5
        eventually(lambda: things() == before)
    small()
    assert failed and complete, (failed, complete)
    print("done")
"""


def test_descriptors_that_run_out_at_any_point_of_a_start_are_an_error_and_leave_nothing() -> None:
    done = run(
        UNDER_LIMITS
        + textwrap.dedent(
            """
            backend, ERRORS = "process", StartError
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            small()
            used = max(map(int, os.listdir("/proc/self/fd")))
            lower = lambda number: resource.setrlimit(resource.RLIMIT_NOFILE, (used + number, hard))
            lift = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            sweep(range(40))
            """
        )
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_threads_that_cannot_be_started_are_an_error_and_leave_nothing(backend: str) -> None:
    """Address space for so many stacks and no more; the fork server has its own limit and is not concerned."""
    done = run(
        UNDER_LIMITS
        + textwrap.dedent(
            f"""
            backend, ERRORS = {backend!r}, StartError
            small()
            STACK = 1 << 30
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            def lower(number):
                with open("/proc/self/statm") as file:
                    used = int(file.read().split()[0]) * resource.getpagesize()
                threading.stack_size(STACK + (number << 20))  # larger than any that the C library has kept
                resource.setrlimit(resource.RLIMIT_AS, (used + number * STACK + STACK // 2, hard))
            def lift():
                resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
                threading.stack_size(0)
            sweep(range(12))
            """
        ),
        MALLOC_ARENA_MAX="1",  # what a thread allocates comes from memory that is there
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_worker_that_has_no_memory_for_an_item_is_an_error() -> None:
    def limits_itself(items: Iterable[bytes]) -> Iterator[int]:
        resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (64 << 20),) * 2)
        ballast = []  # a free-threaded interpreter has reserved 1 GB, which counts already
        with suppress(MemoryError):
            while True:
                ballast.append(bytearray(16 << 20))
        del ballast[-2:]
        yield 0
        yield from map(len, items)

    def small_then_large() -> Iterator[bytes]:
        yield b"small"
        yield bytes(200 << 20)

    with pytest.raises(TaskException, match="limits_itself-0.*MemoryError"):
        list((small_then_large() | stage(limits_itself)).results())


def _as_nobody() -> list[str]:
    """A command prefix: as a user of whom there is no other process, who may read what root may."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv: the limit of processes counts all those of a user, and none of root's")
    user = str(100_000 + os.getpid())
    capabilities = "-all,+dac_read_search"
    prefix = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"]
    prefix += [f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"]
    if subprocess.run([*prefix, sys.executable, "-c", "import pipekit"], capture_output=True).returncode != 0:
        pytest.skip("setpriv is not permitted to change the user and keep the right to read")
    return prefix


NO_MORE_PROCESSES = """
backend, ERRORS = "process", (StartError, TaskException)
soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)

def tasks():
    total = 0
    for pid in os.listdir("/proc"):
        try:
            if pid.isdigit() and os.stat("/proc/" + pid).st_uid == os.getuid():
                total += len(os.listdir(f"/proc/{pid}/task"))
        except OSError:
            pass
    return total

def limit(number):
    for pid in (os.getpid(), forkserver._forkserver._forkserver_pid):
        resource.prlimit(pid, resource.RLIMIT_NPROC, (number, hard))

def lower(number):
    eventually(lambda: tasks() == resting)
    limit(resting + number)

lift = lambda: limit(soft)
small()
resting = 4  # this thread, faulthandler's, the fork server, the resource tracker
sweep(range(16))
"""


def test_processes_that_cannot_be_started_are_an_error_and_leave_nothing() -> None:
    done = run(UNDER_LIMITS + NO_MORE_PROCESSES, *_as_nobody())
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_a_start_that_fails_for_want_of_processes_does_not_disturb_another_run() -> None:
    done = run(
        UNDER_LIMITS
        + NO_MORE_PROCESSES.replace(
            "sweep(range(16))",
            """
import itertools
with (itertools.count() | map_stage(lambda n: n)).results() as other:
    next(other)
    limit(1)
    try:
        (range(10) | map_stage(lambda n: n)).results()
    except StartError:
        print("refused")
    lift()
    assert list(itertools.islice(other, 20_000)) == list(range(1, 20_001))
small()
print("done")
""",
        ),
        *_as_nobody(),
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\ndone\n", "")


FULL_DISK = """
mount -t tmpfs -o size=64k,nr_inodes=64 tmpfs "$1" && cat /dev/zero > "$1/full" 2> /dev/null
shift
exec "$@"
"""

ON_A_FULL_DISK = f"""
import faulthandler, os, tempfile
from pathlib import Path
from pipekit import StartError, map_stage
faulthandler.dump_traceback_later(40, exit=True)
full = Path(os.environ.get("TMPDIR", "/dev/shm"))
before = sorted(full.iterdir())
for backend in {BACKENDS}:
    same = map_stage(workers=2, backend=backend)(lambda item: item)
    try:
        items = [os.urandom(1_000_000) for _ in range(5)]
        assert sorted((items | same | same).results()) == sorted(items)
        print("complete")
    except StartError as error:
        print("refused")
assert sorted(full.iterdir()) == before
"""


def _with_full_disk(path: str) -> list[str]:
    """A command prefix: in a mount namespace of its own, where a full disk is at `path`."""
    prefix = ["unshare", "-rm", "sh", "-c", FULL_DISK, "sh", path]
    if shutil.which("unshare") is None or subprocess.run([*prefix, "true"], capture_output=True).returncode != 0:
        pytest.skip("unshare is not permitted to make a mount namespace")
    return prefix


def test_a_full_shared_memory_disk_is_not_needed() -> None:
    done = run(ON_A_FULL_DISK, *_with_full_disk("/dev/shm"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "complete\n" * len(BACKENDS), "")


def test_without_room_for_temporary_files_another_place_is_found(tmp_path: Path) -> None:
    done = run(ON_A_FULL_DISK, *_with_full_disk(str(tmp_path)), TMPDIR=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "complete\n" * len(BACKENDS), "")


def test_without_any_place_for_temporary_files_processes_are_a_named_error(tmp_path: Path) -> None:
    """The disk has filled up after Python has chosen it: not even a directory can be made."""
    code = ON_A_FULL_DISK.replace(
        "before =",
        """
tempfile.tempdir = str(full)
try:
    for number in range(100):
        (full / str(number)).touch()
except OSError:
    pass
before =""",
    )
    done = run(code, *_with_full_disk(str(tmp_path)), TMPDIR=str(tmp_path))
    expected = ["refused" if backend == "process" else "complete" for backend in BACKENDS]
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, expected, "")
