"""What process workers log reaches the handlers of the program that started them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import eventually

from pipekit import PipekitError, ProcessBackend, Stalled, WorkerNames, map_stage

LOGGER = logging.getLogger("test_logs.some.where")


class Keeper(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    @property
    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def keeper() -> Iterator[Keeper]:
    """A handler of the root logger."""
    handler = Keeper()
    logging.root.addHandler(handler)
    yield handler
    logging.root.removeHandler(handler)


@pytest.fixture(params=["forkserver", "spawn", "fork"])
def processes(request: pytest.FixtureRequest) -> ProcessBackend:
    return ProcessBackend(request.param)


def logs(number: int) -> int:
    LOGGER.warning("item %d", number)
    return number


def test_records_arrive_with_stage_and_worker_in_order(keeper: Keeper, processes: ProcessBackend) -> None:
    assert len(list((range(100) | map_stage(workers=2, backend=processes)(logs)).results())) == 100
    assert sorted(keeper.messages) == sorted(f"item {number}" for number in range(100))
    assert {record.stage for record in keeper.records} == {"logs"}
    for worker in ("logs-0", "logs-1"):
        numbers = [int(record.getMessage()[5:]) for record in keeper.records if record.worker == worker]
        assert numbers == sorted(numbers)
    first = keeper.records[0]
    assert (first.name, first.levelname, first.funcName) == ("test_logs.some.where", "WARNING", "logs")
    assert first.processName == first.worker


def test_levels_of_the_program_hold_in_the_workers(keeper: Keeper, monkeypatch: pytest.MonkeyPatch) -> None:
    def log_all(number: int) -> bool:
        for level in (logging.DEBUG, logging.INFO, logging.ERROR):
            LOGGER.log(level, "level %d", level)
            logging.getLogger("test_logs.other").log(level, "other %d", level)
        return LOGGER.isEnabledFor(logging.DEBUG)

    monkeypatch.setattr(LOGGER, "level", logging.INFO)
    assert (([1] | map_stage(log_all)).execute()) is False
    assert keeper.messages == ["level 20", "level 40", "other 40"]


def test_a_handler_of_a_logger_that_does_not_propagate_gets_its_records(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Keeper()
    monkeypatch.setattr(LOGGER, "propagate", False)
    monkeypatch.setattr(LOGGER, "handlers", [own])
    ([1] | map_stage(logs)).execute()
    assert (own.messages, keeper.messages) == (["item 1"], [])


def test_an_exception_that_is_logged_arrives_as_text(keeper: Keeper) -> None:
    def fails(number: int) -> None:
        try:
            number / 0
        except ZeroDivisionError:
            LOGGER.exception("no good")

    ([1] | map_stage(fails)).execute()
    assert keeper.messages[0].startswith("no good\nTraceback")
    assert keeper.messages[0].endswith("ZeroDivisionError: division by zero")


def test_what_is_passed_as_extra_arrives_as_it_is_or_as_text(keeper: Keeper) -> None:
    def with_extra(number: int) -> None:
        LOGGER.warning("here", extra={"stage": "mine", "request": {"id": number}})
        LOGGER.warning("here", extra={"lock": threading.Lock()})
        LOGGER.warning("here", extra={"error": DoesNotUnpickle(4, "gone")})

    ([1] | map_stage(with_extra)).execute()
    first, second, third = keeper.records
    assert third.error == "DoesNotUnpickle('4: gone')"
    assert (first.stage, first.worker, first.request) == ("mine", "with_extra-0", {"id": 1})
    assert second.lock.startswith("<unlocked")


class DoesNotUnpickle(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code}: {reason}")


@pytest.mark.parametrize("error", [SystemExit, ValueError])
def test_a_handler_that_raises_keeps_no_other_record_from_arriving(
    error: type[BaseException], keeper: Keeper, capsys: pytest.CaptureFixture[str]
) -> None:
    class Raises(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() == "item 1":
                raise error("of a handler")

    raises = Raises()
    logging.root.handlers.insert(0, raises)
    list((range(3) | map_stage(logs)).results())
    logging.root.removeHandler(raises)
    assert keeper.messages == ["item 0", "item 2"]
    assert "of a handler" in capsys.readouterr().err


def test_a_handler_may_close_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closes(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            results.close()

    monkeypatch.setattr(logging.root, "handlers", [Closes()])
    results = (range(1000) | map_stage(qsize=1)(logs)).results()
    with pytest.raises(PipekitError, match="closed while they were read"):
        for _ in results:
            eventually(lambda: results.stats().state != "running")


def test_records_of_a_pipeline_inside_a_worker_arrive_with_its_names(keeper: Keeper) -> None:
    def outer(number: int) -> int:
        return sum((range(number) | map_stage(logs)).results())

    ([2] | map_stage(outer)).execute()
    assert [(record.worker, record.getMessage()) for record in keeper.records] == [
        ("logs-0", "item 0"),
        ("logs-0", "item 1"),
    ]


def test_what_was_logged_before_a_worker_died_arrives(keeper: Keeper) -> None:
    def dies(number: int) -> None:
        import os

        LOGGER.warning("last words")
        os._exit(3)

    with pytest.raises(Exception, match="died"):
        ([1] | map_stage(dies)).execute()
    assert keeper.messages == ["last words"]


def test_a_worker_that_logs_faster_than_its_records_are_handled_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    class Slow(Keeper):
        def emit(self, record: logging.LogRecord) -> None:
            go_on.wait(60)
            super().emit(record)

    def logs_much(number: int) -> int:
        for line in range(3000):
            LOGGER.warning("%d", line)
        return number

    monkeypatch.setattr(logging.root, "handlers", [Slow()])
    results = ([1] | map_stage(logs_much)).results(stall_timeout=0.5)
    try:
        with pytest.raises(Stalled, match=r"logs_much-0: .*, in logs_much"):
            next(results)
    finally:
        go_on.set()


def test_a_filter_that_raises_is_reported_and_loses_no_other_record(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def picky(record: logging.LogRecord) -> bool:
        if record.getMessage() == "item 1":
            raise ValueError("picky")
        return True

    monkeypatch.setattr(LOGGER, "filters", [picky])
    list((range(3) | map_stage(logs)).results())
    assert keeper.messages == ["item 0", "item 2"]
    assert "ValueError: picky" in capsys.readouterr().err


def test_a_destructor_that_logs_in_the_middle_of_anything_does_no_harm(keeper: Keeper) -> None:
    def makes_garbage(number: int) -> list[int]:
        for _ in range(20):
            cycle: list[Any] = [Loud()]
            cycle.append(cycle)
        return [number] * 100

    results = list((range(500) | map_stage(makes_garbage)).results())
    assert len(results) == 500
    assert set(keeper.messages) == {"gone"}


class Loud:
    def __del__(self) -> None:
        LOGGER.warning("gone")


def test_a_filter_puts_the_names_on_every_record_so_that_a_format_can_use_them(keeper: Keeper, backend: str) -> None:
    keeper.addFilter(WorkerNames())
    keeper.setFormatter(logging.Formatter("%(stage)s %(worker)s %(message)s"))
    LOGGER.warning("before")
    ([1] | map_stage(backend=backend)(logs)).execute()
    assert [keeper.format(record) for record in keeper.records] == ["- - before", "logs logs-0 item 1"]
