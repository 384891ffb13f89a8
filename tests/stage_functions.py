"""Functions of the stages that hypothesis puts together.

Workers import this module, and wait for it: it needs the standard library alone.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

# -- functions: of items, so that several workers mean the same as one


def same(numbers: Iterable[int]) -> Iterable[int]:
    return numbers


def doubled(numbers: Iterable[int]) -> Iterator[int]:
    return (2 * number for number in numbers)


def odd(numbers: Iterable[int]) -> Iterator[int]:
    return (number for number in numbers if number % 2)


def twice(numbers: Iterable[int]) -> Iterator[int]:
    for number in numbers:
        yield number
        yield number


def listed(numbers: Iterable[int]) -> list[int]:
    return list(numbers)


def plus_one(number: int) -> int:
    return number + 1


def halved(number: int) -> int:
    if number % 3 == 0:
        raise ValueError(number)
    return number // 2


# -- of all items that a worker sees, in any order


def mod_three(number: int) -> int:
    return number % 3


def text(number: int) -> str:
    return f"key {number % 4}"


def pair(number: int) -> tuple[bool, str]:
    return number % 2 == 0, str(number % 3)


KEYS: dict[str, Any] = {function.__name__: function for function in (mod_three, text, pair)}


def counted(numbers: Iterable[int], key: str) -> Iterator[int]:
    """The first item of a key is a 1, its second one a 2: means the same only where one worker gets them all."""
    counts: Counter[object] = Counter()
    for number in numbers:
        found = KEYS[key](number)
        counts[found] += 1
        yield counts[found]


def summed(numbers: Iterable[int]) -> Iterator[int]:
    yield sum(numbers)


def first_three(numbers: Iterable[int]) -> Iterator[int]:
    return islice(iter(numbers), 3)


@dataclass(frozen=True)
class Modulo:
    """What a route chooses by."""

    by: int

    def __call__(self, number: int) -> int:
        return number % self.by


# -- faults


class Odd(BaseException):
    """Not an Exception."""


def faulty(numbers: Iterable[int], at: int, how: str) -> Iterator[int]:
    for place, number in enumerate(numbers):
        if place == at:
            fail(how)
        yield number


def fail(how: str) -> None:
    if how == "raise":
        raise ValueError("on purpose")
    if how == "base":
        raise Odd("on purpose")
    if how == "sys.exit":
        sys.exit("on purpose")
    if how == "exit":
        os._exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


class Counting:
    """A source without end that counts how many items were read from it."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[int]:
        while True:
            self.read += 1
            yield self.read
