"""Frames: items that travel together, and the rule that sizes them.

A frame's payload is either the items themselves (a list), or an opaque form that only its readers open: see `Payload`.
What a process worker sends goes on to the next process worker as it came.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from pipekit._arena import LEAST_SHARED, Lease, own_store
from pipekit._errors import short_repr
from pipekit._pickling import PROTOCOL, decode, encode, encode_apart
from pipekit._shown import MOST_BYTES, shown, size_shown


class Payload(Protocol):
    """Items in a form that the parent process need not understand."""

    @property
    def size(self) -> int:
        """Bytes that it takes, where that is known, else 0."""

    def open(self) -> tuple[list[Any], Callable[[Any], object] | None]:
        """The parts, one an item, and the function that turns a part into its item (None: it is the item)."""

    def rest(self, consumed: int) -> Payload:
        """The payload without its first `consumed` items."""


#: Types whose values cannot change: they need no snapshot, and a frame of them is pickled and unpickled as one list.
UNCHANGING = frozenset({int, float, complex, bool, str, bytes, type(None)})


#: Bytes of a frame's body that go into the arena instead of through two sockets of the parent, which copy it four
#: times. Chosen, not measured: a few readings of a socket.
LEAST_SHARED_BODY = 1 << 18


class CannotTravel(Exception):
    """An item or result that cannot travel; the reason is its `__cause__`."""

    def __init__(self, what: str, error: BaseException) -> None:
        super().__init__(what)
        self.what = what
        self.error = error


def part_of(result: object, *, share: bool = False) -> object:
    """A stage's result as `to_part` makes it; raises CannotTravel."""
    try:
        return to_part(result, share=share)
    except BaseException as error:
        raise CannotTravel(f"could not pickle its result {short_repr(result)}", error) from error


def to_part(item: object, *, share: bool = False) -> object:
    """An item as it waits in a frame that will leave the process: itself if unchanging, else a tuple with its pickle.

    share: big buffers of it (of numpy arrays, say) may go into this process's arena: then the tuple also has their
        leases.
    """
    if type(item) in UNCHANGING:
        return item
    return _with_leases(item) if share else (encode(item),)


def _with_leases(item: object) -> tuple[bytes, tuple[Lease, ...]] | tuple[bytes]:
    data, buffers = encode_apart(item, LEAST_SHARED)
    if not buffers:
        return (data,)
    leases = own_store().store(buffers)
    return (encode(item),) if leases is None else (data, leases)


@dataclass(frozen=True, slots=True)
class Pickled:
    """Items that were pickled, each before its producer went on: a snapshot, and separable.

    body: the pickled parts; where it is large, it may be the last lease instead.
    leases: blocks with big buffers of the items.
    shared: others read the same blocks, so what is made of them is made over copies.
    """

    body: bytes | bytearray
    leases: tuple[Lease, ...] = ()
    shared: bool = False

    @classmethod
    def pack(cls, parts: list[object], *, plain: bool = False, share: bool = False) -> Pickled:
        """From the parts that `to_part` made; plain: none of them is known to be pickled by itself."""
        mixed = not plain and tuple in set(map(type, parts))
        leases: tuple[Lease, ...] = ()
        if mixed and share:
            parts, leases = _numbered(parts)
        body = pickle.dumps((mixed, parts), PROTOCOL)
        if share and len(body) >= LEAST_SHARED_BODY:
            stored = own_store().store([memoryview(body)])
            if stored is not None:
                return cls(b"", leases + stored)
        return cls(body, leases)

    def open(self) -> tuple[list[Any], Callable[[Any], object] | None]:
        mixed, parts = self._parts()
        if not mixed:
            return parts, None
        return parts, partial(_from_part, self.leases, copy=self.shared) if self.leases else _from_part_alone

    def shown(self, most: int) -> list[str]:
        """The first items as text, at most so many, without running code of theirs; of a large body, its size."""
        if self.size > 2 * MOST_BYTES:
            return [size_shown(self.size)]
        _, parts = self._parts()  # holds plain values and bytes
        return [shown(part[0]) if type(part) is tuple else short_repr(part) for part in parts[:most]]

    def rest(self, consumed: int) -> Pickled:
        mixed, parts = self._parts()
        return Pickled(pickle.dumps((mixed, parts[consumed:]), PROTOCOL), self.leases, self.shared)

    @property
    def size(self) -> int:
        return len(self.body) or self.leases[-1].size

    def _parts(self) -> tuple[bool, list[Any]]:
        mixed, parts = pickle.loads(self.body or self.leases[-1].view())
        return mixed, parts


def _numbered(parts: list[Any]) -> tuple[list[object], tuple[Lease, ...]]:
    """The parts with the numbers of their leases in place of these, and the leases."""
    leases: list[Lease] = []
    numbered: list[object] = []
    for part in parts:
        if type(part) is tuple and len(part) == 2:
            numbered.append((part[0], len(leases), len(leases) + len(part[1])))
            leases += part[1]
        else:
            numbered.append(part)
    return numbered, tuple(leases)


def _from_part(leases: Sequence[Lease], part: Any, *, copy: bool) -> object:
    if type(part) is not tuple or len(part) == 1:
        return _from_part_alone(part)
    data, first, end = part
    views = [lease.view() for lease in leases[first:end]]
    return decode(data, map(bytearray, views) if copy else views)


def _from_part_alone(part: Any) -> object:
    return decode(part[0]) if type(part) is tuple else part


@dataclass(frozen=True, slots=True)
class Frame:
    """Items that travel together.

    sequence: its number among the frames of its producer, from 0.
    count: number of items, at least 1.
    """

    sequence: int
    count: int
    payload: Sequence[Any] | Payload

    @property
    def size(self) -> int:
        """Bytes that it takes, where that is known, else 0: of objects it is not."""
        payload = self.payload
        return 0 if isinstance(payload, (list, tuple)) else payload.size  # type: ignore[union-attr]  # as in `open`

    def open(self) -> tuple[Sequence[Any], Callable[[Any], object] | None]:
        """The parts, one an item, and what turns a part into its item (None: it is the item)."""
        if isinstance(self.payload, list):
            return self.payload, None
        if isinstance(self.payload, tuple):
            # Another thread may ask its iterator how many are left, or empty it: a tuple's may crash without a GIL.
            return list(self.payload), None
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


#: For pipekit's own tests: the size of all frames, as far as their limits allow; 0: what `Pace` finds. From the
#: environment, so that worker processes have it, too.
FORCED_SIZE = int(os.environ.get("PIPEKIT_TEST_FRAME_SIZE", "0"))


class Pace:
    """How many items make about `seconds` of work, found by doubling and halving.

    Starts at one. Doubles after a full frame that took less than the target; halves after one that took more than
    twice; falls to one when a single item takes longer than the target, so that slow items are never batched.
    """

    __slots__ = ("limit", "seconds", "size")

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit = limit
        self.seconds = seconds
        self.size = min(FORCED_SIZE or 1, limit)

    def measured(self, count: int, seconds: float) -> None:
        """Take into account that `count` items took `seconds`."""
        if FORCED_SIZE:
            return
        if seconds >= self.seconds * count:
            self.size = 1
        elif seconds > 2 * self.seconds:
            self.size = min(self.size, max(1, count // 2))
        elif seconds < self.seconds and count >= self.size:
            self.size = min(2 * self.size, self.limit)
