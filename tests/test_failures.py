"""The real error arrives, with everything that says where it came from."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import pickle
import re
import signal
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import items_travel_alone

from pipekit import Cancelled, ProcessBackend, RemoteTraceback, Stage, TaskException, WorkerDied, map_stage, stage
from pipekit.backends._wire import Message


class Custom(Exception):
    """Takes two arguments, so it pickles but does not unpickle."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class BadRepr:
    def __repr__(self) -> str:
        raise RuntimeError


def fail_at(numbers: Iterable[int], bad: int, error: BaseException) -> Iterator[int]:
    for number in numbers:
        if number == bad:
            raise error
        yield number


@pytest.mark.parametrize("position", ["source", "first", "middle", "last"])
@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr)
def test_an_exception_in_any_stage_is_raised_with_its_cause(backend: str, position: str, error: BaseException) -> None:
    failing = Stage(fail_at, 5, error).setup(backend=backend)
    same = map_stage(backend=backend)(lambda number: number)
    pipes: dict[str, Any] = {
        "source": Stage(fail_at, range(10), 5, error).setup(backend=backend) | same,
        "first": range(10) | failing | same,
        "middle": range(10) | same | failing | same,
        "last": range(10) | same | failing,
    }
    with pytest.raises(TaskException) as caught:
        list(pipes[position].results())
    assert type(caught.value.__cause__) is type(error)
    assert caught.value.worker == "fail_at-0"
    assert caught.value.stage == "fail_at"


def test_an_exception_in_the_iterable_that_feeds_a_pipeline_is_raised(backend: str) -> None:
    def source() -> Iterator[int]:
        yield 1
        raise OSError("disk gone")

    with pytest.raises(TaskException, match="source-0.*disk gone") as caught:
        list((source() | map_stage(backend=backend)(lambda n: n)).results())
    assert isinstance(caught.value.__cause__, OSError)


def test_what_was_finished_before_the_failure_is_delivered_first(backend: str) -> None:
    delivered = []
    with pytest.raises(TaskException):
        for number in (range(100) | Stage(fail_at, 50, ValueError()).setup(backend=backend)).results():
            delivered.append(number)
    assert delivered == list(range(50))


def test_the_item_is_named(backend: str) -> None:
    with pytest.raises(TaskException) as caught:
        list((["a", "b", "c"] | map_stage(backend=backend)(lambda text: {"a": 1}[text])).results())
    assert caught.value.item == "'b'"
    assert "was at the item 'b'" in "".join(traceback.format_exception(caught.value))


def test_an_item_whose_repr_raises_is_still_reported(backend: str) -> None:
    with pytest.raises(TaskException) as caught:
        list(([BadRepr()] | map_stage(backend=backend)(lambda item: 1 / 0)).results())
    assert caught.value.item == "<BadRepr whose repr raised RuntimeError>"


def test_the_traceback_shows_the_line_that_raised(backend: str) -> None:
    with pytest.raises(TaskException) as caught:
        list((range(3) | Stage(fail_at, 1, ValueError("wrong")).setup(backend=backend)).results())
    shown = "".join(traceback.format_exception(caught.value))
    assert "raise error" in shown
    assert "in fail_at" in shown
    assert "_worker.py" not in shown


def test_an_exception_that_cannot_travel_leaves_its_type_text_and_traceback() -> None:
    with pytest.raises(TaskException, match=r"raised Custom\('1 and 2'\)") as caught:
        list((range(3) | map_stage(lambda number: (_ for _ in ()).throw(Custom(1, 2)))).results())
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "Custom: 1 and 2" in str(caught.value.__cause__)
    assert caught.value.failure.type_name == "Custom"


@items_travel_alone
def test_several_failures_are_counted_and_the_first_is_the_cause(tmp_path: Path) -> None:
    barrier = threading.Barrier(3)

    def fail(number: int) -> int:
        barrier.wait()
        raise ValueError(number)

    with pytest.raises(TaskException) as caught:
        list((range(3) | map_stage(workers=3, backend="thread")(fail)).results())
    # which of them come in before the run is stopped is a matter of timing; that none is forgotten is not
    count = len(caught.value.others) + 1
    if count > 1:
        assert str(caught.value).startswith(f"{count} tasks raised an exception. The first: The task")
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_task_exception_can_be_pickled(backend: str) -> None:
    with pytest.raises(TaskException) as caught:
        list((range(3) | Stage(fail_at, 1, ValueError("wrong")).setup(backend=backend)).results())
    copy = pickle.loads(pickle.dumps(caught.value))
    assert type(copy) is TaskException
    assert (str(copy), copy.worker, copy.item) == (str(caught.value), "fail_at-0", "1")


def test_a_cancelled_that_stage_code_makes_up_is_a_failure_not_a_silent_end(backend: str) -> None:
    with pytest.raises(TaskException, match="raised Cancelled"):
        list((range(3) | Stage(fail_at, 1, Cancelled()).setup(backend=backend)).results())


def test_an_error_in_a_finally_block_is_raised(backend: str) -> None:
    def untidy(numbers: Iterable[int]) -> Iterator[int]:
        try:
            yield from numbers
        finally:
            raise ValueError("in finally")

    with pytest.raises(TaskException, match="in finally"):
        list((range(3) | stage(backend=backend)(untidy)).results())


def test_a_failure_stops_stages_that_have_items_without_end(backend_pair: tuple[str, str]) -> None:
    def endless() -> Iterator[int]:
        while True:
            yield 1

    first, second = backend_pair
    pipe = Stage(endless).setup(backend=first) | map_stage(workers=2, backend=second)(lambda number: number // 0)
    with pytest.raises(TaskException, match="ZeroDivisionError"):
        list(pipe.results())


DEATHS: dict[str, Any] = {
    "SIGKILL": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "SIGSEGV": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "status 0": lambda: os._exit(0),
    "status 3": lambda: os._exit(3),
}


@pytest.mark.parametrize("how", DEATHS)
@pytest.mark.parametrize("qsize", [0, 1, None])
@pytest.mark.parametrize("position", ["first", "last"])
def test_a_dead_worker_is_an_error_at_once_that_says_how_it_died(how: str, qsize: int | None, position: str) -> None:
    die = DEATHS[how]

    def mortal(number: int) -> int:
        if number == 7:
            die()
        return number

    deadly = map_stage(workers=2, qsize=qsize)(mortal)
    same = map_stage(workers=2, qsize=qsize)(lambda number: number)
    pipe = range(10_000) | deadly | same if position == "first" else range(10_000) | same | deadly
    started = time.monotonic()
    with pytest.raises(WorkerDied, match=f'The worker "mortal-[01]" died: .*{how}') as caught:
        list(pipe.results())
    assert time.monotonic() - started < 10  # the bound is 2 s after the death; this only says: no wait for a time-out
    # Frames ahead and results that had not left yet are in hand too: of many items, the first are shown.
    assert re.search(r"in hand: .*(\b7\b|and \d+ more)", str(caught.value))


def test_a_worker_that_dies_while_idle_is_noticed() -> None:
    def first_dies(items: Iterable[int]) -> Iterator[int]:
        yield os.getpid()
        yield from items

    release = threading.Event()

    def silent() -> Iterator[int]:
        yield release.wait(60)

    results = (silent() | stage()(first_dies)).results()
    os.kill(next(results), signal.SIGTERM)
    with pytest.raises(WorkerDied, match="SIGTERM"):
        list(results)
    release.set()


def test_a_producer_that_dies_is_an_error() -> None:
    def producer() -> Iterator[int]:
        yield 1
        os._exit(0)

    with pytest.raises(WorkerDied, match=r"exited with status 0 .* It had no items in hand"):
        list(Stage(producer).results())


@pytest.mark.parametrize("error", [TimeoutError("late"), OSError(errno.ENOBUFS, "full"), ValueError("late")], ids=repr)
def test_a_worker_whose_message_is_cut_off_has_died(backend: str, error: Exception, tmp_path: Path) -> None:
    """By a signal handler's exception, or by the system; the next stage does not take it for the end of its items."""
    done = tmp_path / "done"

    def is_cut_off(numbers: Iterable[int]) -> Iterator[bytes]:
        from pipekit.backends._child import _SocketLink

        send, messages = _SocketLink._send_now, itertools.count(1)

        def send_four(link: _SocketLink, message: Message) -> None:
            if next(messages) == 5:
                raise error
            send(link, message)

        _SocketLink._send_now = send_four  # type: ignore[method-assign, assignment]
        return map(bytes, numbers)

    def commits(items: Iterable[bytes]) -> Iterator[bytes]:
        yield from items
        done.touch()

    pipe = itertools.repeat(1000, 100_000) | stage(is_cut_off) | stage(backend=backend)(commits)
    with pytest.raises(WorkerDied, match='"is_cut_off-0" died: .* an exception, which is on stderr, has cut off'):
        list(pipe.results())
    assert not done.exists()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_worker_that_has_forked_a_child_dies_visibly(method: Any, tmp_path: Path) -> None:
    """A process forked by stage code inherits all descriptors, so nothing closes with the worker."""

    pid_file = tmp_path / "pid"

    def leaves_a_child(number: int) -> int:
        child = os.fork()
        if child == 0:
            time.sleep(60)
        pid_file.write_text(str(child))
        os._exit(1)

    started = time.monotonic()
    with pytest.raises(WorkerDied, match="status 1"):
        list(([1] | map_stage(backend=ProcessBackend(method))(leaves_a_child)).results())
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert time.monotonic() - started < 30


def test_the_repr_of_an_item_is_not_called_for_the_news_of_a_death() -> None:
    with pytest.raises(WorkerDied, match=r"It had 1 item in hand: OwnRepr\(\)"):
        list(([OwnRepr()] | map_stage(lambda item: os._exit(1))).results())


class OwnRepr:
    def __repr__(self) -> str:
        return "called"


def test_a_function_that_the_worker_cannot_load_is_a_named_error() -> None:
    with pytest.raises(
        TaskException, match='"_NeedsMissingModule.call-0" could not load its function: ModuleNotFoundError'
    ):
        list(([1] | map_stage(_NeedsMissingModule().call)).results())


class _NeedsMissingModule:
    def call(self, number: int) -> int:
        return number

    def __reduce__(self) -> Any:
        return _import_missing, ()


def _import_missing() -> Any:
    import no_such_module  # type: ignore[import-not-found]

    return no_such_module


def test_where_native_code_crashed_is_in_the_error() -> None:
    with pytest.raises(WorkerDied, match=r"killed by signal 11 \(SIGSEGV, a crash in native code") as caught:
        list(([1, 0] | map_stage(_read_address)).results())
    stack = str(caught.value.__cause__)
    assert "Fatal Python error: Segmentation fault" in stack
    assert "in _read_address" in stack
    assert "pipekit" not in stack.partition("in _read_address")[2]


def _read_address(address: int) -> int:
    return len(ctypes.string_at(address)) if address == 0 else address


def test_a_process_that_a_stage_forks_may_crash_without_a_word(tmp_path: Path) -> None:
    """It has not the connection, and must not write into what has its number now."""

    def forks(number: int) -> int:
        child = os.fork()
        if child == 0:
            with (tmp_path / "file").open("wb") as file:
                os.dup2(file.fileno(), 50)
                for descriptor in range(3, 50):  # one of them was the connection
                    with suppress(OSError):
                        os.dup2(50, descriptor)
                _read_address(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert list(([1] | map_stage(forks)).results()) == [-signal.SIGSEGV]
    assert (tmp_path / "file").read_bytes() == b""
