"""Frames: items that travel together, and the rule that sizes them.

A frame's payload is either the items themselves (a list), or an opaque form that only its readers open: see `Payload`.
What a process worker sends goes on to the next process worker as it came.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pipekit._errors import short_repr
from pipekit._pickling import PROTOCOL, decode, encode
from pipekit._shown import MOST_BYTES, shown, size_shown


class Payload(Protocol):
    """Items in a form that the parent process need not understand."""

    def open(self) -> tuple[list[Any], Callable[[Any], object] | None]:
        """The parts, one an item, and the function that turns a part into its item (None: it is the item)."""

    def rest(self, consumed: int) -> Payload:
        """The payload without its first `consumed` items."""


#: Types whose values cannot change: they need no snapshot, and a frame of them is pickled and unpickled as one list.
UNCHANGING = frozenset({int, float, complex, bool, str, bytes, type(None)})


class CannotTravel(Exception):
    """An item or result that cannot travel; the reason is its `__cause__`."""

    def __init__(self, what: str, error: BaseException) -> None:
        super().__init__(what)
        self.what = what
        self.error = error


def part_of(result: object) -> object:
    """A stage's result as `to_part` makes it; raises CannotTravel."""
    if type(result) in UNCHANGING:  # as in `to_part`: called for each result, and most end here
        return result
    try:
        return to_part(result)
    except BaseException as error:
        raise CannotTravel(f"could not pickle its result {short_repr(result)}", error) from error


def to_part(item: object) -> object:
    """An item as it waits in a frame that will leave the process: itself if unchanging, else pickled, in a 1-tuple."""
    return item if type(item) in UNCHANGING else (encode(item),)


def _from_part(part: Any) -> object:
    return decode(part[0]) if type(part) is tuple else part


@dataclass(frozen=True, slots=True)
class Pickled:
    """Items that were pickled, each before its producer went on: a snapshot, and separable."""

    body: bytes | bytearray

    @classmethod
    def pack(cls, parts: list[object], *, plain: bool = False) -> Pickled:
        """From the parts that `to_part` made; plain: none of them is known to be pickled."""
        mixed = not plain and tuple in set(map(type, parts))
        return cls(pickle.dumps((mixed, parts), PROTOCOL))

    def open(self) -> tuple[list[Any], Callable[[Any], object] | None]:
        mixed, parts = pickle.loads(self.body)
        return parts, _from_part if mixed else None

    def shown(self, most: int) -> list[str]:
        """The first items as text, at most so many, without running code of theirs; of a large body, its size."""
        if len(self.body) > 2 * MOST_BYTES:
            return [size_shown(self.body)]
        _, parts = pickle.loads(self.body)  # holds plain values and bytes
        return [shown(part[0]) if type(part) is tuple else short_repr(part) for part in parts[:most]]

    def rest(self, consumed: int) -> Pickled:
        return Pickled.pack(pickle.loads(self.body)[1][consumed:])


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


def part_repr(part: Any, decode_part: Callable[[Any], object] | None) -> str:
    """The shortened repr of a part's item, for messages; never raises. Runs the item's own code."""
    try:
        return short_repr(part if decode_part is None else decode_part(part))
    except BaseException:
        return "<an item that cannot be unpickled>"


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
