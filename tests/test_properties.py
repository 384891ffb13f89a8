"""Random pipelines, options and faults: a run gives what the same pipeline means in plain Python, or its error."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import conftest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stage_functions import Odd, doubled, faulty, halved, listed, odd, plus_one, same, twice

from pipekit import PipekitError, Stage, TaskException, WorkerDied, map_stage, run_inline, stage

EXAMPLES = int(os.environ.get("PIPEKIT_EXAMPLES", "25"))
checked = settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=True
)


FUNCTIONS: dict[str, Any] = {
    **{function.__name__: stage()(function) for function in (same, doubled, odd, twice, listed)},
    "plus_one": map_stage()(plus_one),
    "halved": map_stage(filter_errors=True)(halved),
}


@dataclass(frozen=True)
class Declared:
    """A stage as hypothesis shows it."""

    function: str
    workers: int
    qsize: int | None
    backend: str
    fuse: bool | None

    def stage(self) -> Any:
        return made(self.function, workers=self.workers, qsize=self.qsize, backend=self.backend, fuse=self.fuse)


def made(function: str, *, key: Any = None, **options: Any) -> Any:
    """A stage; or "mapped", several that may be fused."""
    if function != "mapped":
        return FUNCTIONS[function]().setup(key=key, **options)
    plus_one, halved = FUNCTIONS["plus_one"](), FUNCTIONS["halved"]()
    return plus_one.setup(key=key, **options) | plus_one.setup(key=None) | halved.setup(**options)


BACKENDS = st.sampled_from(conftest.BACKENDS)
QSIZES = st.sampled_from([None, 0, 1, 2, 5])
FUSE = st.sampled_from([None, True, False])
STAGES = st.builds(Declared, st.sampled_from(["mapped", *sorted(FUNCTIONS)]), st.integers(1, 3), QSIZES, BACKENDS, FUSE)
PIPELINES = st.lists(STAGES, min_size=1, max_size=4)
SOURCES = st.sampled_from(["range", "generator", "thread", "process"])
COUNTS = st.sampled_from([0, 1, 5, 200])


def source(kind: str, count: int) -> Any:
    if kind == "range":
        return range(count)
    if kind == "generator":
        return (number for number in range(count))
    return Stage(range, count).setup(backend=kind)


def joined(first: Any, stages: Iterable[Any]) -> Any:
    pipe = first
    for one in stages:
        pipe = pipe | one
    return pipe


@checked
@given(SOURCES, COUNTS, PIPELINES)
def test_a_run_gives_what_the_pipeline_means(kind: str, count: int, declared: list[Declared]) -> None:
    stages = [one.stage() for one in declared]
    meant = Counter(run_inline(joined(source(kind, count), stages)))
    assert Counter(joined(source(kind, count), stages).results()) == meant


# -- faults


RAISES = {"raise": ValueError, "base": Odd, "sys.exit": SystemExit}


@dataclass(frozen=True)
class Fault:
    place: int
    at: int
    how: str
    backend: str
    qsize: int | None


RAISED = st.builds(
    Fault, st.integers(0, 4), st.sampled_from([0, 1, 7, 150]), st.sampled_from(sorted(RAISES)), BACKENDS, QSIZES
)
DIED = st.builds(
    Fault,
    st.integers(0, 4),
    st.sampled_from([0, 1, 7, 150]),
    st.sampled_from(["exit", "kill"]),
    st.just("process"),
    QSIZES,
)


def with_fault(first: Any, declared: list[Declared], fault: Fault, *, how: str) -> Any:
    broken = Stage(faulty, fault.at, how).setup(backend=fault.backend, qsize=fault.qsize)
    stages = [one.stage() for one in declared]
    return joined(first, [*stages[: fault.place], broken, *stages[fault.place :]])


def read(results: Iterable[int]) -> tuple[Counter[int], TaskException | None]:
    delivered: Counter[int] = Counter()
    try:
        for result in results:
            delivered[result] += 1
    except TaskException as error:
        return delivered, error
    return delivered, None


def checked_endings(
    kind: str, count: int, declared: list[Declared], fault: Fault, *, how_inline: str
) -> tuple[TaskException | None, TaskException | None]:
    """The errors in plain Python, with `how_inline` for the fault, and of the run; None where it does not strike.

    Asserts what holds for any fault: no more is delivered than without it, and all if it does not strike.
    """
    no_fault = Fault(fault.place, -1, "", "thread", None)
    whole = Counter(run_inline(with_fault(source(kind, count), declared, no_fault, how="")))
    _, meant = read(run_inline(with_fault(source(kind, count), declared, fault, how=how_inline)))
    delivered, error = read(with_fault(source(kind, count), declared, fault, how=fault.how).results())
    assert delivered <= whole
    if meant is None:
        assert (error, delivered) == (None, whole)
    return meant, error


@checked
@given(SOURCES, COUNTS, PIPELINES, RAISED)
def test_a_stage_that_raises_is_the_same_error_as_in_plain_python(
    kind: str, count: int, declared: list[Declared], fault: Fault
) -> None:
    meant, error = checked_endings(kind, count, declared, fault, how_inline=fault.how)
    if meant is None:
        return
    assert error is not None
    assert (error.stage, str(error.failure.message)) == ("faulty", str(meant.failure.message))
    assert type(error.__cause__) is RAISES[fault.how]
    assert str(error.__cause__) == "on purpose"


@checked
@given(SOURCES, COUNTS, PIPELINES, DIED)
def test_a_worker_that_dies_is_an_error_and_doubles_nothing(
    kind: str, count: int, declared: list[Declared], fault: Fault
) -> None:
    meant, error = checked_endings(kind, count, declared, fault, how_inline="raise")
    if meant is not None:
        assert isinstance(error, WorkerDied)
        assert error.stage == "faulty"


# -- what users may type


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(allow_nan=True),
    st.text(max_size=3),
    st.binary(max_size=3),
    st.just(object()),
    st.just([1]),
    st.just({}),
    st.just(int),
    st.just(print),
    st.just(lambda: 1),
    st.just(same),
    st.just(stage()(same)),
    st.just([1, 2] | stage()(same)),
    st.just(range(3)),
    st.just(iter(())),
    st.just(ValueError()),
)
OPTIONS = st.dictionaries(
    st.sampled_from(["workers", "qsize", "backend", "worker", "filter_errors", "fuse"]), ANYTHING, max_size=2
)


@settings(checked, max_examples=5 * EXAMPLES)
@given(
    options=OPTIONS,
    function=ANYTHING,
    left=ANYTHING,
    right=ANYTHING,
    arguments=st.lists(ANYTHING, max_size=2),
    limit=ANYTHING,
)
@example(options={}, function=same, left=[1], right=stage()(same), arguments=[], limit=None)
def test_whatever_is_typed_works_or_is_an_error_that_pipekit_means(
    options: dict[str, Any], function: Any, left: Any, right: Any, arguments: list[Any], limit: Any
) -> None:
    try:
        one: Any = stage(**{"backend": "thread", **options})(function)
        pipe: Any = left | one(*arguments) | right
        with pipe.results(stall_timeout=limit) as results:
            list(results)
    except PipekitError:
        return
