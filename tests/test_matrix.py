"""The matrix of faults: where x how x stage x item x queue size x size of the items.

Each run ends in the error that is promised, or in the full result; never in less, and never not at all. The normal
suite runs a sample in which every two values meet that can meet; `-m nightly` runs them all, in some ten minutes.
"""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import BACKENDS
from faults import (
    HOWS,
    KILLED_FROM_OUTSIDE,
    RAISED,
    Fault,
    Item,
    IterableSource,
    Role,
    first,
    last,
    load_of,
    middle,
    source,
)

from pipekit import ItemNotPicklable, PipekitError, Stage, TaskException, WorkerDied

#: Seconds after which a death is an error: by promise; in the normal suite, which may share its machine with anything.
PROMISED, TOLERATED = 2.0, 20.0

#: Number and bytes of the items: few that are larger than the buffers of a socket, or so many small ones that they
#: travel in frames of several.
LARGE, SMALL = (12, 300_000), (200, 10)
POSITIONS = ("first", "middle", "last")
#: "iterable": the caller's, read in a thread of the caller's process. "source": a producer, with a worker of its own.
STAGES = ("iterable", "source", "first", "middle", "last")
#: Where a fault strikes, and the place in the role of who makes it. Shutdown is three places: when the stage's function
#: has finished and the worker has not reported it, while it reports it, and when it has reported it.
PLACES = {
    "item-pickle": "pickle",
    "item-unpickle": "unpickle",
    "function-start": "start",
    "function-middle": "middle",
    "generator-close": "close",
    "result-pickle": "pickle",
    "result-unpickle": "unpickle",
    "shutdown-unreported": "unreported",
    "shutdown-reporting": "reporting",
    "shutdown-reported": "reported",
    "worker-start": "load",
}
TRAVELS = ("item-pickle", "item-unpickle", "result-pickle", "result-unpickle")
AT_AN_ITEM = (*TRAVELS, "function-middle")
#: Where nothing that is raised reaches the worker: Python prints it.
UNHEARD = ("shutdown-unreported", "shutdown-reporting", "shutdown-reported")


@dataclass(frozen=True)
class Case:
    """A fault: where it strikes, how, in which stage, at which item (None: at none), with which queues and items."""

    backend: str
    where: str
    how: str
    stage: str
    item: str | None
    qsize: int | None
    large: bool

    def __str__(self) -> str:
        item = "" if self.item is None else f"-{self.item}_item"
        queue = "default" if self.qsize is None else self.qsize
        size = "large" if self.large else "small"
        return f"{self.backend}-{self.where}-{self.how}-{self.stage}{item}-q_{queue}-{size}"

    @property
    def items(self) -> tuple[int, int]:
        """How many items there are, and how many bytes each carries."""
        return LARGE if self.large else SMALL

    @property
    def number(self) -> int | None:
        """The number of the item that the fault strikes."""
        count, _ = self.items
        return None if self.item is None else {"first": 0, "middle": count // 2, "last": count - 1}[self.item]

    @property
    def raises(self) -> bool:
        return self.how in RAISED

    @property
    def writer(self) -> str:
        """The stage that has the fault in its role."""
        if self.where not in ("item-pickle", "item-unpickle"):
            return self.stage
        if self.stage != "first":
            return STAGES[STAGES.index(self.stage) - 1]
        # An iterable, read in the caller's process, where it is not the writer that must die.
        return "source" if self.where == "item-pickle" and not self.raises else "iterable"

    @property
    def struck(self) -> str:
        """The stage whose worker the fault strikes; "results" for the caller, who unpickles what the last one gives."""
        if self.where == "item-pickle":
            return self.writer
        if self.where != "result-unpickle":
            return self.stage
        return {"iterable": "first", "source": "first", "first": "middle", "middle": "last", "last": "results"}[
            self.stage
        ]

    @property
    def is_in_callers_process(self) -> bool:
        return self.backend != "process" or self.struck in ("iterable", "results")


def without_meaning(case: Case) -> str | None:
    """Why a combination is none, or None if it is one."""
    if case.backend != "process" and case.where in TRAVELS:
        return "threads hand on the object itself: nothing is pickled"
    if case.stage in ("iterable", "source") and case.where in ("item-pickle", "item-unpickle"):
        return "a source reads no items"
    if (case.item is None) == (case.where in AT_AN_ITEM):
        return "a fault strikes at an item where there is one, and only there"
    if case.is_in_callers_process and not case.raises:
        return "what ends the process is the end of the program itself"
    if case.is_in_callers_process and case.where == "worker-start":
        return "the function is here already: nothing is loaded"
    if case.is_in_callers_process and case.where in ("shutdown-reporting", "shutdown-reported"):
        return "a thread has no exit handlers, and other threads are the program's own"
    return None


def _product() -> Iterator[Case]:
    for backend in BACKENDS:
        for where in PLACES:
            for how in HOWS:
                for stage in STAGES:
                    for item in (None, *POSITIONS):
                        for qsize in (0, 1, None):
                            for large in (False, True):
                                yield Case(backend, where, how, stage, item, qsize, large)


def _covering(cases: list[Case]) -> list[Case]:
    """A sample in which each two values meet that meet in any of the cases. The same one each time.

    Beyond that, each stage meets in each place a fault that raises, and one that kills.
    """
    shuffled = random.Random(1).sample(cases, len(cases))
    to_meet: dict[Case, set[object]] = {
        case: {*itertools.combinations(vars(case).items(), 2), (case.where, case.stage, case.raises)} for case in cases
    }
    sample: list[Case] = []
    met: set[object] = set()
    for least in (12, 6, 3, 1):  # those first that bring much
        for case in shuffled:
            if len(to_meet[case] - met) >= least:
                sample.append(case)
                met |= to_meet[case]
    return sorted(sample, key=shuffled.index)


CASES = [case for case in _product() if without_meaning(case) is None]
SAMPLE = _covering(CASES)


# -- running a case


def pipeline(case: Case, said: Path) -> Any:
    """One worker up to the stage that the fault strikes, so that it is known who gets which item; two behind it."""
    fault = Fault(case.how, said)
    delay = random.Random(str(case)).uniform(0, 0.001)
    functions: list[Any] = [first, middle, last]
    names = ["first", "middle", "last", "results"]
    struck = names.index(case.struck) if case.struck in names else -1
    roles = {case.writer: Role(PLACES[case.where], case.number, fault, delay)}
    pipe: Any = IterableSource(roles.get("iterable", Role()), *case.items)
    if case.writer == "source":
        pipe = Stage(source, roles["source"], *case.items).setup(backend=case.backend, qsize=case.qsize)
    for index, (name, function) in enumerate(zip(names, functions, strict=False)):
        stage: Any = Stage(function, roles.get(name, Role()))
        workers = 2 if index > struck else 1
        pipe = pipe | stage.setup(backend=case.backend, qsize=case.qsize, workers=workers)
    return pipe


@dataclass
class Ending:
    """How a case ended: with which results, with which error, and how long after the fault."""

    results: list[Item]
    error: PipekitError | None
    seconds: float


def run(case: Case, tmp_path: Path) -> Ending:
    said = tmp_path / "said"
    results: list[Item] = []
    error = None
    with _killer(case, said) as killed:
        try:
            for item in pipeline(case, said).results():
                results.append(item)
        except PipekitError as raised:
            error = raised
        ended = time.monotonic()
    assert said.exists(), "the fault did not strike"
    return Ending(results, error, ended - (killed[0] if killed else float(said.read_text().split()[1])))


@contextmanager
def _killer(case: Case, said: Path) -> Iterator[list[float]]:
    """Kills the worker that says that it waits for it; gives the time when it does."""
    killed: list[float] = []
    over = threading.Event()

    def kill() -> None:
        while not said.exists():
            if over.wait(0.001):
                return
        with suppress(psutil.NoSuchProcess):  # pipekit kills a worker that has reported its end and does not end
            process = psutil.Process(int(said.read_text().split()[0]))
            if case.how == "sigstop-sigkill":
                process.suspend()
                while process.status() != psutil.STATUS_STOPPED and not over.wait(0.001):
                    pass
            killed.append(time.monotonic())
            process.kill()

    if case.how not in KILLED_FROM_OUTSIDE:
        yield killed
        return
    killer = threading.Thread(target=kill, name="killer")
    killer.start()
    try:
        yield killed
    finally:
        over.set()
        killer.join()


# -- what must come of it

ENDED = {
    "os-exit-0": "exited with status 0 ",
    "os-exit-3": "exited with status 3 ",
    "segfault": "killed by signal 11 (SIGSEGV",
    "sigkill": "killed by signal 9 (SIGKILL",
    "sigstop-sigkill": "killed by signal 9 (SIGKILL",
}


def check(case: Case, ending: Ending, limit: float) -> None:
    count, size = case.items
    numbers = [item.number for item in ending.results]
    assert all(item.load == load_of(item.number, size) for item in ending.results)
    if ending.error is None:
        assert sorted(numbers) == list(range(count))
        assert may_succeed(case)
        return
    assert not must_succeed(case), repr(ending.error)
    assert len(numbers) == len(set(numbers))
    assert set(numbers) <= set(range(count))
    if case.raises:
        _check_raised(case, ending.error)
    else:
        _check_died(case, ending.error)
        assert ending.seconds < limit
    _check_delivered(case, numbers)


def must_succeed(case: Case) -> bool:
    """What a worker does when it has reported its end is its own affair, and so is what Python prints."""
    return case.where == "shutdown-reported" or (case.where in UNHEARD and case.raises)


def may_succeed(case: Case) -> bool:
    """A worker that dies while it reports has reported, or has not."""
    return must_succeed(case) or case.where == "shutdown-reporting"


def _check_raised(case: Case, error: PipekitError) -> None:
    assert isinstance(error, TaskException)
    assert type(error) is (ItemNotPicklable if case.where in TRAVELS else TaskException)
    assert (error.stage, error.worker) == _blamed(case)
    assert type(error.__cause__) is RAISED[case.how]
    assert error.others == ()
    said = {"worker-start": "could not load its function:"}.get(case.where, "raised")
    if case.where in TRAVELS:
        said = (
            "could not unpickle an item:"
            if "unpickle" in case.where
            else f"could not pickle its result <item {case.number}>:"
        )
    assert str(error).startswith(f'The task "{error.worker}" {said} {RAISED[case.how].__name__}(')
    reads = case.struck not in ("iterable", "source", "results")
    if case.where in ("function-middle", "item-pickle", "result-pickle"):
        assert error.item == (f"<item {case.number}>" if reads else None)
    if case.where in ("function-start", "worker-start"):
        assert error.item is None


def _check_delivered(case: Case, numbers: list[int]) -> None:
    """What the last stage had finished is delivered: it has one worker, and so has each before it."""
    if case.struck == "results":
        assert case.number not in numbers
        assert numbers[: case.number] == list(range(case.number or 0))
    elif case.struck == "last":
        before = {"function-start": 0, "worker-start": 0}.get(case.where, case.items[0])
        finished = before if case.number is None else case.number
        complete = case.raises or case.where in UNHEARD  # who dies takes what it has not handed on with it
        assert numbers == list(range(finished if complete else min(finished, len(numbers))))


def _check_died(case: Case, error: PipekitError) -> None:
    assert type(error) is WorkerDied
    assert (error.stage, error.worker) == _blamed(case)
    assert str(error).startswith(f'The worker "{error.worker}" died: ')
    assert ENDED[case.how] in str(error)
    assert error.others == ()
    reads = case.struck not in ("iterable", "source")
    if case.where in AT_AN_ITEM and reads:
        shown = error.item or ""  # without their own repr: what they are made by
        several = shown.count("_item(") == 3 and " more" in str(error)
        assert f"_item({case.number}, " in shown or several or " bytes, pickled>" in shown
    if case.where in ("function-start", "worker-start") or not reads:
        assert error.item is None
        assert str(error).endswith("It had no items in hand")


def _blamed(case: Case) -> tuple[str, str]:
    if case.struck == "results":
        return "last", "results"
    stage = "source" if case.struck == "iterable" else case.struck
    return stage, f"{stage}-0"


# -- the tests


@dataclass
class Summary:
    """What the cases of a session came to."""

    run: Counter[str]
    passed: Counter[str]
    slowest: tuple[float, str] = (0.0, "none")


@pytest.fixture(scope="module")
def summary(request: pytest.FixtureRequest) -> Iterator[Summary]:
    """Printed at the end, where the nightly product runs or more words are asked for (`-v`)."""
    counted = Summary(Counter(), Counter())
    yield counted
    config = request.config
    reporter, capture = (config.pluginmanager.get_plugin(name) for name in ("terminalreporter", "capturemanager"))
    if reporter is None or capture is None or (config.option.verbose <= 0 and config.option.markexpr == "not nightly"):
        return
    with capture.global_and_fixture_disabled():
        reporter.write("\n")
        for backend, count in counted.run.items():
            reporter.write_line(f"matrix: {backend}: {count} cases run, {counted.passed[backend]} passed")
        seconds, case = counted.slowest
        reporter.write_line(f"matrix: slowest detection of a death: {seconds:.3f} s, {case}")


def _run_and_check(case: Case, tmp_path: Path, summary: Summary, limit: float) -> None:
    summary.run[case.backend] += 1
    with pytest.MonkeyPatch.context() as patch:
        if case.where in UNHEARD and case.is_in_callers_process:  # Python prints what `__del__` raises
            patch.setattr(sys, "unraisablehook", lambda _: None)
        ending = run(case, tmp_path)
    if type(ending.error) is WorkerDied:
        summary.slowest = max(summary.slowest, (ending.seconds, str(case)))
    check(case, ending, limit)
    summary.passed[case.backend] += 1


@pytest.mark.parametrize("case", SAMPLE, ids=str)
def test_a_fault_ends_in_the_promised_error_or_the_full_result(case: Case, tmp_path: Path, summary: Summary) -> None:
    _run_and_check(case, tmp_path, summary, TOLERATED)


@pytest.mark.nightly
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_fault_ends_in_the_promised_error_or_the_full_result(
    case: Case, tmp_path: Path, summary: Summary
) -> None:
    _run_and_check(case, tmp_path, summary, PROMISED)


PROGRAM = """
import os
from pipekit import WorkerDied, map_stage

class Deadly:
    def __reduce__(self):
        return os._exit, (3,)

try:
    list(([Deadly()] | map_stage(lambda item: item)).results())
except WorkerDied as error:
    print(error)
"""


def test_an_item_whose_unpickling_kills_its_worker_does_not_kill_the_program() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith('The worker "<lambda>-0" died: it exited with status 3 ')
