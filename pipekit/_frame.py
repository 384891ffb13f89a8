"""Frames: items that travel together, and the rule that sizes them.

A frame's payload is either the items themselves (a list), or an opaque form that only its readers open: see `Payload`.
What a process worker sends goes on to the next process worker as it came.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipekit._pickling import PROTOCOL, decode


class Payload(Protocol):
    """Items in a form that the parent process need not understand."""

    def open(self) -> tuple[list[Any], Callable[[Any], object]]:
        """The parts, one an item, and the function that turns a part into its item."""

    def rest(self, consumed: int) -> Payload:
        """The payload without its first `consumed` items."""


@dataclass(frozen=True, slots=True)
class Pickled:
    """Items that were pickled one by one, each before its producer went on: a snapshot, and separable."""

    body: bytes | bytearray

    @classmethod
    def pack(cls, parts: list[bytes]) -> Pickled:
        return cls(pickle.dumps(parts, PROTOCOL))

    def open(self) -> tuple[list[Any], Callable[[Any], object]]:
        return pickle.loads(self.body), decode

    def rest(self, consumed: int) -> Pickled:
        return Pickled.pack(pickle.loads(self.body)[consumed:])


@dataclass(frozen=True, slots=True)
class Frame:
    """Items that travel together.

    sequence: its number among the frames of its producer, from 0.
    count: number of items, at least 1.
    """

    sequence: int
    count: int
    payload: Sequence[Any] | Payload

    def open(self) -> tuple[Sequence[Any], Callable[[Any], object] | None]:
        """The parts, one an item, and what turns a part into its item (None: it is the item)."""
        if isinstance(self.payload, (list, tuple)):
            return self.payload, None
        return self.payload.open()  # type: ignore[union-attr]  # not a Sequence: a Payload

    def rest(self, consumed: int) -> Frame | None:
        """What remains after the first `consumed` items, None if nothing does."""
        if consumed >= self.count:
            return None
        if consumed == 0:
            return self
        payload = self.payload
        left = payload[consumed:] if isinstance(payload, (list, tuple)) else payload.rest(consumed)  # type: ignore[union-attr]
        return Frame(self.sequence, self.count - consumed, left)


class Pace:
    """How many items make about `seconds` of work, found by doubling and halving.

    Starts at one. Doubles after a full frame that took less than the target; halves after one that took more than
    twice; falls to one when a single item takes longer than the target, so that slow items are never batched.
    """

    __slots__ = ("limit", "seconds", "size")

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self.size = 1

    def measured(self, count: int, seconds: float) -> None:
        """Take into account that `count` items took `seconds`."""
        if seconds >= self.seconds * count:
            self.size = 1
        elif seconds > 2 * self.seconds:
            self.size = min(self.size, max(1, count // 2))
        elif seconds < self.seconds and count >= self.size:
            self.size = min(2 * self.size, self.limit)
