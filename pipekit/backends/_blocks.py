"""The blocks of shared memory that a process worker and its parent hold for each other. Does no I/O.

The parent knows all leases. A frame that goes to a worker takes its leases along as numbers, and the parent keeps them
until the worker has said that it holds them no more, or has ended. A frame that comes from a worker brings blocks of
that worker's own arena, and the worker hears, with a credit, which of these are free again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from struct import Struct

from pipekit._arena import Arena, Lease
from pipekit.backends._wire import BLOCK, Message, Say

_NUMBER = Struct("<Q")


class ParentsBlocks:
    """What the parent knows of one worker's blocks."""

    def __init__(self) -> None:
        self._own: Arena | None = None  # the worker's
        self._freed: deque[int] = deque()  # offsets in it; also by destructors, from any thread
        self._numbers: dict[Arena, int] = {}  # of the arenas that the worker has
        self._lent: dict[int, Lease] = {}
        self._lent_so_far = 0

    def opened(self, descriptor: int) -> None:
        """The worker has an arena of its own."""
        self._own = Arena(descriptor)

    def received(self, blocks: bytes) -> tuple[Lease, ...]:
        """Leases of the blocks that a frame of the worker has brought."""
        leases = []
        for _, offset, size in BLOCK.iter_unpack(blocks):
            assert self._own is not None
            leases.append(Lease(self._own, offset, size, self._freed, offset))
        return tuple(leases)

    def free(self) -> bytes:
        """The worker's blocks that are free again since the last call, packed."""
        return _packed(self._freed)

    def announce(self, leases: Sequence[Lease]) -> Iterator[Message]:
        """What the worker must hear before a frame with these leases: the arenas that are new to it."""
        for lease in leases:
            if lease.arena not in self._numbers:
                number = self._numbers[lease.arena] = len(self._numbers)
                yield Message(Say.ARENA, sequence=number, descriptor=lease.arena.descriptor)

    def lend(self, leases: Sequence[Lease]) -> bytes:
        """The blocks, for a frame to the worker."""
        for lease in leases:
            self._lent[self._lent_so_far] = lease
            self._lent_so_far += 1
        return b"".join(BLOCK.pack(self._numbers[lease.arena], lease.offset, lease.size) for lease in leases)

    def returned(self, numbers: bytes | bytearray) -> None:
        """The worker holds these no more."""
        for (number,) in _NUMBER.iter_unpack(numbers):
            del self._lent[number]

    def clear(self) -> None:
        """The worker is gone."""
        self._lent.clear()
        self._numbers.clear()
        self._own = None


class WorkersBlocks:
    """What a worker knows of the blocks that it has got."""

    def __init__(self) -> None:
        self._arenas: dict[int, Arena] = {}
        self._dropped: deque[int] = deque()  # numbers of blocks; also by destructors, from any thread
        self._got = 0

    def opened(self, number: int, descriptor: int) -> None:
        """An arena is known by this number."""
        self._arenas[number] = Arena(descriptor)

    def received(self, blocks: bytes) -> tuple[Lease, ...]:
        """Leases of the blocks that a frame has brought."""
        leases = []
        for number, offset, size in BLOCK.iter_unpack(blocks):
            leases.append(Lease(self._arenas[number], offset, size, self._dropped, self._got))
            self._got += 1
        return tuple(leases)

    def dropped(self) -> bytes:
        """The numbers of those that it holds no more, since the last call, packed."""
        return _packed(self._dropped)


def own_blocks(leases: Sequence[Lease]) -> bytes:
    """The blocks of a worker's own arena, for a frame to the parent."""
    return b"".join(BLOCK.pack(0, lease.offset, lease.size) for lease in leases)


def unpacked(offsets: bytes | bytearray) -> list[int]:
    """What `ParentsBlocks.free` has packed."""
    return [offset for (offset,) in _NUMBER.iter_unpack(offsets)]


def _packed(numbers: deque[int]) -> bytes:
    taken = bytearray()
    while numbers:
        taken += _NUMBER.pack(numbers.popleft())
    return bytes(taken)
