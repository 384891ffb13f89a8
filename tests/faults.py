"""What goes wrong in the matrix: faults, the places where they strike, and the stages that they strike.

Workers import this module, and wait for it: it needs the standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import util
from pathlib import Path


class Fatal(BaseException):
    """No `Exception`: what catches those does not catch this."""


def _raise() -> None:
    raise ValueError("a fault")


def _raise_fatal() -> None:
    raise Fatal("a fault")


def _segfault() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def _await_killer() -> None:
    time.sleep(120)
    raise AssertionError("nobody came to kill this process")


HOWS: dict[str, Callable[[], object]] = {
    "raise": _raise,
    "raise-base": _raise_fatal,
    "sys-exit": lambda: sys.exit(3),
    "os-exit-0": lambda: os._exit(0),
    "os-exit-3": lambda: os._exit(3),
    "segfault": _segfault,
    "sigkill": _await_killer,
    "sigstop-sigkill": _await_killer,
}
#: What the ways that raise, raise; the others end the process.
RAISED: dict[str, type[BaseException]] = {"raise": ValueError, "raise-base": Fatal, "sys-exit": SystemExit}
KILLED_FROM_OUTSIDE = ("sigkill", "sigstop-sigkill")


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong, once. Says first, in the file `said`, in which process and when."""

    how: str
    said: Path

    def strike(self) -> None:
        draft = self.said.with_name(f"draft-{os.getpid()}")
        draft.write_text(f"{os.getpid()} {time.monotonic()}")
        draft.replace(self.said)
        if self.how == "sigkill-itself":  # the matrix kills from outside
            os.kill(os.getpid(), signal.SIGKILL)
        HOWS[self.how]()


class Item:
    """What flows. May have a fault that strikes when it is pickled, or when it is made again from its pickle."""

    def __init__(self, number: int, load: bytes, in_pickling: Fault | None = None, in_unpickling: Fault | None = None):
        self.number = number
        self.load = load
        self._in_pickling = in_pickling
        self._in_unpickling = in_unpickling

    def __reduce__(self) -> tuple[object, ...]:
        if self._in_pickling is not None:
            self._in_pickling.strike()
        return _item, (self.number, self.load, self._in_unpickling)

    def __repr__(self) -> str:
        return f"<item {self.number}>"


def _item(number: int, load: bytes, fault: Fault | None) -> Item:
    if fault is not None:
        fault.strike()
    return Item(number, load)


@dataclass(frozen=True)
class Role:
    """What a stage does beside handing on its items: its fault, the place where it strikes, and at which item."""

    place: str = "none"
    number: int | None = None
    fault: Fault | None = None
    delay: float = 0.0

    def __reduce__(self) -> tuple[object, ...]:
        return _role, (self.place, self.number, self.fault, self.delay)

    def is_at(self, place: str, number: int | None = None) -> bool:
        return self.place == place and self.number == number

    def reach(self, place: str, number: int | None = None) -> None:
        if self.fault is not None and self.is_at(place, number):
            self.fault.strike()

    def result(self, number: int, load: bytes) -> Item:
        return Item(
            number,
            load,
            in_pickling=self.fault if self.is_at("pickle", number) else None,
            in_unpickling=self.fault if self.is_at("unpickle", number) else None,
        )

    def run(self, items: Iterable[Item]) -> Iterator[Item]:
        results = self._hand_on(items)
        return results if self.fault is None or self.place != "unreported" else _StrikesWhenDropped(results, self.fault)

    def _hand_on(self, items: Iterable[Item]) -> Iterator[Item]:
        self.reach("start")
        finished = self._prepare_shutdown()
        try:
            for item in items:
                self.reach("middle", item.number)
                yield self.result(item.number, item.load)
        finally:
            self.reach("close")
            finished.set()

    def _prepare_shutdown(self) -> threading.Event:
        finished = threading.Event()
        if self.fault is not None and self.place == "reporting":
            threading.Thread(target=self._strike_after, args=(finished, self.fault), daemon=False).start()
        if self.fault is not None and self.place == "reported":
            util.Finalize(
                None, self.fault.strike, exitpriority=1
            )  # runs when the process ends; needs a priority for it
        return finished

    def _strike_after(self, finished: threading.Event, fault: Fault) -> None:
        finished.wait()
        time.sleep(self.delay)  # not to wait for anything: to meet the report at different moments
        fault.strike()


def _role(place: str, number: int | None, fault: Fault | None, delay: float) -> Role:
    role = Role(place, number, fault, delay)
    role.reach("load")
    return role


class _StrikesWhenDropped:
    """A stage's results, with a fault for when the worker has read them to their end and lets them go."""

    def __init__(self, results: Iterator[Item], fault: Fault) -> None:
        self._results = results
        self._fault = fault

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        return next(self._results)

    def __del__(self) -> None:
        self._fault.strike()


def load_of(number: int, size: int) -> bytes:
    return bytes([number]) * size


def source(role: Role, count: int, size: int) -> Iterator[Item]:
    """The producer."""
    return role.run(Item(number, load_of(number, size)) for number in range(count))


class IterableSource:
    """As `source`, but an iterable: the thread of the caller's process reads it."""

    def __init__(self, role: Role, count: int, size: int) -> None:
        self._arguments = role, count, size

    def __iter__(self) -> Iterator[Item]:
        return source(*self._arguments)


# Three functions, since a stage has the name of its function.


def first(items: Iterable[Item], role: Role) -> Iterator[Item]:
    return role.run(items)


def middle(items: Iterable[Item], role: Role) -> Iterator[Item]:
    return role.run(items)


def last(items: Iterable[Item], role: Role) -> Iterator[Item]:
    return role.run(items)
