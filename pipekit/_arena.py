"""Shared memory for big buffers: each process that writes has an arena, and the processes that read map it once.

    writer: store() ──> Lease ──> in a frame's payload, through the parent ──> Lease in the reader: view()
       ^                                                                              │ the last view dies
       └──────────────── the block is free again <── told along the way back <────────┘

A block belongs to whoever holds its lease: the payload on its way, or the objects that were made over a view of it. No
process waits for a block: when an arena is full, `store` says so and the buffer is copied into the frame instead.

Arenas are memfds (Linux): files without a name, gone with the last process that has them, however it ends.
"""

from __future__ import annotations

import mmap
import os
import threading
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pickle import PickleBuffer
from typing import Any

#: Bytes of an arena. Memory is used only for what has been written, once: blocks low in the arena are used first.
ARENA_SIZE = int(os.environ.get("PIPEKIT_SHARED_MEMORY", str(256 << 20)))
#: Buffers of fewer bytes travel in the frame itself: a lease costs about as much as to copy so much through a socket.
LEAST_SHARED = 1 << 16
#: Blocks begin at a page.
PAGE = 4096


class Space:
    """Which parts of an arena are free. Takes the first that is large enough: low memory is warm, its pages exist."""

    def __init__(self, size: int) -> None:
        self._free = [(0, size)]  # (offset, size), sorted, no two adjacent
        self._taken: dict[int, int] = {}

    def take(self, size: int) -> int | None:
        """The offset of a block of so many bytes, None if there is none."""
        needed = max(PAGE, -(-size // PAGE) * PAGE)
        for place, (offset, free) in enumerate(self._free):
            if free >= needed:
                rest = [(offset + needed, free - needed)] if free > needed else []
                self._free[place : place + 1] = rest
                self._taken[offset] = needed
                return offset
        return None

    def give(self, offset: int) -> None:
        """The block at this offset is free again."""
        size = self._taken.pop(offset)
        place = bisect_left(self._free, (offset, size))
        if place < len(self._free) and self._free[place][0] == offset + size:
            size += self._free.pop(place)[1]
        if place and sum(self._free[place - 1]) == offset:
            offset, before = self._free.pop(place - 1)
            size += before
            place -= 1
        self._free.insert(place, (offset, size))


class Arena:
    """An arena as one process sees it: a descriptor, and memory that is mapped when it is first needed."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    @cached_property
    def memory(self) -> mmap.mmap:
        """Its bytes. Where two threads map it at once, they have the same."""
        return mmap.mmap(self.descriptor, self.size)

    def __del__(self, close: Callable[[int], None] = os.close) -> None:  # at exit, `os` may be gone before an array
        close(self.descriptor)


class Lease:
    """A block of an arena that somebody holds. When it dies, its key is left in `released`, from any thread."""

    __slots__ = ("_key", "_released", "arena", "offset", "size")

    def __init__(self, arena: Arena, offset: int, size: int, released: deque[int], key: int) -> None:
        self.arena = arena
        self.offset = offset
        self.size = size
        self._key = key
        self._released: deque[int] | None = released

    def hand_over(self) -> None:
        """Another process holds it from now on, and says when it is free."""
        self._released = None

    def view(self) -> memoryview:
        """The block, writable, as memory that keeps the lease alive, and with it whatever is made over it."""
        memory = _exporter(self.arena.size).from_buffer(self.arena.memory)
        memory.lease = self
        return PickleBuffer(memory).raw()[self.offset : self.offset + self.size]

    def __del__(self) -> None:
        if self._released is not None:
            self._released.append(self._key)


@cache
def _exporter(size: int) -> Any:
    """A type whose objects lend out memory: views keep them alive, and with them their attributes.

    A memoryview cannot: others are made over it that keep only what it was made over. (Python 3.12 has `__buffer__`.)
    """
    from ctypes import c_ubyte  # only where big buffers come

    return type("_Memory", (c_ubyte * size,), {})


class Store:
    """The arena that this process writes to."""

    def __init__(self, size: int = ARENA_SIZE) -> None:
        descriptor = os.memfd_create("pipekit", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, size)
        self.arena = Arena(descriptor)
        self._space = Space(size)
        self._freed: deque[int] = deque()  # offsets; by destructors, which may interrupt whoever holds the lock
        self._lock = threading.Lock()

    def store(self, buffers: Sequence[memoryview]) -> tuple[Lease, ...] | None:
        """Copy the buffers into blocks; None if there is no room for all of them."""
        leases = []
        for buffer in buffers:
            with self._lock:
                self._reclaim()
                offset = self._space.take(buffer.nbytes)
            if offset is None:
                return None
            leases.append(Lease(self.arena, offset, buffer.nbytes, self._freed, offset))
            self.arena.memory[offset : offset + buffer.nbytes] = buffer
        return tuple(leases)

    def free(self, offsets: Sequence[int]) -> None:
        """The blocks at these offsets, whose leases were handed over, are free again."""
        self._freed.extend(offsets)

    def _reclaim(self) -> None:
        while self._freed:
            self._space.give(self._freed.popleft())


CAN_SHARE = hasattr(os, "memfd_create") and ARENA_SIZE >= LEAST_SHARED
_own: Store | None = None
_making = threading.Lock()


def own_store() -> Store:
    """The store of this process, made when first asked for."""
    global _own
    store = _own
    if store is None:
        with _making:
            store = _own = _own or Store()
    return store


def forget_own_store() -> None:
    """Let this process's arena go, once nobody holds a lease of it; who needs one makes another."""
    global _own
    _own = None


def _after_fork_in_child() -> None:
    """A forked process must not write to its parent's arena; and another thread may have held the lock."""
    global _making
    _making = threading.Lock()
    forget_own_store()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
