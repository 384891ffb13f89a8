"""What stands in the branches of graphs: stages that hand on numbers until something happens to them.

Workers import this module, and wait for it: it needs the standard library alone.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from faults import Fault


def work(numbers: Iterable[int], at: int | None = None, fault: Fault | None = None) -> Iterator[int]:
    """Hand on; at one number, the fault strikes."""
    for number in numbers:
        if fault is not None and number == at:
            fault.strike()
        yield number


def produce(at: int, fault: Fault) -> Iterator[int]:
    """As `work`, a source without end."""
    return work(itertools.count(), at, fault)


def strike_at(number: int, at: int, fault: Fault, then: Callable[[int], object]) -> object:
    """A function for `choose` and `key` that fails at one number."""
    if number == at:
        fault.strike()
    return then(number)


def parity(number: int) -> int:
    return number % 2


def identity(number: int) -> int:
    return number


def zero(number: int) -> int:
    return 0


SENTINEL = object()


def sentinel_if_odd(number: int) -> object:
    return SENTINEL if number % 2 else None


def first(numbers: Iterable[int], count: int) -> Iterator[int]:
    """Stop reading after so many; 0: without having read."""
    return itertools.islice(iter(numbers), count) if count else iter(())


def until(numbers: Iterable[int], last: int) -> Iterator[int]:
    """Stop reading after this number."""
    for number in numbers:
        yield number
        if number == last:
            return


def halt(numbers: Iterable[int], at: int, release: Path) -> Iterator[int]:
    """Be busy with one number until a file exists."""
    for number in numbers:
        if number == at:
            wait_for(release)
        yield number


def halt_and_strike(numbers: Iterable[int], at: int, release: Path, fault: Fault) -> Iterator[int]:
    yield from work(halt(numbers, at, release), at, fault)


def tidy(numbers: Iterable[int], said: Path) -> Iterator[int]:
    """Hand on; say with a file that the `finally` block was run."""
    try:
        yield from numbers
    finally:
        said.touch()


def wait_for(path: Path, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.005)
