"""Neighbouring map stages that share workers: which do, why, and that nothing tells it but the speed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import REMOTE, eventually

from pipekit import (
    DROP,
    Doing,
    NotPicklable,
    OptionError,
    Pipeline,
    Stage,
    Stalled,
    TaskException,
    WorkerDied,
    WorkerNames,
    _fusion,
    map_stage,
    merge,
    route,
    tee,
)

COUNT = 50


def first(item: Any) -> Any:
    return item


def second(item: Any) -> Any:
    return item


def third(item: Any) -> Any:
    return item


def where(item: object) -> tuple[int, str]:
    return os.getpid(), threading.current_thread().name  # identifiers are used again once a thread has ended


def beside(place: tuple[int, str]) -> bool:
    return place == (os.getpid(), threading.current_thread().name)


def same_workers(**options: Any) -> bool:
    """Whether two stages with these options share their workers."""
    pipe = range(COUNT) | map_stage(**options)(where) | map_stage(**options)(beside)
    fused = "in the workers of where (fused: " in pipe.explain()
    assert set(pipe.results()) == {fused}
    return fused


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fusion, "usable_cpus", lambda: 2)


# -- which


@pytest.mark.parametrize(
    ("options", "fused"),
    [
        ({"workers": 1}, False),
        ({"workers": 2}, True),
        ({"workers": 3}, True),
        ({"workers": 3, "fuse": False}, False),
        ({"workers": 1, "fuse": True}, True),
        ({"workers": 2, "backend": "thread"}, False),
        ({"workers": 2, "backend": "thread", "fuse": True}, True),
    ],
)
def test_stages_share_workers_where_that_costs_no_parallelism_or_they_ask_for_it(
    two_cpus: None, options: dict[str, Any], fused: bool
) -> None:
    assert same_workers(**options) is fused


def test_the_cpus_are_those_that_the_process_may_use() -> None:
    program = (
        "import os\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from pipekit import map_stage\n"
        "print(([1] | map_stage()(abs) | map_stage()(bool)).explain())"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert "bool: 1 x process, in the workers of abs (fused: both map items, 1 worker for 1 CPU)" in done.stdout


def test_explain_says_what_is_fused_and_why(two_cpus: None) -> None:
    options: dict[str, Any] = {"workers": 2, "qsize": 4}
    pipe = [1] | map_stage(**options)(first) | map_stage(**options)(second) | map_stage(fuse=True, **options)(third)
    assert pipe.explain().splitlines() == [
        "source: 1 x thread -> first, queue of 4 items",
        "first: 2 x process -> second, no queue",
        "second: 2 x process, in the workers of first (fused: both map items, 2 workers for 2 CPUs) -> third, no queue",
        "third: 2 x process, in the workers of first (fused: both map items, fuse=True) -> results, queue of 4 items",
    ]


def asks(**options: Any) -> Stage[Any, Any]:
    return map_stage(fuse=True, **options)(first)


@pytest.mark.parametrize(
    ("pipe", "reason"),
    [
        ([1] | map_stage(second) | asks(workers=2), "second has 1 worker, first 2"),
        ([1] | map_stage(second) | asks(backend="thread"), "second and first have different backends"),
        ([1] | asks() | map_stage(fuse=False)(second), "second has fuse=False"),
        ([1] | map_stage(filter_errors=True)(second) | asks(), "second has filter_errors"),
        ([1] | map_stage(second) | asks(key=bool), "first has a key"),
        ([1] | asks() | Stage(list), "list is no map stage"),
        ([1] | asks() | tee(map_stage(second), Stage(list)), "a tee or route is behind first"),
        ([1] | asks() | route(bool, {1: map_stage(second)}, default=DROP), "a tee or route is behind first"),
        (merge([1] | map_stage(second), [2]) | asks(), "first has several stages before it"),
        ([1] | asks(), "no stage is beside it"),
        ([1] | map_stage(second) | asks(workers=2) | Stage(list), "second has 1 worker, first 2; list is no map stage"),
    ],
)
def test_a_stage_that_asks_in_vain_is_told_why(pipe: Pipeline[Any, Any], reason: str) -> None:
    [line] = [line for line in pipe.explain().splitlines() if line.startswith("first: ")]
    assert f", not fused ({reason}) -> " in line


@pytest.mark.parametrize("value", [1, 0, "yes", "auto"])
def test_other_values_of_fuse_are_refused(value: Any) -> None:
    with pytest.raises(OptionError, match=f"fuse={value!r} cannot work: it must be True, False or None"):
        map_stage(fuse=value)


# -- nothing tells it


def three(place: int, function: Callable[[Any], Any], **options: Any) -> Any:
    """A pipeline of three stages, of which one does something."""
    functions: list[Callable[[Any], Any]] = [first, second, third]
    stages = [map_stage(**options)(function) for function in functions]
    stages[place] = map_stage(name="odd", **options)(function)
    return range(COUNT) | stages[0] | stages[1] | stages[2]


def ending(pipe: Any) -> tuple[Any, ...]:
    with pytest.raises(TaskException) as caught:
        list(pipe.results())
    error, failure = caught.value, caught.value.failure
    return type(error), type(error.__cause__), failure.stage, failure.worker, str(error), failure.item


class Fatal(BaseException):
    pass


def raises(error: type[BaseException]) -> Callable[[int], int]:
    def odd(item: int) -> int:
        if item == COUNT // 2:
            raise error("a fault")
        return item

    return odd


class Unpicklable:
    def __reduce__(self) -> Any:
        raise ValueError("not to be pickled")

    def __repr__(self) -> str:
        return "<unpicklable>"


class Unloadable:
    def __reduce__(self) -> Any:
        return int, ("no number",)

    def __repr__(self) -> str:
        return "<unloadable>"


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("error", [ValueError, Fatal, SystemExit, StopIteration])
def test_the_stage_that_fails_is_named_with_its_item(backend: str, place: int, error: type[BaseException]) -> None:
    fused, apart = (ending(three(place, raises(error), backend=backend, fuse=fuse)) for fuse in (True, False))
    assert fused == apart
    assert fused[2:4] == ("odd", "odd-0")
    assert fused[5] == str(COUNT // 2)


@pytest.mark.parametrize("bad", [0, COUNT // 2, COUNT - 1])
def test_stop_iteration_does_not_end_a_frame_before_a_stage_that_filters_errors(backend: str, bad: int) -> None:
    def stops(number: int) -> int:
        if number == bad:
            raise StopIteration
        return number

    def same(number: int) -> int:
        return number

    fused: Any = map_stage(backend=backend, fuse=True)(stops)
    pipe = range(COUNT) | fused | map_stage(backend=backend, fuse=True, filter_errors=True)(same)
    with pytest.raises(TaskException, match="\"stops-0\" raised RuntimeError.*'stops' raised StopIteration"):
        list(pipe.results())


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("bad", [Unpicklable, Unloadable])
def test_what_cannot_travel_is_an_error_between_two_stages_of_a_process_too(place: int, bad: type[object]) -> None:
    def odd(item: int) -> object:
        return bad() if item == COUNT // 2 else item

    fused, apart = (ending(three(place, odd, fuse=fuse)) for fuse in (True, False))
    assert fused == apart


def test_an_item_that_a_stage_changes_and_fails_with_is_shown_as_it_came() -> None:
    def odd(item: list[int]) -> None:
        item.clear()
        raise ValueError

    pipe = [[1, 2]] | map_stage(fuse=True)(first) | map_stage(fuse=True)(odd)
    assert ending(pipe)[-1] == "[1, 2]"


def test_between_processes_items_are_snapshots_also_in_one_worker() -> None:
    class Reuses:
        def __init__(self) -> None:
            self.made: list[int] = []

        def __call__(self, item: int) -> list[int]:
            self.made.append(item)
            return self.made

    class Keeps:
        def __init__(self) -> None:
            self.kept: list[list[int]] = []

        def __call__(self, item: list[int]) -> list[list[int]]:
            self.kept.append(item)
            item.append(-1)  # the copy is its own
            return self.kept

    pipe = range(3) | map_stage(fuse=True, name="reuses")(Reuses()) | map_stage(fuse=True, name="keeps")(Keeps())
    assert list(pipe.results())[-1] == [[0, -1], [0, 1, -1], [0, 1, 2, -1]]


@pytest.mark.parametrize("fuse", [True, False])
def test_arrays_between_two_stages_of_a_process_are_copies_like_any_other_that_travelled(fuse: bool) -> None:
    class Adds:
        """One to the first of each array: to its own, which it gives again and again, or to what it gets."""

        def __init__(self, array: Any) -> None:
            self.array = array

        def __call__(self, item: Any) -> Any:
            array = item if self.array is None else self.array
            array[0] += 1
            return array

    frozen = np.arange(5)
    frozen.flags.writeable = False
    fortran = np.asfortranarray(np.arange(6).reshape(2, 3))
    made = [map_stage(fuse=fuse, name="first")(Adds(np.zeros(3))), map_stage(fuse=fuse, name="second")(Adds(None))]
    assert [list(array) for array in (range(3) | made[0] | made[1]).results()] == [[2, 0, 0], [3, 0, 0], [4, 0, 0]]
    passed = list(([frozen, fortran] | map_stage(fuse=fuse)(first) | map_stage(fuse=fuse)(flags)).results())
    assert passed == [([0, 1, 2, 3, 4], (False, True)), ([[0, 1, 2], [3, 4, 5]], (True, True))]


def flags(array: Any) -> tuple[Any, tuple[bool, bool]]:
    return array.tolist(), (array.flags.writeable, array.flags.f_contiguous)


def test_between_threads_items_are_passed_as_they_are() -> None:
    item = object()
    assert ([item] | map_stage(fuse=True, backend="thread")(first) | asks(backend="thread")).execute() is item


def test_each_stage_has_at_most_its_workers_calls_at_a_time() -> None:
    lock = threading.Lock()
    calls, most = {"f": 0, "g": 0}, {"f": 0, "g": 0}
    both = threading.Barrier(2)

    def counted(name: str) -> Callable[[int], int]:
        def call(item: int) -> int:
            with lock:
                calls[name] += 1
                most[name] = max(most[name], calls[name])
            if item < 2 and name == "g":
                both.wait(30)  # two workers are in it at once
            with lock:
                calls[name] -= 1
            return item

        return call

    options: dict[str, Any] = {"workers": 2, "fuse": True, "backend": "thread", "qsize": 1}
    pipe = range(100) | map_stage(name="f", **options)(counted("f")) | map_stage(name="g", **options)(counted("g"))
    assert sorted(pipe.results()) == list(range(100))
    assert most["f"] <= 2
    assert most["g"] == 2


def test_each_stage_has_its_statistics(backend: str) -> None:
    def halves(item: int) -> float:
        return COUNT / (item % 2)

    options: dict[str, Any] = {"fuse": True, "backend": backend, "workers": 2}
    pipe = (
        range(COUNT)
        | map_stage(**options)(first)
        | map_stage(**options)(second)
        | map_stage(filter_errors=True, **options)(halves)
    )
    results = pipe.results()
    assert len(list(results)) == COUNT // 2
    assert [(one.name, one.running, one.received, one.results, one.waiting) for one in results.stats().stages] == [
        ("source", 0, 0, COUNT, 0),
        ("first", 0, COUNT, COUNT, 0),
        ("second", 0, COUNT, COUNT, 0),
        ("halves", 0, COUNT, COUNT // 2, 0),
    ]


def test_a_key_divides_the_items_of_all_stages_that_share_workers(backend: str) -> None:
    pipe = (
        range(COUNT)
        | map_stage(key=lambda number: number % 5, workers=3, fuse=True, backend=backend)(first)
        | map_stage(workers=3, fuse=True, backend=backend)(lambda number: (number % 5, where(number)))
    )
    places = set(pipe.results())
    assert len(places) == 5


@pytest.mark.parametrize("place", range(3))
def test_a_stage_in_a_call_without_end_is_named_and_the_others_wait_for_it(backend: str, place: int) -> None:
    release = threading.Event()
    stuck = StuckAtThree(None if backend in REMOTE else release)
    results = three(place, stuck, backend=backend, fuse=True, qsize=1).results(stall_timeout=0.4)
    eventually(lambda: results.stats().stages[1].received > 0)
    with pytest.raises(Stalled) as caught:
        list(results)
    release.set()
    states = caught.value.workers
    assert [state.doing for state in states[1:]] == [
        *[Doing.WRITING] * place,
        Doing.WORKING,
        *[Doing.READING] * (2 - place),
    ]
    assert [state.read for state in states[1:]] == [4] * (place + 1) + [3] * (2 - place)
    assert [state.results for state in states[1:]] == [4] * place + [3] * (3 - place)
    at_fault = states[1 + place]
    assert (at_fault.stage, at_fault.worker, at_fault.item) == ("odd", "odd-0", "3")
    assert "  odd: 1 in user code\n    odd-0: for " in str(caught.value)
    assert "in __call__" in at_fault.traceback


class StuckAtThree:
    def __init__(self, release: threading.Event | None) -> None:
        self._release = release

    def __call__(self, item: int) -> int:
        if item == 3 and self._release is not None:
            self._release.wait(60)
        elif item == 3:
            time.sleep(1000)
        return item


class Keeper(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.addFilter(WorkerNames())
        self.names: set[tuple[str, str, str]] = set()
        self.processes: set[tuple[str, str]] = set()

    def emit(self, record: Any) -> None:
        self.names.add((record.getMessage(), record.stage, record.worker))
        self.processes.add((record.worker, record.processName))


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    handler = Keeper()
    logging.root.addHandler(handler)
    yield handler
    logging.root.removeHandler(handler)


def test_log_records_have_the_names_of_the_stage_that_logs(backend: str, keeper: Keeper) -> None:
    def logs(name: str) -> Any:
        def call(item: int) -> int:
            logging.getLogger("test_fusion").warning(name)
            return item

        return map_stage(fuse=True, backend=backend, name=name)(call)

    list((range(COUNT) | logs("f") | logs("g") | logs("h")).results())
    assert keeper.names == {(name, name, f"{name}-0") for name in "fgh"}
    if backend in REMOTE:
        assert keeper.processes == {(f"{name}-0", f"{name}-0") for name in "fgh"}


def test_a_dead_worker_is_named_with_all_its_stages() -> None:
    def dies(item: int) -> None:
        os._exit(3)

    pipe = [7] | map_stage(fuse=True)(first) | map_stage(fuse=True)(second) | map_stage(fuse=True)(dies)
    with pytest.raises(
        WorkerDied, match=r'The worker "first-0" \(fused with "second-0", "dies-0"\) died: it exited'
    ) as caught:
        pipe.execute()
    assert (caught.value.stage, caught.value.worker, caught.value.item) == ("first", "first-0", "7")


def test_the_stage_whose_argument_cannot_be_pickled_is_named() -> None:
    def locked(item: int, lock: Any) -> int:
        return item

    pipe = [1] | map_stage(fuse=True)(first) | map_stage(fuse=True)(locked)(threading.Lock())
    with pytest.raises(NotPicklable, match="stage 'locked' cannot be sent to a process: its argument 1 is <unlocked"):
        pipe.plan()


def test_the_stage_whose_argument_cannot_be_loaded_is_named() -> None:
    def given(item: int, other: object) -> int:
        return item

    pipe = [1] | map_stage(fuse=True)(first) | map_stage(fuse=True)(given)(Unloadable())
    with pytest.raises(TaskException, match='The task "given-0" could not load its function: ValueError'):
        pipe.execute()


def test_the_branch_of_a_stage_that_fails_is_told_although_another_stage_has_its_worker() -> None:
    failing = map_stage(fuse=True)(raises(ValueError))
    pipe = range(COUNT) | map_stage(fuse=True)(first) | tee(map_stage(fuse=True)(second) | failing)
    assert "odd: 1 x process, in the workers of first" in pipe.explain()
    with pytest.raises(TaskException) as caught:
        pipe.execute()
    assert 'stage "odd" is in branch 1 of tee' in "".join(caught.value.__notes__)
