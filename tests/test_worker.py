"""The worker loop with ends made of lists: no thread, no process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from pipekit import ItemNotPicklable
from pipekit._errors import Released
from pipekit._frame import Frame, Pickled, to_part
from pipekit._output import Flusher
from pipekit._task import Kind, Task
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

    def finished(self, items: int, seconds: float) -> None:
        self.finished_items.append(items)

    def leave(self, consumed: int) -> None:
        self.consumed = consumed


class ListWriter:
    blocked = 0.0

    def __init__(self, frame_size: int = 1, room: int = 10**9) -> None:
        self.frame_size = frame_size
        self.room = room
        self.frames: list[list[object]] = []

    def put(self, parts: list[object]) -> bool:
        if len(self.frames) >= self.room:
            raise Released
        self.frames.append(parts)
        return True

    def offer(self, parts: list[object]) -> bool:
        return self.put(parts)

    @property
    def items(self) -> list[object]:
        return [part for frame in self.frames for part in frame]


def run(function: Callable[..., Any], reader: ListReader | None, writer: ListWriter, **options: Any) -> Outcome:
    task = Task("work", options.pop("kind", Kind.ITERATOR), function, has_input=reader is not None, **options)
    flusher = Flusher()
    try:
        return WorkerLoop(task, "work-0", reader, [writer], flusher).run()
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
        def offer(self, parts: list[object]) -> bool:
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
