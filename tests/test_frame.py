"""Frames, their payloads, and the rule that sizes them."""

from __future__ import annotations

import pytest

from pipekit._frame import Frame, Pace, Pickled, to_part

ITEMS = [1, "text", None, [1, 2], {"a": 1}, ("t",), b"bytes", 1.5]


def opened(frame: Frame) -> list[object]:
    parts, decode = frame.open()
    return list(parts if decode is None else map(decode, parts))


def pickled(items: list[object]) -> Frame:
    return Frame(0, len(items), Pickled.pack([to_part(item) for item in items]))


@pytest.mark.parametrize("items", [ITEMS, [1, 2, 3], [(1,), (2,)], [[]]])
def test_pickled_items_come_out_as_they_went_in(items: list[object]) -> None:
    assert opened(pickled(items)) == items


@pytest.mark.parametrize("make", [pickled, lambda items: Frame(0, len(items), items)])
@pytest.mark.parametrize("consumed", range(len(ITEMS)))
def test_the_rest_of_a_frame_is_what_was_not_consumed(make: object, consumed: int) -> None:
    assert callable(make)
    rest = make(ITEMS).rest(consumed)
    assert opened(rest) == ITEMS[consumed:]
    assert rest.count == len(ITEMS) - consumed


def test_a_consumed_frame_has_no_rest() -> None:
    assert pickled(ITEMS).rest(len(ITEMS)) is None


def test_a_part_is_a_snapshot() -> None:
    item = [1]
    part = to_part(item)
    item.append(2)
    assert opened(Frame(0, 1, Pickled.pack([part]))) == [[1]]


def test_a_subclass_of_an_unchanging_type_is_pickled_by_itself() -> None:
    assert isinstance(to_part(type("Text", (str,), {})("x")), tuple)


def test_pace_starts_at_one_and_doubles_after_full_frames_that_were_fast() -> None:
    pace = Pace(limit=100, seconds=1.0)
    assert pace.size == 1
    pace.measured(1, 0.01)
    assert pace.size == 2
    pace.measured(1, 0.01)  # not full: says nothing about larger ones
    assert pace.size == 2


def test_pace_halves_when_a_frame_took_more_than_twice_the_target() -> None:
    pace = Pace(limit=100, seconds=1.0)
    pace.size = 64
    pace.measured(64, 2.5)
    assert pace.size == 32


def test_pace_falls_to_one_when_an_item_takes_longer_than_the_target() -> None:
    pace = Pace(limit=100, seconds=1.0)
    pace.size = 64
    pace.measured(64, 64.0)
    assert pace.size == 1


def test_pace_keeps_to_its_limit() -> None:
    pace = Pace(limit=3, seconds=1.0)
    for _ in range(5):
        pace.measured(pace.size, 0.0)
    assert pace.size == 3
