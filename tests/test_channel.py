"""The shell around an edge: what several threads may do to it at once."""

from __future__ import annotations

import threading

import pytest

from pipekit._channel import Channel, Sleeper
from pipekit._edge import Edge, Limits, Signal
from pipekit._frame import Frame


class Telling:
    def __init__(self) -> None:
        self.answers: list[Frame | Signal] = []

    def wake(self, answer: Frame | Signal) -> None:
        self.answers.append(answer)


def test_who_is_interrupted_while_it_tells_leaves_the_others_to_the_next_call() -> None:
    channel = Channel(Edge(Limits(room=10, frame_limit=10), writers=1, readers=2))

    class Interrupted:
        def wake(self, answer: Frame | Signal) -> None:
            raise KeyboardInterrupt

    told = Telling()
    for waiter in (Interrupted(), told):
        channel.get(waiter)
    with pytest.raises(KeyboardInterrupt):
        channel.cancel()
    assert told.answers == []
    channel.cancel()
    assert told.answers == [Signal.CANCELLED]


def test_calls_of_many_threads_tell_each_waiter_once() -> None:
    """Found by running the suite on a loaded machine: a sleeper was woken twice."""
    channel = Channel(Edge(Limits(room=None, frame_limit=10), writers=1, readers=1))
    told = [Telling() for _ in range(2000)]
    for waiter in told:
        channel.get(waiter)

    def put() -> None:
        for number in range(500):
            channel.put(Telling(), Frame(number, 1, ["a"]))

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {len(waiter.answers) for waiter in told} == {1}


def test_wakeups_are_delivered_outside_the_lock() -> None:
    channel = Channel(Edge(Limits(room=10, frame_limit=10), writers=1, readers=1))

    class Reentrant:
        answer: Frame | Signal | None = None

        def wake(self, answer: Frame | Signal) -> None:
            self.answer = answer
            channel.taken(1)

    reader = Reentrant()
    channel.get(reader)
    first = Frame(0, 1, ["a"])
    channel.put(Telling(), first)
    assert reader.answer is first


def test_a_sleeper_that_is_told_before_it_sleeps_does_not_sleep() -> None:
    sleeper = Sleeper()
    sleeper.wake(Signal.END)
    assert sleeper.sleep() is Signal.END


def test_every_item_passes_once_whatever_the_threads_do() -> None:
    channel = Channel(Edge(Limits(room=3, frame_limit=1), writers=4, readers=4))
    got: list[int] = []
    count, lock = 2000, threading.Lock()

    def write(start: int) -> None:
        sleeper = Sleeper()
        for number in range(start, count, 4):
            if channel.put(sleeper, Frame(0, 1, [number])) is None:
                assert sleeper.sleep() is Signal.OK
        channel.writer_done()

    def read() -> None:
        sleeper = Sleeper()
        while True:
            answer = channel.get(sleeper) or sleeper.sleep()
            if answer is Signal.END:
                return
            assert isinstance(answer, Frame)
            channel.taken(1)
            with lock:
                got.extend(answer.open()[0])

    threads = [threading.Thread(target=write, args=(start,)) for start in range(4)]
    threads += [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(count))
