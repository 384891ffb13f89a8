"""What is promised of a run holds in every branch of a graph: failures, deaths, early ends, leaving, signals."""

from __future__ import annotations

import gc
import itertools
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from branches import (
    SENTINEL,
    first,
    halt,
    halt_and_strike,
    identity,
    parity,
    produce,
    sentinel_if_odd,
    strike_at,
    tidy,
    until,
    wait_for,
    work,
    zero,
)
from conftest import BACKENDS, eventually, workers_alive
from faults import RAISED, Fault
from test_matrix import ENDED
from test_signals import AT_ONCE, PROMISED, SLACK, Situation, _is_one_interrupt, program

from pipekit import (
    DROP,
    Doing,
    ItemNotPicklable,
    NotPicklable,
    Results,
    Stage,
    Stalled,
    TaskException,
    WorkerDied,
    _fan_out,
    merge,
    route,
    tee,
)

#: The number at which faults strike: odd, so that `parity` sends it to the branch 1.
AT = 21
#: How many numbers a source without an end of its own has here.
COUNT = 200
#: Ways to die, and what the error says of each.
DEATHS = {"sigkill-itself": "killed by signal 9 (SIGKILL", **{how: ENDED[how] for how in ("os-exit-0", "segfault")}}


def fault(how: str, tmp_path: Path) -> Fault:
    return Fault(how, tmp_path / "said")


def sample(normally: Callable[..., bool], *values: Iterable[Any]) -> list[Any]:
    """All combinations of values; the normal suite has those that are chosen."""
    return [
        pytest.param(*case, marks=() if normally(*case) else pytest.mark.nightly) for case in itertools.product(*values)
    ]


def same(backend: str, **options: Any) -> Any:
    return Stage(work).setup(backend=backend, **options)


def bad(backend: str, fault: Fault, **options: Any) -> Any:
    return Stage(work, AT, fault).setup(backend=backend, **options)


def error_of(results: Results[Any]) -> TaskException:
    with pytest.raises(TaskException) as caught:
        list(results)
    return caught.value


# -- failures: whatever is raised wherever, the run ends, and the error says where it was


#: Where the stage that fails stands: the graph, made of a stage and of one that fails; its own name; its place.
PLACES: dict[str, tuple[Callable[[Any, Any], Any], str, str]] = {
    "tee": (
        lambda work, bad: itertools.count() | tee(work, bad),
        "work#2",
        "branch 2 of tee(work, work)",
    ),
    "route": (
        lambda work, bad: itertools.count() | route(parity, {0: work, 1: bad}),
        "work#2",
        "branch 1 of route(parity)",
    ),
    "default": (
        lambda work, bad: itertools.count() | route(parity, {0: work}, default=bad),
        "work#2",
        "the default of route(parity)",
    ),
    "route in tee": (
        lambda work, bad: itertools.count() | tee(work, route(parity, {0: work, 1: work | bad})),
        "work#4",
        "branch 1 of route(parity), in branch 2 of tee(work, route(parity))",
    ),
    "tee in route": (
        lambda work, bad: itertools.count() | route(parity, {0: work, 1: tee(bad, work)}),
        "work#2",
        "branch 1 of tee(work, work), in branch 1 of route(parity)",
    ),
    "named tee": (
        lambda work, bad: itertools.count() | tee(bad, work).setup(name="both"),
        "work",
        "branch 1 of both",
    ),
    "merge": (
        lambda work, bad: merge(itertools.count() | work, itertools.count() | bad),
        "work#2",
        "pipeline 2 of merge",
    ),
    "prefix": (lambda work, bad: itertools.count() | bad | tee(work, work), "work", ""),
    "behind tee": (lambda work, bad: itertools.count() | tee(work, work) | bad, "work#3", ""),
    "behind merge": (lambda work, bad: merge(itertools.count(), itertools.count() | work) | bad, "work#2", ""),
    "keyed": (
        lambda work, bad: itertools.count() | work | bad.setup(workers=3, key=identity),
        "work#2",
        "",
    ),
}


def place_notes(error: TaskException) -> list[str]:
    return [note for note in error.__notes__ if note.startswith("stage ")]


@pytest.mark.parametrize(
    ("place", "how"), sample(lambda place, how: how == "raise" or place in ("tee", "route"), PLACES, RAISED)
)
def test_a_failure_anywhere_ends_the_run_and_says_where_it_was(
    backend: str, place: str, how: str, tmp_path: Path
) -> None:
    make, stage, branch = PLACES[place]
    pipe = make(same(backend), bad(backend, fault(how, tmp_path)))
    error = error_of(pipe.results())
    assert (error.stage, error.item) == (stage, str(AT))
    assert error.worker.rpartition("-")[0] == stage
    assert type(error.__cause__) is RAISED[how]
    assert str(error).startswith(f'The task "{error.worker}" raised {RAISED[how].__name__}(')
    assert place_notes(error) == ([f'stage "{stage}" is in {branch}'] if branch else [])


@pytest.mark.parametrize("how", RAISED)
def test_a_source_of_a_merge_that_fails_is_named(backend: str, how: str, tmp_path: Path) -> None:
    failing = Stage(produce, AT, fault(how, tmp_path)).setup(backend=backend)
    error = error_of(merge(itertools.count() | same(backend), failing).results())
    assert (error.stage, error.worker) == ("produce", "produce-0")
    assert place_notes(error) == ['stage "produce" is in pipeline 2 of merge']
    assert type(error.__cause__) is RAISED[how]


def test_an_iterable_of_a_merge_that_fails_is_named(tmp_path: Path) -> None:
    error = error_of(merge(itertools.count(), produce(AT, fault("raise", tmp_path))).results())
    assert (error.stage, error.worker) == ("source#2", "source#2-0")
    assert place_notes(error) == ['stage "source#2" is in pipeline 2 of merge']


@pytest.mark.parametrize(("left", "how"), sample(lambda left, how: how == "raise", ["source", "work"], RAISED))
def test_a_choice_that_fails_is_a_failure_of_the_stage_left_of_it(
    backend_pair: tuple[str, str], left: str, how: str, tmp_path: Path
) -> None:
    one, other = backend_pair
    choose = partial(strike_at, at=AT, fault=fault(how, tmp_path), then=parity)
    prefix = itertools.count() if left == "source" else itertools.count() | same(one)
    error = error_of((prefix | route(choose, {0: same(one), 1: same(other)})).results())
    assert (error.stage, error.worker, error.item) == (left, f"{left}-0", str(AT))
    assert str(error).startswith(
        f'The task "{left}-0" could not choose a branch of route(strike_at) for {AT}: {RAISED[how].__name__}('
    )
    assert type(error.__cause__) is RAISED[how]


@pytest.mark.parametrize("how", sample(lambda how: how == "raise", RAISED))
def test_a_key_that_fails_is_a_failure_of_the_stage_left_of_it(
    backend_pair: tuple[str, str], how: str, tmp_path: Path
) -> None:
    one, other = backend_pair
    key = partial(strike_at, at=AT, fault=fault(how, tmp_path), then=identity)
    pipe = itertools.count() | same(one) | tee(same(one), same(other, workers=2, key=key))
    error = error_of(pipe.results())
    assert (error.stage, error.worker, error.item) == ("work", "work-0", str(AT))
    assert f"could not find the key of stage 'work#3' for {AT}: {RAISED[how].__name__}(" in str(error)


def test_an_item_without_a_branch_is_a_failure_that_names_it(backend: str) -> None:
    pipe = itertools.count() | same(backend) | route(identity, {0: same(backend), 1: same(backend)})
    error = error_of(pipe.results())
    assert (error.stage, error.item) == ("work", "2")
    assert "no branch has the key 2, there are 0, 1" in str(error)


def test_results_that_have_reached_the_last_queue_are_delivered_before_the_failure(
    backend_pair: tuple[str, str], tmp_path: Path
) -> None:
    one, other = backend_pair
    release = tmp_path / "release"
    failing = Stage(halt_and_strike, 5, release, fault("raise", tmp_path)).setup(backend=other)
    results = (range(10) | tee(same(one), failing)).results()
    eventually(lambda: [stage.results for stage in results.stats().stages] == [10, 10, 5], seconds=30)
    release.touch()
    delivered = []
    with pytest.raises(TaskException):
        for number in results:
            delivered.append(number)
    assert sorted(delivered) == sorted([*range(10), *range(5)])


# -- deaths

#: Those of PLACES where the stage has a branch or several inputs.
DEADLY = ["tee", "route", "route in tee", "tee in route", "merge", "prefix", "behind tee", "behind merge", "keyed"]


@pytest.mark.parametrize(
    ("place", "how"), sample(lambda place, how: how == "sigkill-itself" or place in ("tee", "route"), DEADLY, DEATHS)
)
def test_a_dead_worker_anywhere_ends_the_run_and_says_where_it_was(
    backend: str, place: str, how: str, tmp_path: Path
) -> None:
    make, stage, branch = PLACES[place]
    pipe = make(same(backend, qsize=1), bad("process", fault(how, tmp_path), qsize=1))
    error = error_of(pipe.results())
    assert type(error) is WorkerDied
    assert error.stage == stage
    assert error.worker.rpartition("-")[0] == stage
    assert DEATHS[how] in str(error)
    assert (error.item or "").split(", ")[0] == str(AT)  # the one in work; another may have been sent ahead
    assert f" in hand: {AT}" in str(error)
    assert place_notes(error) == ([f'stage "{stage}" is in {branch}'] if branch else [])
    assert workers_alive() == []


def test_a_worker_that_is_killed_while_its_branch_is_idle_is_noticed(backend: str) -> None:
    release = threading.Event()

    def silent() -> Iterator[int]:
        yield 1
        release.wait(60)

    def first_says_who(numbers: Iterable[int]) -> Iterator[int]:
        yield os.getpid()
        yield from numbers

    told = Stage(first_says_who).setup(backend="process", name="told")
    results = (silent() | route(parity, {0: told, 1: same(backend)})).results()
    seen = {next(results), next(results)}
    os.kill(max(seen), signal.SIGKILL)
    error = error_of(results)
    release.set()
    assert type(error) is WorkerDied
    assert "It had no items in hand" in str(error)
    assert place_notes(error) == ['stage "told" is in branch 0 of route(parity)']


# -- branches that stop reading


#: Graphs with a branch that stops: made of a stage and of one that stops; how often each number comes out beside what
#: that one gives; which numbers go to it.
STOPPING: dict[str, tuple[Callable[[Any, Any], Any], Callable[[int], int], Callable[[int], bool]]] = {
    "tee": (lambda work, stops: tee(work, stops, work), lambda _: 2, lambda _: True),
    "route": (
        lambda work, stops: route(parity, {0: work, 1: stops}),
        lambda number: number % 2 == 0,
        lambda number: number % 2 == 1,
    ),
    "tee in tee": (lambda work, stops: tee(work, tee(stops, work)), lambda _: 2, lambda _: True),
    "tee in route": (
        lambda work, stops: route(parity, {0: work, 1: tee(work, stops)}),
        lambda _: 1,
        lambda number: number % 2 == 1,
    ),
    "route in tee": (
        lambda work, stops: tee(route(parity, {0: work, 1: stops}), work),
        lambda number: 1 + (number % 2 == 0),
        lambda number: number % 2 == 1,
    ),
    "later in a branch": (lambda work, stops: tee(work | stops, work), lambda _: 1, lambda _: True),
    "keyed beside it": (
        lambda work, stops: tee(stops, work.setup(workers=2, key=identity)),
        lambda _: 1,
        lambda _: True,
    ),
}


@pytest.mark.parametrize(
    ("shape", "qsize"),
    sample(lambda shape, qsize: qsize == 1 or shape in ("tee", "route"), STOPPING, [1, None]),
)
def test_a_branch_that_stops_early_takes_nothing_from_the_others(
    backend_pair: tuple[str, str], shape: str, qsize: int | None
) -> None:
    one, other = backend_pair
    make, times, goes_there = STOPPING[shape]
    stops = Stage(first, 3).setup(backend=other, qsize=qsize)
    results = (range(COUNT) | same(one, qsize=qsize) | make(same(one, qsize=qsize), stops)).results()
    expected = Counter({number: times(number) for number in range(COUNT)})
    expected.update([number for number in range(COUNT) if goes_there(number)][:3])
    assert Counter(results) == +expected


@pytest.mark.parametrize(("shape", "qsize"), sample(lambda shape, qsize: qsize == 1, ["tee", "route"], [1, None]))
def test_a_branch_that_never_reads_takes_nothing_from_the_others(
    backend_pair: tuple[str, str], shape: str, qsize: int | None
) -> None:
    one, other = backend_pair
    make, times, _ = STOPPING[shape]
    stops = Stage(first, 0).setup(backend=other, qsize=qsize)
    results = (range(COUNT) | same(one, qsize=qsize) | make(same(one, qsize=qsize), stops)).results()
    assert Counter(results) == +Counter({number: times(number) for number in range(COUNT)})


@pytest.mark.parametrize(
    ("shape", "qsize"),
    sample(lambda shape, qsize: qsize == 1 or shape == "tee", ["tee", "route", "tee in route"], [1, None]),
)
def test_what_one_worker_of_a_branch_leaves_is_read_by_its_others(
    backend_pair: tuple[str, str], shape: str, qsize: int | None
) -> None:
    one, other = backend_pair
    make, times, goes_there = STOPPING[shape]
    stops = Stage(until, AT).setup(backend=other, qsize=qsize, workers=3)
    results = (range(COUNT) | same(one, qsize=qsize) | make(same(one, qsize=qsize), stops)).results()
    expected = Counter({number: times(number) for number in range(COUNT)})
    expected.update(number for number in range(COUNT) if goes_there(number))
    assert Counter(results) == +expected


def test_a_writer_that_waits_for_a_branch_goes_on_when_the_branch_stops(
    backend_pair: tuple[str, str], tmp_path: Path
) -> None:
    """It waits for room with a number in hand; the other branch must get that one, too."""
    one, other = backend_pair
    release = tmp_path / "release"

    def waits_and_stops(numbers: Iterable[int]) -> Iterator[int]:
        next(iter(numbers))
        wait_for(release)
        return iter(())

    stops = Stage(waits_and_stops).setup(backend=other, qsize=1)
    results = (range(COUNT) | same(one, qsize=1) | tee(same(one, qsize=0), stops)).results()
    wait_until_nothing_moves(results)
    assert results.stats().stages[1].results < COUNT
    release.touch()
    assert sorted(results) == list(range(COUNT))


ALL_STOP: dict[str, Callable[[Any, Any], Any]] = {
    "tee": tee,
    "route": lambda one, other: route(parity, {0: one, 1: other}),
    "tee in tee": lambda one, other: tee(one, tee(other, one)),
    "route in tee": lambda one, other: tee(other, route(parity, {0: one, 1: other})),
    "keyed": lambda one, other: one.setup(workers=3, key=identity),
}


@pytest.mark.parametrize("shape", ALL_STOP)
def test_when_all_branches_have_stopped_what_feeds_them_stops_too(
    backend_pair: tuple[str, str], shape: str, tmp_path: Path
) -> None:
    """A source without end, and the `finally` block of the stage behind it; another pipeline keeps the run open."""
    one, other = backend_pair
    said = tmp_path / "tidied"
    running: list[Results[int]] = []

    def keeps_open() -> Iterator[int]:
        eventually(lambda: bool(running) and [s.running for s in running[0].stats().stages[:2]] == [0, 0], seconds=30)
        yield -1

    branches = ALL_STOP[shape](Stage(first, 3).setup(backend=one), Stage(first, 5).setup(backend=other))
    fed = itertools.count() | Stage(tidy, said).setup(backend=one) | branches
    running.append(merge(fed, keeps_open()).results())
    assert list(running[0]).count(-1) == 1
    assert said.exists()


def endless_unless(release: Path, said: Path) -> Iterator[int]:
    """Not to burn a processor for the rest of the session if nobody stops it."""
    try:
        yield from itertools.takewhile(lambda number: number % 1000 or not release.exists(), itertools.count(1))
    finally:
        said.touch()


@pytest.mark.parametrize("where", ["dropped", "to a branch that has stopped"])
def test_leaving_stops_a_source_whose_items_go_nowhere_any_more(backend: str, where: str, tmp_path: Path) -> None:
    release, said = tmp_path / "release", tmp_path / "said"
    stopped = {False: Stage(first, 3).setup(backend=backend)}
    branches = route(
        lambda number: number < 5,
        {True: same("thread"), **({} if where == "dropped" else stopped)},
        default=DROP,
    )
    results = (Stage(endless_unless, release, said).setup(backend=backend) | branches).results()
    assert len(list(itertools.islice(results, 4 if where == "dropped" else 7))) >= 4
    if where != "dropped":
        eventually(lambda: results.stats().stages[2].running == 0)
        time.sleep(0.2)  # not to be sure of anything: so that the source has learned that the branch has stopped
    results.close()
    tidied = said.exists()
    release.touch()
    assert tidied


def test_leaving_is_heard_by_a_source_that_lets_the_gil_go_only_for_moments(backend: str, tmp_path: Path) -> None:
    """As `exists` does: whoever waits for it meanwhile may never get it. Eight times, since it is a matter of luck."""
    for number in range(8):
        release, said = tmp_path / f"release-{number}", tmp_path / f"said-{number}"
        first_only = route(lambda number: number == 1, {True: same("thread")}, default=DROP)
        results = (Stage(endless_unless, release, said).setup(backend=backend) | first_only).results()
        next(results)
        results.close()
        tidied = said.exists()
        release.touch()
        assert tidied


def test_a_worker_stops_when_all_branches_have_stopped_although_it_has_nothing_more_for_one_of_them(
    backend_pair: tuple[str, str],
) -> None:
    one, other = backend_pair
    running: list[Results[int]] = []

    def keeps_open() -> Iterator[int]:
        eventually(lambda: bool(running) and running[0].stats().stages[0].running == 0, seconds=10)
        yield -1

    branches = route(
        lambda number: number < 3,
        {True: Stage(first, 3).setup(backend=one), False: Stage(first, 5).setup(backend=other)},
    )
    running.append(merge(Stage(itertools.count).setup(backend=one) | branches, keeps_open()).results())
    assert sorted(running[0]) == [-1, *range(8)]


def test_a_key_that_is_equal_only_to_itself_chooses_in_threads_and_is_refused_for_processes() -> None:
    branches = route(sentinel_if_odd, {SENTINEL: same("thread")}, default=DROP)
    assert list((range(10) | same("thread") | branches).results()) == [1, 3, 5, 7, 9]
    with pytest.raises(NotPicklable, match="behind stage 'work'.*is not equal to its own copy there"):
        (range(10) | same("process") | branches).results()
    with pytest.raises(NotPicklable, match="cannot be pickled"):
        (range(10) | same("process") | route(sentinel_if_odd, {threading.Lock(): same("thread")})).results()


def test_ctrl_c_while_the_writers_of_a_tee_are_told_leaves_none_of_them_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is left is a thread, which the fixture sees."""
    calls = itertools.count()

    def interrupted(self: Any, answer: Any) -> Any:
        if threading.current_thread() is threading.main_thread() and next(calls) == 20:
            raise KeyboardInterrupt
        return add(self, answer)

    add = _fan_out._Together.add
    pipe = itertools.count() | same("thread", qsize=1) | tee(same("thread", qsize=1), same("thread", qsize=1))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(_fan_out._Together, "add", interrupted)
        list(pipe.results())


def test_a_pipeline_of_a_merge_that_ends_early_leaves_the_others_alone(backend_pair: tuple[str, str]) -> None:
    one, other = backend_pair
    short = itertools.count() | Stage(first, 3).setup(backend=one)
    pipe = merge(short, range(COUNT) | same(other), range(COUNT)) | same(one, qsize=1)
    assert Counter(pipe.results()) == Counter([*range(3), *range(COUNT), *range(COUNT)])


def test_a_stage_behind_a_merge_that_stops_early_ends_all_its_sources(backend_pair: tuple[str, str]) -> None:
    one, other = backend_pair
    endless = Stage(itertools.count).setup(backend=one)
    pipe = merge(endless, itertools.count() | same(other), itertools.count()) | Stage(first, 5).setup(backend=other)
    assert len(list(pipe.results())) == 5


# -- leaving


def wait_until_nothing_moves(results: Results[Any]) -> None:
    """Everything that can be done without the consumer has been done."""
    last, since = results.stats(), time.monotonic()
    while time.monotonic() - since < 0.15 or not any(stage.waiting for stage in last.stages):
        time.sleep(0.01)
        now = results.stats()
        if now != last:
            last, since = now, time.monotonic()


def everything(one: str, other: str) -> Any:
    """Every kind of join, with queues of one: all are full soon, but for one branch that gets nothing at all."""
    here, there = same(one, qsize=1), same(other, qsize=1)
    starving = route(zero, {0: there, 1: here})
    keyed = same(other, qsize=1, workers=2, key=identity)
    return merge(itertools.count() | here, itertools.count()) | tee(here, starving, keyed) | there


def _break(results: list[Results[int]]) -> None:
    for _ in results.pop():
        break


def _close(results: list[Results[int]]) -> None:
    results.pop().close()


def _exception(results: list[Results[int]]) -> None:
    with pytest.raises(KeyError), results.pop() as reading:
        next(reading)
        raise KeyError


def _collected(results: list[Results[int]]) -> None:
    cycle: list[Any] = [results.pop()]
    cycle.append(cycle)
    del cycle
    gc.collect()


@pytest.mark.parametrize("leave", [_break, _close, _exception, _collected])
def test_leaving_a_graph_whose_queues_are_full_takes_less_than_promised(
    backend_pair: tuple[str, str], leave: Callable[[list[Results[int]]], None]
) -> None:
    results = [everything(*backend_pair).results()]
    wait_until_nothing_moves(results[0])
    started = time.monotonic()
    leave(results)
    assert time.monotonic() - started < PROMISED
    assert workers_alive() == []


@pytest.mark.parametrize("shape", sample(lambda shape: shape in ("tee", "route", "later in a branch"), STOPPING))
def test_leaving_while_a_branch_is_busy_takes_less_than_promised(backend: str, shape: str, tmp_path: Path) -> None:
    """The others wait: for room, or for input. A thread is left in its call, a process is killed."""
    release = tmp_path / "release"
    make, _, _ = STOPPING[shape]
    busy = Stage(halt, 3 if "route" in shape else 2, release).setup(backend=backend, qsize=1, name="busy")
    results = (itertools.count() | same(backend, qsize=1) | make(same(backend, qsize=1), busy)).results()
    next(results)
    wait_until_nothing_moves(results)
    started = time.monotonic()
    results.close()
    took = time.monotonic() - started
    release.touch()
    assert took < PROMISED
    assert workers_alive() == []


def test_a_branch_that_gets_nothing_is_left_as_quickly_as_one_that_is_full(backend_pair: tuple[str, str]) -> None:
    """The worker before them waits for room in one outbox; the other has never got anything."""
    one, other = backend_pair
    pipe = itertools.count() | same(one, qsize=1) | route(zero, {0: same(other, qsize=1), 1: same(one, qsize=1)})
    results = pipe.results()
    wait_until_nothing_moves(results)
    assert [stage.received for stage in results.stats().stages][-1] == 0
    started = time.monotonic()
    results.close()
    assert time.monotonic() - started < PROMISED


def test_leaving_runs_the_finally_blocks_in_every_branch(backend_pair: tuple[str, str], tmp_path: Path) -> None:
    one, other = backend_pair
    files = [tmp_path / str(number) for number in range(5)]
    stages = [Stage(tidy, file).setup(backend=name) for file, name in zip(files, itertools.cycle([one, other]))]
    pipe = itertools.count() | stages[0] | tee(stages[1], route(parity, {0: stages[2], 1: stages[3]})) | stages[4]
    with pipe.results() as results:
        eventually(lambda: all(stage.received for stage in results.stats().stages[1:]), seconds=30)
    assert [file.exists() for file in files] == [True] * 5


# -- standing still


def test_the_worker_that_holds_up_a_tee_is_named_by_a_stall(backend: str, tmp_path: Path) -> None:
    stuck = Stage(halt, 4, tmp_path / "release").setup(backend=backend, qsize=1, name="work")
    results = (range(100) | tee(same(backend, qsize=1), stuck)).results(stall_timeout=0.4)
    error = stall_of(results, tmp_path / "release")
    assert {state.worker: state.doing for state in error.workers} == {
        "source-0": Doing.WRITING,
        "work-0": Doing.READING,
        "work#2-0": Doing.WORKING,
    }
    assert error.workers[2].item == "4"
    assert "work#2: 1 in user code" in str(error)


def test_the_worker_that_holds_up_a_route_is_named_by_a_stall(backend: str, tmp_path: Path) -> None:
    stuck = Stage(halt, 5, tmp_path / "release").setup(backend=backend, qsize=1, name="work")
    pipe = range(100) | same(backend, qsize=1) | route(parity, {0: same(backend, qsize=1), 1: stuck})
    error = stall_of(pipe.results(stall_timeout=0.4), tmp_path / "release")
    doing = {state.worker: state.doing for state in error.workers}
    assert doing == {
        "source-0": Doing.WRITING,
        "work-0": Doing.WRITING,
        "work#2-0": Doing.READING,
        "work#3-0": Doing.WORKING,
    }


def stall_of(results: Results[int], release: Path) -> Stalled:
    eventually(lambda: all(stage.received for stage in results.stats().stages[1:]), seconds=30)
    with pytest.raises(Stalled) as caught:
        list(results)
    release.touch()
    return caught.value


# -- items that cannot travel


def test_an_item_that_cannot_travel_to_one_branch_of_a_tee_ends_the_run(backend: str) -> None:
    """The thread branch is not left waiting for it. The stage that gave the item is named."""
    items = [1, threading.Lock(), 3]
    pipe = items | same("thread") | tee(same("thread"), same("process"), same(backend))
    error = error_of(pipe.results())
    assert type(error) is ItemNotPicklable
    assert (error.stage, error.worker) == ("work", "work-0")
    assert "could not pickle its result <unlocked _thread.lock" in str(error)


def test_an_item_that_cannot_travel_may_go_to_a_branch_where_it_need_not() -> None:
    lock = threading.Lock()
    items = [1, lock, 3, lock]
    pipe = items | route(_is_lock, {True: same("thread"), False: same("process")})
    results = list(pipe.results())
    assert sorted(result for result in results if isinstance(result, int)) == [1, 3]
    assert [result for result in results if not isinstance(result, int)] == [lock, lock]


def _is_lock(item: object) -> bool:
    return not isinstance(item, int)


# -- signals


GRAPH = """
from pipekit import merge, route, tee

def graph(situation, method):
    '''A process; a process, a thread, and a process or a thread; two processes. All but the last two get something.'''
    source = silent_after_one() if situation == "idle" else itertools.count()
    prefix, busy = [(2, sleep), (0, loop)] if situation == "compute" else [(), ()]
    qsize = 1 if situation == "full" else None

    def stage(backend, arguments=busy, **options):
        return Stage(work, *arguments).setup(backend=backend, qsize=qsize, **options)

    either = route(lambda n: n % 2, {0: stage("process"), 1: stage("thread")})
    both = tee(stage("process"), stage("thread"), either)
    last = stage("process", (), workers=2, key=lambda n: n)
    return merge(source | stage("process", prefix), []) | both | last

read(graph(situation, method).results(), situation)
"""
#: Said before a program is in its situation. The consumer says so at each result: when idle, one from each branch.
SAYS: dict[Situation, list[str]] = {
    "idle": ["worker"] * 7 + ["consumer"] * 3,
    "compute": ["worker"] * 7,
    "full": ["worker"] * 7 + ["consumer"],
}


@pytest.mark.parametrize("situation", SAYS)
def test_ctrl_c_ends_a_program_with_a_graph_with_one_traceback(situation: Situation) -> None:
    with program(GRAPH, situation, "forkserver") as running:
        running.says(*SAYS[situation])
        os.killpg(running.pid, signal.SIGINT)
        status, out, err = running.ends(within=PROMISED + SLACK)
        assert (status, out) == (-signal.SIGINT, "")
        assert _is_one_interrupt(err), err
        assert os.listdir(running.directory) == []


@pytest.mark.parametrize(
    ("situation", "number"),
    sample(
        lambda situation, number: number == signal.SIGKILL or situation == "full",
        SAYS,
        [signal.SIGTERM, signal.SIGKILL],
    ),
)
def test_workers_of_a_graph_do_not_outlive_a_parent_that_is_killed(
    situation: Situation, number: signal.Signals
) -> None:
    with program(GRAPH, situation, "forkserver") as running:
        running.says(*SAYS[situation])
        os.kill(running.pid, number)
        assert running.ends(within=AT_ONCE) == (-number, "", "")


def test_a_program_that_ends_with_a_graph_that_nobody_reads_ends_cleanly() -> None:
    body = GRAPH.replace("read(graph(", "results = graph(").replace(".results(), situation)", ".results()")
    with program(body, "full", "forkserver") as running:
        status, out, err = running.ends(within=10)
        assert (status, err) == (0, "")
        assert set(re.findall("^[a-z]+", out, re.MULTILINE)) <= {"worker"}  # those that had begun
        assert os.listdir(running.directory) == []


# -- queues of one everywhere: the product


def _route(pre: Any, hit: Any, other: Any, behind: Any, source: Callable[[], Iterable[int]]) -> Any:
    return source() | pre | route(parity, {0: other, 1: hit}) | behind


def _nested(pre: Any, hit: Any, other: Any, behind: Any, source: Callable[[], Iterable[int]]) -> Any:
    return source() | pre | tee(other, route(parity, {0: other, 1: tee(other, hit)})) | behind


def _wide(pre: Any, hit: Any, other: Any, behind: Any, source: Callable[[], Iterable[int]]) -> Any:
    keyed = other().setup(workers=2, key=identity)
    return merge(source() | pre, source()) | tee(keyed, hit) | behind


#: Graphs; how often a number comes out of the stage `hit`, and of those beside it.
SHAPES: dict[str, tuple[Callable[..., Any], Callable[[int], int], Callable[[int], int]]] = {
    "tee": (
        lambda pre, hit, other, behind, source: source() | pre | tee(other, hit) | behind,
        lambda _: 1,
        lambda _: 1,
    ),
    "route": (_route, lambda number: number % 2, lambda number: 1 - number % 2),
    "merge": (
        lambda pre, hit, other, behind, source: merge(source() | pre | other, source() | hit) | behind,
        lambda _: 1,
        lambda _: 1,
    ),
    "keyed": (
        lambda pre, hit, other, behind, source: source() | pre | hit.setup(workers=3, key=identity) | other | behind,
        lambda _: 1,
        lambda _: 0,
    ),
    "nested": (_nested, lambda number: number % 2, lambda number: 2),
    "wide": (_wide, lambda _: 2, lambda _: 2),
}
STRUCK = ["pre", "hit", "behind"]


def graph(shape: str, pair: tuple[str, str], source: Callable[[], Iterable[int]], **changed: Any) -> Any:
    """A graph with queues of one everywhere. The first stage is on the first backend, the branch that may be struck
    on the second one; `changed`: stages to put in the place of others."""
    one, other = pair
    stages = {"pre": same(one), "hit": same(other), "other": same(one), "behind": same(other), **changed}
    return SHAPES[shape][0](**{name: stage.setup(qsize=1) for name, stage in stages.items()}, source=source)


def backend_of(struck: str, pair: tuple[str, str]) -> str:
    return pair[0] if struck == "pre" else pair[1]


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_lost_or_doubled_with_queues_of_one(backend_pair: tuple[str, str], shape: str) -> None:
    _, hit, other = SHAPES[shape]
    expected = Counter({number: hit(number) + other(number) for number in range(COUNT)})
    assert Counter(graph(shape, backend_pair, lambda: range(COUNT)).results()) == expected


def product_of_failures() -> list[Any]:
    """What ends a process strikes where there is one: in a thread it would be the end of the program itself."""
    pairs = [(one, other) for one in BACKENDS for other in BACKENDS]
    return [
        pytest.param("/".join(pair), struck, how, id=f"{'/'.join(pair)}-{struck}-{how}")
        for pair, struck, how in itertools.product(pairs, STRUCK, [*RAISED, *DEATHS])
        if how in RAISED or backend_of(struck, pair) == "process"
    ]


@pytest.mark.nightly
@pytest.mark.parametrize(("backend_pair", "struck", "how"), product_of_failures(), indirect=["backend_pair"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("endless", [False, True], ids=["finite", "endless"])
def test_every_failure_with_queues_of_one_ends_in_its_error(
    backend_pair: tuple[str, str], shape: str, struck: str, how: str, endless: bool, tmp_path: Path
) -> None:
    backend = backend_of(struck, backend_pair)
    strikes = bad(backend, fault(how, tmp_path), name="struck")
    source = itertools.count if endless else partial(range, COUNT)
    pipe = graph(shape, backend_pair, source, **{struck: strikes})
    results: list[int] = []
    with pytest.raises(TaskException) as caught:
        for number in pipe.results():
            results.append(number)
    ended = time.monotonic()
    error = caught.value
    assert error.stage == "struck"
    assert (error.item or "").split(", ")[0] == str(AT)
    if how in RAISED:
        assert type(error.__cause__) is RAISED[how]
    else:
        assert type(error) is WorkerDied
        assert DEATHS[how] in str(error)
        assert ended - float((tmp_path / "said").read_text().split()[1]) < PROMISED
    _, hit, other = SHAPES[shape]
    assert all(times <= hit(number) + other(number) for number, times in Counter(results).items())


@pytest.mark.nightly
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_branch_that_stops_early_with_queues_of_one_takes_nothing_from_the_others(
    backend_pair: tuple[str, str], shape: str, count: int
) -> None:
    stops = Stage(first, count).setup(backend=backend_of("hit", backend_pair))
    _, hit, other = SHAPES[shape]
    results = Counter(graph(shape, backend_pair, lambda: range(COUNT), hit=stops).results())
    beside = Counter({number: other(number) for number in range(COUNT)})
    assert beside <= results
    assert (results - beside).total() == count * (3 if shape == "keyed" else 1)
    assert all(times <= hit(number) for number, times in (results - beside).items())


@pytest.mark.nightly
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_end_of_the_last_stage_with_queues_of_one_ends_everything(
    backend_pair: tuple[str, str], shape: str, count: int
) -> None:
    stops = Stage(first, count).setup(backend=backend_of("behind", backend_pair))
    results = graph(shape, backend_pair, itertools.count, behind=stops).results()
    assert len(list(results)) == count


@pytest.mark.nightly
@pytest.mark.parametrize("leave", [_break, _close, _exception, _collected])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_with_queues_of_one_is_left_in_less_than_promised(
    backend_pair: tuple[str, str], shape: str, leave: Callable[[list[Results[int]]], None]
) -> None:
    results = [graph(shape, backend_pair, itertools.count).results()]
    next(results[0])
    started = time.monotonic()
    leave(results)
    assert time.monotonic() - started < PROMISED
    assert workers_alive() == []
