"""What a pickle holds is shown without running code of its objects."""

from __future__ import annotations

import collections
import datetime
import enum
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from pipekit._frame import Pickled, to_part
from pipekit._pickling import encode, encode_by_value
from pipekit._shown import shown


class Colour(enum.Enum):
    RED = 1


@dataclass
class Point:
    x: int
    twin: object = None


class Slots:
    __slots__ = ("a",)

    def __init__(self) -> None:
        self.a = 1


class Words(list[str]):
    pass


Pair = collections.namedtuple("Pair", "left right")  # as users write it


class Loud:
    """Each of its methods would be heard."""

    def __reduce__(self) -> Any:
        return print, ("heard",), {"a": 1}, iter([1]), iter([(1, 2)])

    def __repr__(self) -> str:
        return "Loud()"


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (None, "None"),
        ([1, {"a": (2.5, b"x")}], "[1, {'a': (2.5, b'x')}]"),
        ({1}, "{1}"),
        (datetime.date(2020, 1, 2), "datetime.date(2020, 1, 2)"),
        (collections.defaultdict(list, {1: [2]}), "defaultdict(<class 'list'>, {1: [2]})"),
        (Colour.RED, "Colour(1)"),
        (Point(1, Point(2)), "Point(x=1, twin=Point(x=2, twin=None))"),
        (Slots(), "Slots(a=1)"),
        (Words(["a"]), "Words()"),
        (Pair(1, 2), "Pair(1, 2)"),
        (ValueError("bad"), "ValueError('bad')"),
        (Point, f"<class '{Point.__module__}.Point'>"),
        (Loud(), "print('heard', a=1)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_are_shown_and_objects_by_what_they_are_made_from(
    item: object, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert shown(encode(item)) == text
    assert capfd.readouterr() == ("", "")


def test_an_array_is_shown_by_something() -> None:
    assert "i8" in shown(encode(np.arange(3)))


def test_an_object_whose_class_travels_with_it_has_its_name() -> None:
    class Local:
        def __init__(self) -> None:
            self.x = 1

    assert shown(encode_by_value(Local())) == "Local(x=1)"


def test_an_object_that_refers_to_itself_is_shown() -> None:
    point = Point(1)
    point.twin = point
    assert shown(encode(point)) == "Point(x=1, twin=...)"


def test_what_is_no_pickle_or_too_large_is_told_by_its_size() -> None:
    assert shown(b"no pickle") == "<9 bytes, pickled>"
    assert shown(encode("x" * 2_000_000)).endswith(" bytes, pickled>")
    assert shown(encode([[]] * 100)).endswith("...")


def test_only_the_first_items_of_a_frame_are_shown() -> None:
    body = Pickled.pack([to_part(item) for item in (1, [2], "three", 4)])
    assert body.shown(3) == ["1", "[2]", "'three'"]
    assert Pickled.pack([b"x" * 5_000_000]).shown(3)[0].endswith(" bytes, pickled>")


def test_a_function_that_would_end_the_process_is_not_called() -> None:
    class Deadly:
        def __reduce__(self) -> Any:
            return os._exit, (3,)

    assert shown(encode(Deadly())) == "_exit(3)"
