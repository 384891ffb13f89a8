"""Random graphs, options and faults: a run gives what `run_inline` gives, or its error, and never hangs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias, TypeVar

from conftest import BACKENDS, REMOTE
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from stage_functions import KEYS, Modulo, counted, faulty, first_three, same, summed
from test_properties import (
    DIED,
    EXAMPLES,
    FUNCTIONS,
    RAISED,
    RAISES,
    Fault,
    joined,
    made,
    read,
    source,
)
from test_properties import checked as checked_pipelines

from pipekit import DROP, Stage, TaskException, WorkerDied, merge, route, run_inline, tee

T = TypeVar("T")

#: A graph has more stages than a pipeline.
checked = settings(checked_pipelines, max_examples=max(1, EXAMPLES // 2))

#: From so many stages on no more branches are begun, and so many process workers may be: it is to run in a second.
MOST_STAGES, MOST_PROCESS_WORKERS = 8, 8
DEPTH = 5
FUSES = [None, True, False]
#: Branches in series multiply the items; more than so many are not meant to be looked at.
MOST_RESULTS = 5000
#: Seconds without any movement after which a run has hung. None of these graphs needs a hundredth of it for an item.
HUNG = 20.0


# -- graphs as hypothesis shows them


@dataclass(frozen=True)
class Step:
    """A stage. Equal ones are the same value, which then stands in several places."""

    function: str
    workers: int
    qsize: int | None
    backend: str
    key: str | None = None
    fuse: bool | None = None


@dataclass(frozen=True)
class Special:
    """Where the stage with the fault stands, or the one that stops reading."""


@dataclass(frozen=True)
class Row:
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class ToEach:
    branches: tuple[Part, ...]


@dataclass(frozen=True)
class ToOne:
    """A route by a number; `other`: None for none, "drop", or a branch."""

    by: int
    branches: tuple[Part, ...]
    other: Part | str | None


@dataclass(frozen=True)
class Origin:
    kind: str
    count: int


@dataclass(frozen=True)
class Merged:
    parts: tuple[Part, ...]


Part: TypeAlias = Step | Special | Row | ToEach | ToOne | Origin | Merged


def built(part: Part, special: Any) -> Any:
    """The graph, with the stage `special` where `Special` stands."""
    return _Building(special).built(part)


class _Building:
    def __init__(self, special: Any) -> None:
        self._special = special
        self._stages: dict[Step, Any] = {}

    def built(self, part: Part) -> Any:
        match part:
            case Step():
                return self._stages.setdefault(part, _stage(part))
            case Special():
                return self._special
            case Row(parts):
                return joined(self.built(parts[0]), map(self.built, parts[1:]))
            case ToEach(branches):
                return tee(*map(self.built, branches))
            case ToOne(by, branches, other):
                return route(
                    Modulo(by),
                    {number: self.built(branch) for number, branch in enumerate(branches)},
                    default=DROP if other == "drop" else None if other is None else self.built(other),  # type: ignore[arg-type]
                )
            case Origin(kind, count):
                return source(kind, count)
            case Merged(parts):
                return merge(*map(self.built, parts))


def _stage(step: Step) -> Any:
    options: dict[str, Any] = {name: getattr(step, name) for name in ("workers", "qsize", "backend", "fuse")}
    if step.function == "counted":
        assert step.key is not None
        return Stage(counted, step.key).setup(key=KEYS[step.key], **options)
    key = None if step.key is None else KEYS[step.key]
    if step.function == "summed":
        return Stage(summed).setup(key=key, **options)
    return made(step.function, key=key, **options)


def inside(part: Part) -> tuple[Part, ...]:
    if isinstance(part, (Row, Merged)):
        return part.parts
    if isinstance(part, ToEach):
        return part.branches
    if isinstance(part, ToOne):
        return part.branches if part.other is None or isinstance(part.other, str) else (*part.branches, part.other)
    return ()


def parts_of(part: Part) -> Iterator[Part]:
    yield part
    for one in inside(part):
        yield from parts_of(one)


class _Drawing:
    """Draws a graph of bounded size."""

    def __init__(self, draw: Any, special_at: int | None, *, aggregating: bool, complete: bool) -> None:
        self._draw = draw
        self._special_at = special_at
        self._functions = sorted([*FUNCTIONS, "mapped", "counted", *(["summed"] if aggregating else [])])
        self._complete = complete
        self._stages = 0
        self._process_workers = 0

    def graph(self) -> Part:
        whole = self._closed(DEPTH)
        if self._special_at is not None and not any(isinstance(part, Special) for part in parts_of(whole)):
            whole = Row((whole, Special()))
        return whole if isinstance(whole, Row) else Row((whole, self._step()))

    def _closed(self, depth: int) -> Part:
        kinds = ["row", "row", "origin", "merge"] if depth else ["origin"]
        kind = self._one_of(kinds)
        if kind == "origin":
            origin = Origin(self._one_of(["range", "generator", "thread", "process"]), self._one_of([0, 1, 5, 40, 200]))
            self._process_workers += origin.kind in REMOTE
            return origin
        if kind == "merge":
            return Merged(self._some(lambda: self._closed(depth - 1), 3))
        return Row((self._closed(depth - 1), *self._some(lambda: self._open(depth - 1), 2)))

    def _open(self, depth: int) -> Part:
        kind = self._one_of(["stage", "tee", "route", "row"] if depth and self._stages < MOST_STAGES else ["stage"])
        if kind == "stage":
            return self._step()
        branches = self._some(lambda: self._open(depth - 1), 3)
        if kind == "tee":
            return ToEach(branches)
        if kind == "row":
            return Row(branches)
        other: Part | str | None = None
        others = self._one_of(["none", "drop", "default"] if self._complete else ["missing", "none", "drop"])
        if others == "none":
            return ToOne(len(branches), branches, None)
        if others == "drop":
            other = "drop"
        elif others == "default":
            other = self._open(depth - 1)
        return ToOne(len(branches) + 1, branches, other)

    def _step(self) -> Part:
        function = self._one_of(self._functions)
        workers = 1 if function == "summed" else self._one_of([1, 2, 3])
        processes = 3 * workers if function == "mapped" else workers  # if they are not fused
        room = self._process_workers + processes <= MOST_PROCESS_WORKERS
        backend = self._one_of(BACKENDS if room else [name for name in BACKENDS if name not in REMOTE])
        self._process_workers += processes if backend in REMOTE else 0
        keys: list[str | None] = [*KEYS] if function == "counted" else [None, None, *KEYS]
        step = Step(
            function, workers, self._one_of([1, 2, 3, None, 0]), backend, self._one_of(keys), self._one_of(FUSES)
        )
        self._stages += 1
        if self._stages - 1 == self._special_at:
            return Row((step, Special()) if self._draw(st.booleans()) else (Special(), step))
        return step

    def _some(self, make: Any, most: int) -> tuple[Part, ...]:
        return tuple(make() for _ in range(self._one_of([*range(1, most + 1)])))

    def _one_of(self, values: list[T]) -> T:
        return self._draw(st.sampled_from(values))  # type: ignore[no-any-return]


@st.composite
def graphs(draw: st.DrawFn, special_at: int | None = None, *, aggregating: bool = True, complete: bool = True) -> Part:
    """Graphs that have their sources.

    special_at: stands beside this stage; None: nowhere.
    aggregating: with stages whose results depend on all of their items.
    complete: each route has a way for each item.
    """
    return _Drawing(draw, special_at, aggregating=aggregating, complete=complete).graph()


def noted(graph: Part) -> None:
    """Tell hypothesis' statistics what the graph has."""
    kinds = Counter(type(part).__name__ for part in parts_of(graph))
    for kind in kinds:
        event(f"has {kind}")
    steps = [part for part in parts_of(graph) if isinstance(part, Step)]
    event(f"{len(steps)} stages")
    event(f"depth {depth_of(graph)}")
    if any(step.key is not None and step.workers > 1 for step in steps):
        event("has a key")
    if any(step.function == "mapped" and step.fuse for step in steps):
        event("has fused stages")
    if {"thread", "process"} <= {step.backend for step in steps}:
        event("has both backends")


def depth_of(part: Part) -> int:
    return max((1 + depth_of(one) for one in inside(part)), default=0)


def counted_inline(pipe: Any) -> Counter[int]:
    """What is meant; graphs that mean too much are passed over."""
    results = list(islice(run_inline(pipe), MOST_RESULTS + 1))
    assume(len(results) <= MOST_RESULTS)
    return Counter(results)


@checked
@given(graphs())
def test_a_run_gives_what_the_graph_means(graph: Part) -> None:
    noted(graph)
    meant = counted_inline(built(graph, None))
    assert Counter(built(graph, None).results(stall_timeout=HUNG)) == meant


@checked
@given(graphs())
def test_a_graph_that_runs_twice_at_once_gives_twice_what_it_means(graph: Part) -> None:
    assume(not any(isinstance(part, Origin) and part.kind == "generator" for part in parts_of(graph)))
    pipe = built(graph, None)
    meant = counted_inline(pipe)
    runs = [pipe.results(stall_timeout=HUNG) for _ in range(2)]
    assert [Counter(run) for run in runs] == [meant, meant]


# -- faults


def endings(graph: Part, fault: Fault, *, how_inline: str) -> tuple[TaskException | None, TaskException | None]:
    """The errors of `run_inline`, with `how_inline` for the fault, and of the run; None where it does not strike.

    Asserts what holds for any fault: no more is delivered than without it, and all if it does not strike.
    """

    def broken(at: int, how: str) -> Any:
        return Stage(faulty, at, how).setup(backend=fault.backend, qsize=fault.qsize)

    whole = counted_inline(built(graph, broken(-1, "")))
    _, meant = read(run_inline(built(graph, broken(fault.at, how_inline))))
    delivered, error = read(built(graph, broken(fault.at, fault.how)).results(stall_timeout=HUNG))
    assert delivered <= whole
    if meant is None:
        assert (error, delivered) == (None, whole)
    else:
        event("the fault strikes")
    return meant, error


@checked
@given(RAISED, st.data())
def test_a_stage_of_a_graph_that_raises_is_the_same_error_as_in_plain_python(fault: Fault, data: st.DataObject) -> None:
    graph = data.draw(graphs(special_at=fault.place))
    meant, error = endings(graph, fault, how_inline=fault.how)
    if meant is None:
        return
    assert error is not None
    assert (error.stage, str(error.failure.message)) == ("faulty", str(meant.failure.message))
    assert type(error.__cause__) is RAISES[fault.how]


@checked
@given(DIED, st.data())
def test_a_worker_of_a_graph_that_dies_is_an_error_and_doubles_nothing(fault: Fault, data: st.DataObject) -> None:
    graph = data.draw(graphs(special_at=fault.place))
    meant, error = endings(graph, fault, how_inline="raise")
    if meant is not None:
        assert isinstance(error, WorkerDied)
        assert error.stage == "faulty"


@checked
@given(graphs(complete=False))
def test_an_item_without_a_way_is_an_error_as_in_plain_python(graph: Part) -> None:
    delivered, meant = read(islice(run_inline(built(graph, None)), MOST_RESULTS))
    assume(delivered.total() < MOST_RESULTS)
    _, error = read(built(graph, None).results(stall_timeout=HUNG))
    assert (error is None) == (meant is None)
    if error is not None:
        event("an item has no way")
        assert type(error.__cause__) is LookupError
        assert "could not choose a branch of route(Modulo) for " in str(error)


# -- stages that stop reading


STOPPERS = st.builds(
    Step,
    st.just("first_three"),
    st.integers(1, 3),
    st.sampled_from([None, 0, 1, 2]),
    st.sampled_from(BACKENDS),
)


@checked
@given(st.integers(0, 4), STOPPERS, st.data())
def test_with_a_stage_that_stops_reading_a_run_ends_and_gives_no_more_than_without(
    place: int, stopper: Step, data: st.DataObject
) -> None:
    graph = data.draw(graphs(special_at=place, aggregating=False))
    noted(graph)
    whole = counted_inline(built(graph, Stage(same)))
    stops = Stage(first_three).setup(workers=stopper.workers, qsize=stopper.qsize, backend=stopper.backend)
    assert Counter(built(graph, stops).results(stall_timeout=HUNG)) <= whole
