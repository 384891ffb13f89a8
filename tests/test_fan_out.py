"""One outbox in front of several channels: what the writer is told, and that every reader gets every frame once."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pipekit._channel import Channel, Sleeper, offer_to_all
from pipekit._edge import Edge, Limits, Signal
from pipekit._fan_out import FanOut
from pipekit._frame import Frame


class Telling:
    def __init__(self) -> None:
        self.answers: list[Frame | Signal] = []

    def wake(self, answer: Frame | Signal) -> None:
        self.answers.append(answer)


def channel(room: int | None = 2, writers: int = 1, readers: int = 1, frame_limit: int = 8) -> Channel:
    return Channel(Edge(Limits(room, frame_limit), writers, readers))


def frame(*items: object) -> Frame:
    return Frame(0, len(items), list(items))


def full() -> Channel:
    """A channel that has no room, until `let_in`."""
    made = channel(room=1)
    assert made.put(Telling(), frame("first")) is Signal.OK
    return made


def let_in(one: Channel) -> None:
    """Read a frame for good: what waits is let in."""
    assert isinstance(one.get(Telling()), Frame)
    one.taken(1)


def queued(one: Channel) -> list[object]:
    """What a reader would get now."""
    items: list[object] = []
    while isinstance(got := one.get(Telling()), Frame):
        items += got.open()[0]
        one.taken(got.count)
    return items


# -- offer_to_all


def test_a_frame_is_offered_to_all_when_all_have_room() -> None:
    channels = [channel() for _ in range(3)]
    assert offer_to_all(channels, frame("a"))
    assert [queued(one) for one in channels] == [["a"]] * 3


@pytest.mark.parametrize("place", range(3))
def test_none_takes_an_offered_frame_when_one_has_no_room(place: int) -> None:
    channels = [channel() for _ in range(3)]
    channels[place] = full()
    assert not offer_to_all(channels, frame("a"))
    assert [queued(one) for one in channels] == [["first"] if one is channels[place] else [] for one in channels]


def test_an_offered_frame_does_not_overtake_one_that_waits() -> None:
    waited, free = channel(room=3), channel()
    waited.put(Telling(), frame(1, 2, 3))
    waiting = Telling()
    assert waited.put(waiting, frame(4, 5)) is None
    waited.get(Telling())
    waited.taken(1)  # room for one more item, though not for the frame that waits
    assert waiting.answers == []
    assert not offer_to_all([waited, free], frame("a"))
    assert queued(free) == []


def test_a_channel_without_readers_is_left_out_of_an_offer() -> None:
    channels = [channel(), full(), channel()]
    channels[1].reader_done()
    assert offer_to_all(channels, frame("a"))
    assert [queued(channels[0]), queued(channels[2])] == [["a"]] * 2


def test_an_offer_that_nobody_reads_is_not_taken() -> None:
    channels = [channel(), channel()]
    for one in channels:
        one.reader_done()
    assert not offer_to_all(channels, frame("a"))


@pytest.mark.parametrize("place", range(2))
@pytest.mark.parametrize("end", [Channel.cancel, Channel.drain])
def test_an_offer_is_not_taken_when_one_channel_is_ending(place: int, end: Callable[[Channel], None]) -> None:
    channels = [channel(), channel()]
    end(channels[place])
    assert not offer_to_all(channels, frame("a"))
    assert queued(channels[1 - place]) == []


def test_waiting_readers_are_told_of_an_offered_frame_outside_the_locks() -> None:
    channels = [channel(), channel()]

    class Reentrant:
        answers = 0

        def wake(self, answer: Frame | Signal) -> None:
            self.answers += 1
            for one in channels:
                one.measured(1, 0.0, 0.0)  # takes each lock

    readers = [Reentrant(), Reentrant()]
    for one, reader in zip(channels, readers, strict=True):
        one.get(reader)
    assert offer_to_all(channels, frame("a"))
    assert [reader.answers for reader in readers] == [1, 1]


# -- FanOut: what the writer is told


def test_a_frame_that_all_let_in_at_once_is_ok() -> None:
    channels = [channel(), channel()]
    outbox, writer = FanOut(channels), Telling()
    assert outbox.put(writer, frame("a", "b")) is Signal.OK
    assert writer.answers == []
    assert [queued(one) for one in channels] == [["a", "b"]] * 2
    assert outbox.entered == 2


@pytest.mark.parametrize("place", range(3))
def test_the_writer_waits_for_the_one_without_room_and_the_others_have_the_frame(place: int) -> None:
    channels = [channel() for _ in range(3)]
    channels[place] = full()
    outbox, writer = FanOut(channels), Telling()
    assert outbox.put(writer, frame("a")) is None
    assert [queued(one) for one in channels if one is not channels[place]] == [["a"]] * 2
    assert (writer.answers, outbox.entered) == ([], 0)
    let_in(channels[place])
    assert (writer.answers, outbox.entered) == ([Signal.OK], 1)
    assert queued(channels[place]) == ["a"]


def test_an_outbox_counts_its_own_items_not_those_of_other_writers() -> None:
    shared = channel(room=None, writers=2)
    one, other = FanOut([shared]), FanOut([shared])
    one.put(Telling(), frame(1, 2))
    assert other.offer(frame(3))
    assert (one.entered, other.entered, shared.entered) == (2, 1, 3)


def test_an_offer_that_is_not_taken_is_not_counted() -> None:
    outbox = FanOut([channel(), full()])
    assert not outbox.offer(frame("a"))
    assert outbox.entered == 0


def test_a_frame_has_the_size_that_the_slowest_reader_wants() -> None:
    quick, slow = channel(room=None), channel(room=None)
    for _ in range(3):
        quick.measured(8, 0.0001, 0.0)
    outbox = FanOut([quick, slow])
    assert (quick.frame_size, outbox.frame_size) == (8, 1)


def test_a_channel_without_readers_has_no_say_in_the_size_of_frames() -> None:
    quick, slow = channel(room=None), channel(room=None)
    for _ in range(3):
        quick.measured(8, 0.0001, 0.0)
    outbox = FanOut([quick, slow])
    slow.reader_done()
    assert outbox.frame_size == 8
    quick.reader_done()
    assert outbox.frame_size == 1


#: How a channel that keeps a frame waiting answers at last: what is done to it.
ANSWERS: dict[Signal, Callable[[Channel], None]] = {
    Signal.OK: let_in,
    Signal.CLOSED: Channel.reader_done,
    Signal.CANCELLED: Channel.cancel,
}


TRIPLES = list(itertools.product(ANSWERS, repeat=3))


def spelled(answers: Sequence[Signal]) -> str:
    return "-".join(answer.name for answer in answers)


def together(answers: Sequence[Signal]) -> Signal:
    """What the writer must be told: stop at once if one says so, go on if one takes the frame."""
    return next(answer for answer in (Signal.CANCELLED, Signal.OK, Signal.CLOSED) if answer in answers)


@pytest.mark.parametrize("answers", TRIPLES, ids=spelled)
def test_the_writer_is_told_once_whatever_the_channels_answer_in_whatever_order(answers: Sequence[Signal]) -> None:
    for order in itertools.permutations(range(3)):
        channels = [full() for _ in answers]
        outbox, writer = FanOut(channels), Telling()
        assert outbox.put(writer, frame("a")) is None
        for place in order:
            assert writer.answers == []
            ANSWERS[answers[place]](channels[place])
        assert writer.answers == [together(answers)]
        assert outbox.entered == (together(answers) is Signal.OK)


@pytest.mark.parametrize("answers", TRIPLES, ids=spelled)
def test_answers_that_come_at_once_and_answers_that_come_later_come_to_the_same(answers: Sequence[Signal]) -> None:
    for later in itertools.product((False, True), repeat=3):
        channels = [full() for _ in answers]
        for one, answer, waits in zip(channels, answers, later, strict=True):
            if not waits:
                ANSWERS[answer](one)
        outbox, writer = FanOut(channels), Telling()
        told = outbox.put(writer, frame("a"))
        assert (told is None) == any(later)
        for one, answer, waits in zip(channels, answers, later, strict=True):
            if waits:
                ANSWERS[answer](one)
        assert [*([] if told is None else [told]), *writer.answers] == [together(answers)]


@pytest.mark.parametrize("answers", TRIPLES, ids=spelled)
def test_the_writer_is_told_once_when_the_channels_answer_at_the_same_time(answers: Sequence[Signal]) -> None:
    rounds = 20
    start = threading.Barrier(3)
    channels = [[full() for _ in answers] for _ in range(rounds)]
    writers = [Telling() for _ in range(rounds)]
    for round_channels, writer in zip(channels, writers, strict=True):
        assert FanOut(round_channels).put(writer, frame("a")) is None

    def answer(place: int) -> None:
        for round_channels in channels:
            start.wait(30)
            ANSWERS[answers[place]](round_channels[place])

    in_threads([lambda place=place: answer(place) for place in range(3)])  # type: ignore[misc]
    assert [writer.answers for writer in writers] == [[together(answers)]] * rounds


def test_an_answer_that_comes_while_the_frame_is_still_being_put_is_not_lost() -> None:
    """The first channel lets it in, in another thread, before the second has been asked."""
    first = full()

    class Asked(Channel):
        def put(self, waiter: Any, frame: Frame) -> Signal | None:
            in_threads([lambda: let_in(first)])
            return super().put(waiter, frame)

    outbox, writer = FanOut([first, Asked(Edge(Limits(2, 8), 1, 1))]), Telling()
    assert outbox.put(writer, frame("a")) is Signal.OK
    assert writer.answers == []


def in_threads(functions: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# -- storms


class Reading:
    """A thread's worth of reading a channel, to its end or to so many items."""

    def __init__(self, source: Channel, most: int | None = None) -> None:
        self.items: list[int] = []
        self._source = source
        self._most = most

    def __call__(self) -> None:
        sleeper = Sleeper()
        while self._most is None or len(self.items) < self._most:
            answer = self._source.get(sleeper) or sleeper.sleep()
            if answer is Signal.END:
                break
            assert isinstance(answer, Frame)
            self._source.taken(answer.count)
            self.items += answer.open()[0]
        self._source.reader_done()


def write(outbox: FanOut, numbers: Sequence[int], channels: Sequence[Channel]) -> None:
    """Put frames of one and two, offering each first, as a worker and its flusher do."""
    sleeper = Sleeper()
    position = 0
    while position < len(numbers):
        items = numbers[position : position + 1 + position % 2]
        position += len(items)
        sent = frame(*items)
        if outbox.offer(sent):
            continue
        answer = outbox.put(sleeper, sent) or sleeper.sleep()
        if answer is Signal.CLOSED:
            break
        assert answer is Signal.OK
    for one in channels:
        one.writer_done()


@pytest.mark.parametrize("room", [1, 3, None], ids=str)
def test_every_reader_gets_every_item_once_whatever_the_threads_do(room: int | None) -> None:
    writers, count = 3, 1500
    channels = [channel(room, writers) for _ in range(3)]
    outbox = FanOut(channels)
    readings = [Reading(one) for one in channels]
    shares = [range(start, count, writers) for start in range(writers)]
    in_threads([*readings, *(lambda share=share: write(outbox, share, channels) for share in shares)])
    assert [sorted(reading.items) for reading in readings] == [list(range(count))] * 3
    for reading, start in itertools.product(readings, range(writers)):
        assert [number for number in reading.items if number % writers == start] == list(shares[start])
    assert outbox.entered == count


@pytest.mark.parametrize("room", [1, 3, None], ids=str)
def test_readers_that_leave_in_a_storm_take_nothing_from_the_others(room: int | None) -> None:
    writers, count = 3, 1500
    channels = [channel(room, writers) for _ in range(4)]
    outbox = FanOut(channels)
    readings = [Reading(one, most) for one, most in zip(channels, [None, 0, 100, 700], strict=True)]
    shares = [range(start, count, writers) for start in range(writers)]
    in_threads([*readings, *(lambda share=share: write(outbox, share, channels) for share in shares)])
    assert sorted(readings[0].items) == list(range(count))
    assert [len(reading.items) >= most for reading, most in zip(readings[1:], (0, 100, 700), strict=True)] == [True] * 3


def test_writers_stop_in_a_storm_when_all_readers_have_left() -> None:
    channels = [channel(1, 3) for _ in range(2)]
    outbox = FanOut(channels)
    readings = [Reading(one, most) for one, most in zip(channels, [50, 200], strict=True)]
    endless = range(10**9)
    in_threads([*readings, *(lambda: write(outbox, endless, channels) for _ in range(3))])
    assert len(readings[1].items) >= 200


def test_outboxes_with_channels_in_common_do_not_lock_each_other_out() -> None:
    """Stages whose results meet: each has an outbox of its own, with some of the same channels."""
    count = 1500
    groups = [(0, 1, 2), (0, 2), (1, 2), (0, 1)]
    channels = [channel(2, sum(number in group for group in groups)) for number in range(3)]
    outboxes = [[channels[number] for number in group] for group in groups]
    readings = [Reading(one) for one in channels]
    in_threads([*readings, *(lambda group=group: write(FanOut(group), range(count), group) for group in outboxes)])
    expected = [sorted(3 * list(range(count)))] * 3
    assert [sorted(reading.items) for reading in readings] == expected
