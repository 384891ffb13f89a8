"""The state machine of an edge, without a thread."""

from __future__ import annotations

import pytest

from pipekit._edge import FRAME_BYTES, MIN_ROOM, Edge, Limits, Signal
from pipekit._frame import Frame, Pickled


class Waiter:
    def wake(self, answer: Frame | Signal) -> None:
        raise AssertionError("the machine leaves wake-ups to its shell")


def frame(*items: object, sequence: int = 0) -> Frame:
    return Frame(sequence, len(items), list(items))


def edge(room: int | None = 2, frame_limit: int = 8, writers: int = 1, readers: int = 1, elastic: bool = False) -> Edge:
    return Edge(Limits(room, frame_limit, elastic), writers, readers)


def wakeups(machine: Edge) -> list[tuple[object, Frame | Signal]]:
    told: list[tuple[object, Frame | Signal]] = list(machine.wakeups)
    machine.wakeups.clear()
    return told


def test_a_frame_comes_out_as_it_went_in() -> None:
    machine, first = edge(), frame("a", "b")
    assert machine.put(Waiter(), first) is Signal.OK
    assert machine.get(Waiter()) is first


def test_a_writer_waits_when_the_items_would_exceed_the_room() -> None:
    machine, writer = edge(room=2), Waiter()
    assert machine.put(writer, frame("a", "b")) is Signal.OK
    assert machine.put(writer, frame("c")) is None


def test_a_waiting_writer_is_let_in_when_items_are_taken_not_when_they_are_lent() -> None:
    machine, writer = edge(room=1), Waiter()
    machine.put(Waiter(), frame("a"))
    machine.put(writer, frame("b"))
    machine.get(Waiter())
    assert wakeups(machine) == []
    machine.taken(1)
    assert wakeups(machine) == [(writer, Signal.OK)]


def test_waiting_writers_are_let_in_in_their_order() -> None:
    machine, early, late = edge(room=1), Waiter(), Waiter()
    machine.put(Waiter(), frame("a"))
    machine.put(early, frame("b"))
    machine.put(late, frame("c"))
    machine.get(Waiter())
    machine.taken(1)
    assert wakeups(machine) == [(early, Signal.OK)]


def test_an_offer_is_refused_where_a_put_would_wait() -> None:
    machine = edge(room=1)
    assert machine.offer(frame("a"))
    assert not machine.offer(frame("b"))


def test_a_frame_larger_than_the_room_passes_through_an_empty_edge() -> None:
    assert edge(room=1).put(Waiter(), frame(1, 2, 3)) is Signal.OK


def test_without_a_limit_nobody_waits() -> None:
    machine = edge(room=None)
    assert all(machine.put(Waiter(), frame(number)) is Signal.OK for number in range(1000))


def test_a_waiting_reader_is_handed_the_frame_and_a_later_one_cannot_take_it() -> None:
    machine, early, first = edge(), Waiter(), frame("a")
    assert machine.get(early) is None
    machine.put(Waiter(), first)
    assert wakeups(machine) == [(early, first)]
    assert machine.get(Waiter()) is None


def test_end_comes_after_the_last_frame() -> None:
    machine, first = edge(), frame("a")
    machine.put(Waiter(), first)
    machine.writer_done()
    assert machine.get(Waiter()) is first
    machine.taken(1)
    assert machine.get(Waiter()) is Signal.END


def test_end_needs_every_writer() -> None:
    machine, reader = edge(writers=2), Waiter()
    machine.get(reader)
    machine.writer_done()
    assert wakeups(machine) == []
    machine.writer_done()
    assert wakeups(machine) == [(reader, Signal.END)]


def test_end_waits_for_a_frame_that_waits_for_room() -> None:
    machine, last = edge(room=1), frame("b")
    machine.put(Waiter(), frame("a"))
    machine.put(Waiter(), last)
    machine.writer_done()
    machine.get(Waiter())
    machine.taken(1)
    assert machine.get(Waiter()) is last


def test_end_waits_while_another_reader_may_give_items_back() -> None:
    machine, other = edge(room=8, readers=2), Waiter()
    machine.put(Waiter(), frame("a", "b"))
    machine.writer_done()
    machine.get(Waiter())
    assert machine.get(other) is None
    machine.taken(2)
    assert wakeups(machine) == [(other, Signal.END)]


def test_items_given_back_go_to_another_reader_before_all_others() -> None:
    machine, later = edge(room=8, readers=2), frame("c")
    machine.put(Waiter(), frame("a", "b"))
    machine.put(Waiter(), later)
    machine.get(Waiter())
    machine.give_back(2, [rest := frame("b")])
    machine.reader_done()
    assert machine.get(Waiter()) is rest
    assert machine.get(Waiter()) is later


def test_items_given_back_are_handed_to_a_reader_that_waits_for_the_end() -> None:
    machine, other = edge(room=8, readers=2), Waiter()
    machine.put(Waiter(), frame("a", "b"))
    machine.writer_done()
    machine.get(Waiter())
    machine.get(other)
    machine.give_back(2, [rest := frame("b")])
    assert wakeups(machine) == [(other, rest)]


def test_when_the_last_reader_has_left_writers_are_told_to_stop() -> None:
    machine, writer = edge(room=1, readers=2), Waiter()
    machine.put(Waiter(), frame("a"))
    machine.put(writer, frame("b"))
    machine.reader_done()
    assert wakeups(machine) == []
    machine.reader_done()
    assert wakeups(machine) == [(writer, Signal.CLOSED)]
    assert machine.put(Waiter(), frame("c")) is Signal.CLOSED
    assert not machine.offer(frame("d"))


def test_cancel_tells_everybody_now_and_later() -> None:
    machine, reader = edge(), Waiter()
    machine.get(reader)
    machine.cancel()
    assert wakeups(machine) == [(reader, Signal.CANCELLED)]
    assert machine.get(Waiter()) is Signal.CANCELLED
    assert machine.put(Waiter(), frame("a")) is Signal.CANCELLED


def test_cancel_releases_waiting_writers_and_drops_what_is_queued() -> None:
    machine, writer = edge(room=1), Waiter()
    machine.put(Waiter(), frame("a"))
    machine.put(writer, frame("b"))
    machine.cancel()
    assert wakeups(machine) == [(writer, Signal.CANCELLED)]
    assert machine.get(Waiter()) is Signal.CANCELLED


def test_drain_delivers_what_is_here_waiting_frames_included_and_then_ends() -> None:
    machine, writer, first, second = edge(room=1), Waiter(), frame("a"), frame("b")
    machine.put(Waiter(), first)
    machine.put(writer, second)
    machine.drain()
    assert wakeups(machine) == [(writer, Signal.CANCELLED)]
    assert machine.put(Waiter(), frame("c")) is Signal.CANCELLED
    assert machine.get(Waiter()) is first
    machine.taken(1)
    assert machine.get(Waiter()) is second
    machine.taken(1)
    assert machine.get(Waiter()) is Signal.END


def test_an_elastic_edge_has_little_room_until_its_reader_has_shown_to_be_fast() -> None:
    machine = edge(room=1000, frame_limit=100, elastic=True)
    accepted = 0
    while machine.offer(frame(accepted)):
        accepted += 1
    assert accepted == MIN_ROOM
    for size in (1, 2, 4, 8, 16):
        machine.measured(size, 0.0, 0.0)
    assert machine.offer(frame("more"))


def test_frames_grow_while_the_reader_is_fast_up_to_the_limit() -> None:
    machine = edge(frame_limit=5)
    for expected in (2, 4, 5, 5):
        machine.measured(machine.frame_size, 0.0, 0.0)
        assert machine.frame_size == expected


def test_frames_of_large_items_are_kept_to_a_number_of_bytes_and_grow_again() -> None:
    machine = edge(room=None, frame_limit=1000)
    for _ in range(10):
        machine.measured(machine.frame_size, 0.0, 0.0)
    assert machine.frame_size == 1000
    for count, size, expected in [
        (1000, FRAME_BYTES, 1000),
        (1000, 4 * FRAME_BYTES, 250),
        (250, 2 * FRAME_BYTES, 125),
        (1, 2 * FRAME_BYTES, 1),
        (1, FRAME_BYTES // 10, 10),
        (10, 10, 1000),
    ]:
        machine.offer(Frame(0, count, Pickled(bytes(size))))
        assert machine.frame_size == expected


@pytest.mark.parametrize(("items", "queued", "lent"), [(3, 3, 0)])
def test_counts_tell_what_is_queued_and_what_is_lent(items: int, queued: int, lent: int) -> None:
    machine = edge(room=None)
    machine.put(Waiter(), frame(*range(items)))
    assert (machine.entered, machine.queued, machine.lent) == (items, queued, lent)
    machine.get(Waiter())
    assert (machine.entered, machine.queued, machine.lent) == (items, 0, queued)


def test_a_reader_that_withdraws_is_told_so_and_gets_no_frame() -> None:
    machine, leaving, staying, first = edge(), Waiter(), Waiter(), frame("a")
    machine.get(leaving)
    machine.get(staying)
    machine.withdraw(leaving)
    assert wakeups(machine) == [(leaving, Signal.CANCELLED)]
    machine.put(Waiter(), first)
    assert wakeups(machine) == [(staying, first)]


def test_withdrawing_after_the_answer_changes_nothing() -> None:
    machine, reader = edge(), Waiter()
    machine.get(reader)
    machine.put(Waiter(), frame("a"))
    wakeups(machine)
    machine.withdraw(reader)
    assert wakeups(machine) == []


def test_a_frame_to_have_ahead_is_given_only_if_one_is_left_for_each_reader() -> None:
    machine = edge(room=None, readers=2)
    for number in range(4):
        machine.put(Waiter(), frame(number))
    assert [machine.surplus() is not None for _ in range(3)] == [True, True, False]
    assert (machine.queued, machine.lent) == (2, 2)


def test_a_cancelled_edge_has_nothing_to_have_ahead() -> None:
    machine = edge(room=None)
    for number in range(3):
        machine.put(Waiter(), frame(number))
    machine.cancel()
    assert machine.surplus() is None


def test_frames_stay_small_where_a_fast_reader_waits_for_those_behind_it() -> None:
    machine = edge(room=None, frame_limit=1000)
    for _ in range(5):
        machine.measured(machine.frame_size, 0.0, blocked=0.0)
    assert machine.frame_size == 32
    machine.measured(32, 0.0, blocked=10.0)
    assert machine.frame_size == 1


def test_what_is_lent_of_an_elastic_queue_does_not_keep_others_waiting() -> None:
    machine = edge(room=1000, frame_limit=100, elastic=True)
    for number in range(MIN_ROOM):
        machine.put(Waiter(), frame(number))
        machine.get(Waiter())
    assert machine.offer(frame("more"))


def test_a_waiting_writer_of_an_elastic_queue_is_let_in_when_half_of_it_is_free() -> None:
    machine, writer = edge(room=1000, frame_limit=100, elastic=True), Waiter()
    for number in range(MIN_ROOM):
        machine.put(Waiter(), frame(number))
    assert machine.put(writer, frame("more")) is None
    told = []
    for _ in range(MIN_ROOM // 2):
        machine.get(Waiter())
        machine.taken(1)
        told += wakeups(machine)
    assert told == [(writer, Signal.OK)]
    assert machine.queued == MIN_ROOM // 2 + 1
