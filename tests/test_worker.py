"""The worker loop with ends made of lists: no thread, no process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from pipekit import ItemNotPicklable
from pipekit._errors import Released
from pipekit._frame import Frame, Pickled, to_part
from pipekit._outlet import Outlet, To, ToAll, ToChosen
from pipekit._output import Flusher, Writer, _Collection
from pipekit._pickling import decode
from pipekit._task import Kind, Step, Task
from pipekit._worker import Outcome, WorkerLoop


class ListReader:
    def __init__(self, *frames: Frame, then: type[BaseException] | None = None) -> None:
        self.frames = list(frames)
        self.then = then
        self.finished_items: list[int] = []
        self.consumed: int | None = None
        self.waited = 0

    def get(self, before_waiting: Callable[[], None]) -> Frame | None:
        if self.frames:
            return self.frames.pop(0)
        self.waited += 1
        before_waiting()
        if self.then is not None:
            raise self.then
        return None

    def finished(self, items: int, seconds: float, blocked: float) -> None:
        self.finished_items.append(items)

    def leave(self, consumed: int) -> None:
        self.consumed = consumed


class ListWriter:
    """`room`: frames until the run is cancelled; `readers_leave_after`: frames until nobody reads any more."""

    blocked = 0.0
    share = False

    def __init__(self, frame_size: int = 1, room: int = 10**9, readers_leave_after: int = 10**9) -> None:
        self.frame_size = frame_size
        self.room = room
        self.readers_leave_after = readers_leave_after
        self.frames: list[list[object]] = []

    def put(self, parts: list[object], *, plain: bool) -> bool:
        if len(self.frames) >= self.readers_leave_after:
            return False
        if len(self.frames) >= self.room:
            raise Released
        self.frames.append(parts)
        return True

    def offer(self, parts: list[object], *, plain: bool) -> bool:
        return self.put(parts, plain=plain)

    @property
    def items(self) -> list[object]:
        return [part for frame in self.frames for part in frame]


def run(function: Callable[..., Any], reader: ListReader | None, *writers: Writer, **options: Any) -> Outcome:
    """Run a worker; with several writers, `outlet` says which results each gets."""
    pickled = options.pop("pickled", (False,) * len(writers))
    kind = options.pop("kind", Kind.ITERATOR)
    own = {name: options.pop(name) for name in ("args", "kwargs", "skip_errors") if name in options}
    task = Task((Step("work", kind, function, **own),), has_input=reader is not None, pickled=pickled, **options)
    flusher = Flusher()
    try:
        return WorkerLoop(task, "work-0", reader, writers, flusher).run()
    finally:
        flusher.stop()


def frame(*items: object) -> Frame:
    return Frame(0, len(items), list(items))


def same(items: Iterable[Any]) -> Iterator[Any]:
    yield from items


def test_every_item_of_every_frame_passes_in_order() -> None:
    reader, writer = ListReader(frame(1, 2), frame(3), frame(4, 5, 6)), ListWriter()
    assert run(same, reader, writer) == Outcome()
    assert writer.items == [1, 2, 3, 4, 5, 6]
    assert reader.finished_items == [2, 1, 3]


def test_results_are_collected_into_frames_of_the_size_that_the_writer_wants() -> None:
    writer = ListWriter(frame_size=4)
    run(same, ListReader(frame(*range(100))), writer)
    assert max(map(len, writer.frames)) <= 4
    assert writer.items == list(range(100))


def test_collected_results_are_handed_on_before_the_worker_waits_for_input() -> None:
    writer = ListWriter(frame_size=1000)
    seen: list[object] = []

    class Watching(ListReader):
        def get(self, before_waiting: Callable[[], None]) -> Frame | None:
            got = super().get(before_waiting)
            if got is None:
                seen.extend(writer.items)
            return got

    run(same, Watching(frame(*range(20))), writer)
    assert seen == list(range(20))


def test_a_producer_is_called_without_items() -> None:
    writer = ListWriter()
    run(lambda: range(3), None, writer)
    assert writer.items == [0, 1, 2]


def test_a_mapped_function_gets_its_arguments() -> None:
    writer = ListWriter()
    run(pow, ListReader(frame(2, 3)), writer, kind=Kind.MAP, args=(2,), kwargs={"mod": 5})
    assert writer.items == [4, 4]


def test_items_not_read_are_told_when_the_function_returns_early() -> None:
    reader = ListReader(frame(1, 2, 3, 4))
    run(lambda items: [next(items)], reader, ListWriter())
    assert reader.consumed == 1


def test_a_pickled_frame_is_opened_item_by_item_and_its_rest_is_counted() -> None:
    payload = Pickled.pack([to_part([number]) for number in range(4)])
    reader, writer = ListReader(Frame(0, 4, payload)), ListWriter()
    run(lambda items: [next(items), next(items)], reader, writer)
    assert writer.items == [[0], [1]]
    assert reader.consumed == 2


def test_a_failure_names_the_item_that_was_read_last() -> None:
    outcome = run(lambda item: 1 / item, ListReader(frame(1, 0, 2)), ListWriter(), kind=Kind.MAP)
    assert outcome.failure is not None
    assert outcome.failure.item == "0"
    assert outcome.failure.type_name == "ZeroDivisionError"


def test_an_undecodable_item_that_the_function_passes_over_is_still_a_failure() -> None:
    def passes_over(items: Iterator[Any]) -> Iterator[Any]:
        while True:
            try:
                yield next(items)
            except StopIteration:
                return
            except Exception:
                continue

    broken = Pickled.pack([to_part(1), (b"no pickle",), to_part(3)])
    outcome = run(passes_over, ListReader(Frame(0, 3, broken)), ListWriter())
    assert outcome.failure is not None
    assert outcome.failure.kind is ItemNotPicklable


@pytest.mark.parametrize("swallow", [False, True])
def test_a_released_worker_runs_its_finally_blocks_and_is_no_failure(swallow: bool) -> None:
    closed = []

    def tidy(items: Iterable[Any]) -> Iterator[Any]:
        try:
            yield from items
        except BaseException:
            if not swallow:
                raise
        finally:
            closed.append(True)

    assert run(tidy, ListReader(frame(1), then=Released), ListWriter()) == Outcome()
    assert closed == [True]


def test_a_generator_is_closed_when_nobody_wants_its_results() -> None:
    closed = []

    def tidy(items: Iterable[Any]) -> Iterator[Any]:
        try:
            yield from items
        finally:
            closed.append(True)

    assert run(tidy, ListReader(frame(1, 2, 3)), ListWriter(room=1)) == Outcome()
    assert closed == [True]


def test_results_that_could_not_be_handed_on_in_the_background_are_handed_on_by_the_worker() -> None:
    offered = threading.Event()

    class NoMemory(ListWriter):
        def offer(self, parts: list[object], *, plain: bool) -> bool:
            offered.set()
            raise MemoryError

    def pauses(items: Iterable[Any]) -> Iterator[Any]:
        for number in items:
            yield number
            if number == 500:
                offered.wait(30)

    writer = NoMemory(frame_size=64)
    assert run(pauses, ListReader(frame(*range(1000))), writer) == Outcome()
    assert offered.is_set()
    assert writer.items == list(range(1000))


def test_a_file_that_is_the_source_is_not_closed(tmp_path: Any) -> None:
    path = tmp_path / "lines"
    path.write_text("one\ntwo\n")
    with path.open() as lines:
        run(lambda: lines, None, writer := ListWriter())
        assert not lines.closed
    assert writer.items == ["one\n", "two\n"]


def test_a_failure_is_reported_although_nobody_wants_the_results() -> None:
    def fails(items: Iterable[Any]) -> Iterator[Any]:
        yield 1
        yield 2
        raise ValueError

    writer = ListWriter(frame_size=5, room=1)
    outcome = run(fails, ListReader(frame(1)), writer)
    assert writer.items == [1]
    assert outcome.failure is not None


# -- several writers

#: Even numbers to the first writer, odd ones to the second.
BY_PARITY = ToChosen("choose a branch of route(parity)", lambda number: number % 2, {0: To((0,)), 1: To((1,))})
BOTH = To((0, 1))


def all_numbers(count: int) -> ListReader:
    return ListReader(*(frame(*range(first, min(first + 100, count))) for first in range(0, count, 100)))


def test_each_writer_gets_the_results_that_the_outlet_addresses_to_it() -> None:
    even, odd = ListWriter(frame_size=7), ListWriter(frame_size=30)
    assert run(same, all_numbers(1000), even, odd, outlet=BY_PARITY) == Outcome()
    assert even.items == list(range(0, 1000, 2))
    assert odd.items == list(range(1, 1000, 2))


def test_all_writers_get_what_is_addressed_to_all() -> None:
    writers = [ListWriter(frame_size=size) for size in (1, 5, 100)]
    outlet: Outlet = ToAll((To((2,)), BY_PARITY))
    assert run(same, all_numbers(1000), *writers, outlet=outlet) == Outcome()
    assert [writer.items for writer in writers] == [
        list(range(0, 1000, 2)),
        list(range(1, 1000, 2)),
        list(range(1000)),
    ]


def test_what_goes_nowhere_is_dropped_and_the_worker_goes_on() -> None:
    outlet = ToChosen("choose", lambda number: number % 10, {0: To((0,))}, default=To(()))
    writer = ListWriter(frame_size=4)
    assert run(same, all_numbers(1000), writer, outlet=outlet) == Outcome()
    assert writer.items == list(range(0, 1000, 10))


def test_frames_have_at_most_the_size_that_their_own_writer_wants() -> None:
    writers = [ListWriter(frame_size=3), ListWriter(frame_size=50)]
    run(same, all_numbers(2000), *writers, outlet=BOTH)
    assert [max(map(len, writer.frames)) <= writer.frame_size for writer in writers] == [True, True]


def test_a_writer_whose_readers_have_left_is_no_hindrance_for_the_others() -> None:
    left, stays = ListWriter(frame_size=8, readers_leave_after=2), ListWriter(frame_size=8)
    reader = all_numbers(1000)
    assert run(same, reader, left, stays, outlet=BOTH) == Outcome()
    assert stays.items == list(range(1000))
    assert left.items == stays.items[: len(left.items)]
    assert reader.frames == []


def test_a_worker_stops_when_the_readers_of_all_writers_have_left() -> None:
    closed = []

    def tidy(numbers: Iterable[int]) -> Iterator[int]:
        try:
            yield from numbers
        finally:
            closed.append(True)

    reader = ListReader(*(frame(number) for number in range(1000)))
    writers = [ListWriter(readers_leave_after=2), ListWriter(readers_leave_after=5)]
    assert run(tidy, reader, *writers, outlet=BOTH) == Outcome()
    assert [writer.items for writer in writers] == [[0, 1], [0, 1, 2, 3, 4]]
    assert closed == [True]
    assert reader.frames != []


def test_a_worker_that_one_cancelled_writer_releases_puts_nothing_more_anywhere() -> None:
    writers = [ListWriter(room=2), ListWriter()]
    assert run(same, ListReader(frame(*range(1000))), *writers, outlet=BOTH) == Outcome()
    assert writers[0].items == [0, 1]
    assert writers[1].items == [0, 1]


def test_a_writer_without_room_does_not_keep_the_finished_results_of_others() -> None:
    """They are handed on before the worker waits."""
    free = ListWriter(frame_size=1000)
    missing: list[object] = []

    class Full(ListWriter):
        def put(self, parts: list[Any], *, plain: bool) -> bool:
            missing.extend(set(range(1, max(parts), 2)) - set(free.items))
            return super().put(parts, plain=plain)

        def offer(self, parts: list[object], *, plain: bool) -> bool:
            return False

    full = Full(frame_size=1000)
    assert run(same, all_numbers(1000), full, free, outlet=BY_PARITY) == Outcome()
    assert missing == []
    assert full.items == list(range(0, 1000, 2))


def test_while_the_worker_waits_at_one_writer_the_flusher_hands_on_what_others_get() -> None:
    arrived = threading.Condition()

    class Free(ListWriter):
        def offer(self, parts: list[object], *, plain: bool) -> bool:
            with arrived:
                arrived.notify_all()
                return super().put(parts, plain=plain)

        put = offer

    class Full(ListWriter):
        def put(self, parts: list[Any], *, plain: bool) -> bool:
            with arrived:  # waits for what came before, in whichever frame it is
                assert arrived.wait_for(lambda: len(free.items) == 9 * (parts[0] // 10), 30)
            return super().put(parts, plain=plain)

        def offer(self, parts: list[object], *, plain: bool) -> bool:
            return False

    full, free = Full(frame_size=1), Free(frame_size=1000)
    outlet = ToChosen("choose", lambda number: number % 10 == 0, {True: To((0,)), False: To((1,))})
    assert run(same, all_numbers(3000), full, free, outlet=outlet) == Outcome()
    assert full.items == list(range(0, 3000, 10))
    assert free.items == [number for number in range(3000) if number % 10]


def test_the_order_of_each_writer_is_kept_while_the_flusher_hands_on() -> None:
    offered = threading.Event()

    class Sometimes(ListWriter):
        """Takes every other frame that is offered."""

        offers = 0

        def offer(self, parts: list[object], *, plain: bool) -> bool:
            self.offers += 1
            offered.set()
            return self.offers % 2 == 0 and super().put(parts, plain=plain)

    def pauses(numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            yield number
            if number % 500 in (450, 451):  # nothing is offered if all is handed on: not at two places in a row
                offered.clear()
                while sum(len(writer.items) for writer in writers) <= number and not offered.wait(0.01):
                    pass

    writers = [Sometimes(frame_size=64), Sometimes(frame_size=16)]
    assert run(pauses, all_numbers(3000), *writers, outlet=BY_PARITY) == Outcome()
    assert writers[0].items == list(range(0, 3000, 2))
    assert writers[1].items == list(range(1, 3000, 2))


class Counted:
    pickled = 0

    def __reduce__(self) -> Any:
        self.pickled += 1
        return Counted, ()


def test_a_result_is_pickled_once_for_all_writers_that_want_it_so() -> None:
    item = Counted()
    writers = [ListWriter(), ListWriter(), ListWriter()]
    run(same, ListReader(frame(item)), *writers, outlet=To((0, 1, 2)), pickled=(True, False, True))
    assert item.pickled == 1
    assert writers[1].items == [item]
    assert writers[0].items == writers[2].items


def test_a_result_that_cannot_be_pickled_for_one_writer_is_a_failure() -> None:
    writers = [ListWriter(), ListWriter()]
    outcome = run(same, ListReader(frame(1, threading.Lock(), 3)), *writers, outlet=BOTH, pickled=(False, True))
    assert outcome.failure is not None
    assert outcome.failure.kind is ItemNotPicklable
    assert [writer.items for writer in writers] == [[1], [to_part(1)]]


def test_what_was_chosen_before_a_failing_choice_is_handed_on_and_the_result_is_named() -> None:
    def choose(number: int) -> int:
        return 1 // (13 - number) and 0

    writers = [ListWriter(frame_size=100), ListWriter(frame_size=100)]
    outlet = ToAll((To((1,)), ToChosen("route(choose)", choose, {0: To((0,))}, default=To((0,)))))
    outcome = run(same, ListReader(frame(*range(100))), *writers, outlet=outlet)
    assert outcome.failure is not None
    assert outcome.failure.item == "13"
    assert outcome.failure.type_name == "ZeroDivisionError"
    assert outcome.failure.message.startswith('The task "work-0" could not choose a branch of route(choose) for 13: ')
    assert [writer.items for writer in writers] == [list(range(13))] * 2


def test_a_worker_says_how_many_results_it_gave_not_how_many_copies() -> None:
    flusher = Flusher()
    task = Task((Step("work", Kind.ITERATOR, same),), pickled=(False, False), outlet=BOTH)
    loop = WorkerLoop(task, "work-0", ListReader(frame(*range(50))), [ListWriter(), ListWriter()], flusher)
    loop.run()
    flusher.stop()
    assert loop.states(detail=False)[0].results == 50


# -- results that leave the process


def test_each_result_that_can_change_is_pickled_before_the_next_one_is_made() -> None:
    def grow(_: Iterable[Any]) -> Iterator[object]:
        shared: list[int] = []
        for number in range(4):
            yield number
            shared.append(number)
            yield shared

    writer = ListWriter(frame_size=100)
    run(grow, ListReader(frame(1)), writer, pickled=(True,))
    assert opened(writer) == [0, [0], 1, [0, 1], 2, [0, 1, 2], 3, [0, 1, 2, 3]]


def test_a_result_that_must_still_be_pickled_is_not_handed_on_as_it_is() -> None:
    writer = ListWriter(frame_size=100)
    collection = _Collection(writer, pickled=True)

    class Slow:
        def __reduce__(self) -> tuple[object, ...]:
            collection.offer()  # the flusher comes while it is pickled
            return int, (7,)

    collection.extend_pickled(iter([1, 2, Slow(), 3]))
    collection.offer()
    assert [[(decode(part[0]) if isinstance(part, tuple) else part) for part in sent] for sent in writer.frames] == [
        [1, 2],
        [7, 3],
    ]


def test_a_result_that_cannot_be_pickled_does_not_take_those_before_it_along() -> None:
    writer = ListWriter(frame_size=100)
    outcome = run(lambda items: iter([1, 2, threading.Lock(), 3]), ListReader(frame(1)), writer, pickled=(True,))
    assert outcome.failure is not None
    assert outcome.failure.kind is ItemNotPicklable
    assert opened(writer) == [1, 2]


def opened(writer: ListWriter) -> list[object]:
    return [decode(part[0]) if isinstance(part, tuple) else part for part in writer.items]
