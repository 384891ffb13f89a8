"""Pipelines are values, and what is declared wrongly is said at once."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from typing import Any, cast

import numpy as np
import pytest

from pipekit import (
    OptionError,
    PipekitError,
    Pipeline,
    PipelineError,
    ProcessBackend,
    SignatureError,
    Stage,
    map_stage,
    stage,
)


@stage
def add_n(numbers: Iterable[int], n: int) -> Iterator[int]:
    for number in numbers:
        yield number + n


@map_stage(backend="thread")
def double(number: int) -> int:
    return 2 * number


def numbers_to(n: int) -> Iterator[int]:
    yield from range(n)


def test_joining_leaves_its_operands_alone() -> None:
    first = range(3) | double
    assert isinstance(first, Pipeline)
    longer, other = first | double, first | double | double
    assert list(first.results()) == [0, 2, 4]
    assert list(longer.results()) == [0, 4, 8]
    assert list(other.results()) == [0, 8, 16]


def test_calling_a_stage_leaves_it_alone() -> None:
    five, six = add_n(5).setup(backend="thread"), add_n(6).setup(backend="thread")
    assert (range(1) | five).execute() == 5
    assert (range(1) | six).execute() == 6
    assert add_n.options.backend == "process"


def test_a_called_stage_keeps_the_options() -> None:
    assert stage(workers=3, qsize=7)(numbers_to)(5).options.workers == 3


def test_setup_changes_only_what_it_is_given_in_place() -> None:
    one = add_n(1)
    assert one.setup(workers=2, qsize=3) is one
    one.setup(backend="thread")
    assert (one.options.workers, one.options.qsize, one.options.backend) == (2, 3, "thread")


def test_a_pipeline_keeps_the_options_of_when_it_was_joined() -> None:
    one = double()
    pipe = range(3) | one
    one.setup(workers=7)
    assert "1 x thread" in pipe.plan().explain()


def test_a_stage_may_stand_twice_in_a_pipeline() -> None:
    assert list((range(3) | double | double).results()) == [0, 4, 8]


def test_open_pipelines_are_joined_and_fed() -> None:
    twice = double | double
    assert list((range(3) | (twice | double)).results()) == [0, 8, 16]


@pytest.mark.parametrize(
    "source",
    [[1, 2], (1, 2), {1, 2}, {1: "a", 2: "b"}, range(1, 3), np.array([1, 2]), (i for i in (1, 2))],
    ids=lambda source: type(source).__name__,
)
def test_any_iterable_is_a_source(source: Any) -> None:
    assert sorted((source | double).results()) == [2, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers=0"),
        ({"workers": -1}, "workers=-1"),
        ({"workers": 1.5}, "workers=1.5"),
        ({"workers": True}, "workers=True"),
        ({"workers": "2"}, "workers='2'"),
        ({"qsize": -1}, "qsize=-1"),
        ({"qsize": "many"}, "qsize='many'"),
        (
            {"backend": "quantum"},
            "no backend 'quantum': use one of 'auto', 'free-threaded', 'process', 'ray', 'thread'",
        ),
        ({"backend": 7}, "backend must be a name or a Backend object"),
    ],
)
def test_an_option_that_cannot_work_is_an_error_where_it_is_given(options: dict[str, Any], message: str) -> None:
    for give in (lambda: add_n(1).setup(**options), lambda: stage(**options), lambda: map_stage(**options)):
        with pytest.raises(OptionError, match=message) as caught:
            give()
        assert isinstance(caught.value, ValueError)


def test_a_refused_option_changes_nothing() -> None:
    one = add_n(1)
    with pytest.raises(OptionError):
        one.setup(workers=5, qsize=-1)
    assert one.options.workers == 1


def test_an_unknown_option_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(TypeError, match="no option 'worker': the options are workers, qsize, backend"):
        add_n.setup(worker=2)  # type: ignore[call-arg]


def test_an_unknown_start_method_is_an_error() -> None:
    with pytest.raises(OptionError, match="start_method='teleport'"):
        ProcessBackend(start_method=cast(Any, "teleport"))


def test_what_is_not_callable_is_no_stage() -> None:
    for make in (Stage, stage(), map_stage()):
        with pytest.raises(SignatureError, match="42 is not callable"):
            cast(Any, make)(42)


def test_a_number_of_workers_in_the_functions_place_gets_a_hint() -> None:
    with pytest.raises(SignatureError, match="write workers=4"):
        cast(Any, stage)(4)


@pytest.mark.parametrize("view", [{1: 2}.keys(), {1: 2}.items()], ids=["keys", "items"])
def test_a_dict_view_as_source_is_an_error_that_says_what_to_do(view: Any) -> None:
    """Views iterate over what stands right of `|` before a stage can say anything."""
    with pytest.raises(SignatureError, match=r"list\(view\)"):
        view | double


def test_iterating_over_a_pipeline_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(SignatureError, match=r"iterate over its results\(\)"):
        list(cast(Any, range(3) | double))


def test_a_missing_argument_is_an_error_at_the_joint() -> None:
    with pytest.raises(TypeError, match="stage 'add_n': missing a required argument: 'n'"):
        range(3) | add_n  # type: ignore[operator]


def test_a_missing_argument_is_an_error_at_the_call() -> None:
    with pytest.raises(SignatureError, match="missing a required argument: 'n'"):
        add_n()  # type: ignore[call-arg]


def test_an_argument_too_many_is_an_error_at_the_call() -> None:
    with pytest.raises(SignatureError, match="too many positional arguments"):
        double(1, 2)  # type: ignore[call-arg]


def test_a_first_stage_that_needs_an_input_is_an_error_that_says_how_to_give_it() -> None:
    for pipe in (double, add_n(1), add_n(1) | double):
        with pytest.raises(SignatureError, match=r"needs an input .* `iterable \| "):
            cast(Any, pipe).results()


def test_a_producer_cannot_follow_a_stage() -> None:
    with pytest.raises(SignatureError, match="numbers_to"):
        double | Stage(numbers_to, 3)  # type: ignore[operator]


def test_a_pipeline_with_a_source_cannot_be_fed() -> None:
    with pytest.raises(SignatureError, match="has a source already"):
        [1] | (range(3) | double)  # type: ignore[operator]


def test_a_function_right_of_the_joint_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(SignatureError, match="make a function one with `stage` or `map_stage`"):
        (range(3) | double) | print  # type: ignore[operator]


def test_what_is_not_iterable_left_of_the_joint_is_an_error() -> None:
    with pytest.raises(SignatureError, match="5 cannot stand left"):
        5 | double  # type: ignore[operator]


def test_an_iterator_as_source_is_not_read_by_a_second_run() -> None:
    pipe = iter([1, 2]) | double
    assert list(pipe.results()) == [2, 4]
    with pytest.raises(PipelineError, match="its items are gone"):
        pipe.results()


def test_a_decorated_function_pickles_by_its_name() -> None:
    copy = pickle.loads(pickle.dumps(double.setup(workers=1)))
    assert copy.__wrapped__ is cast(Any, double).__wrapped__
    assert list((range(3) | copy).results()) == [0, 2, 4]


def test_every_error_is_a_pipekit_error() -> None:
    with pytest.raises(PipekitError):
        add_n(1).setup(workers=0)
