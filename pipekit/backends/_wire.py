"""What a remote worker and its parent say to each other, and for processes: messages as bytes and back. Does no I/O.

A message is a header - kind, outbox, count, sequence, length of the body, blocks before it - and a body. All that is
said is one of `Say`.

The worker asks for frames (NEXT) and the parent answers with a FRAME or END, and with more frames if there are plenty.
For each frame of results the worker needs a CREDIT, which the parent gives when an earlier frame, in the same outbox,
has found room in its queue. So neither side ever has more to write than the other is ready to read, and no message
waits behind a blocked one.
"""

from __future__ import annotations

import pickle
import socket
from array import array
from dataclasses import dataclass, replace
from enum import IntEnum
from struct import Struct
from typing import TypeAlias

from pipekit._errors import Failure
from pipekit._frame import Payload
from pipekit._pickling import PROTOCOL, decode, encode

HEADER = Struct("<BIIQQH")
#: A block of an arena that a frame refers to: the arena's number, offset and size. They stand before the body.
BLOCK = Struct("<IQQ")
#: What `outbox` says of a frame to a worker: it is one to have ahead; others read its blocks, too.
AHEAD, SHARED = 1, 2
#: Body of NEXT: items of the frame that was finished last (0: none), seconds of work and of waiting for room that it
#: took; frames wanted: one as soon as there is one, the others if there are plenty.
PROGRESS = Struct("<IddB")
#: Bytes that are asked of the socket at once; a body longer than this is received in place.
CHUNK = 1 << 16
#: Room for the descriptors that come with one reading: an ARENA comes alone, since no reading goes beyond one.
DESCRIPTORS = socket.CMSG_SPACE(4) if hasattr(socket, "CMSG_SPACE") else 0
#: Descriptors that come are not inherited by programs.
CLOSE_ON_EXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class Say(IntEnum):
    """Kinds of messages."""

    # parent to worker
    TASK = 1  # body: what to do; count: its outboxes
    CREDIT = 2  # more frames may be put into the outbox; sequence: how many; count: results that each should hold, 0:
    # nobody reads there; body: offsets of blocks in the worker's arena that are free again
    END = 3  # the end of the input
    STOP = 4  # nobody wants the results: stop
    ASK = 9  # say what you are doing; count: 1 for the item and the traceback, too
    LOGGED = 10  # count: log records that were handled
    # worker to parent
    NEXT = 5  # sequence: frames finished so far; count: items now taken for good; body: PROGRESS, and the numbers of
    # those blocks that it has got (the first is 0) which it does not hold any more
    DONE = 6  # finished or stopped; sequence: frames finished; count: items read of the next one
    FAILED = 7  # as DONE; body: the failure
    STATE = 11  # body: what it is doing, the answer to ASK
    LOG = 12  # body: a log record
    # both ways
    FRAME = 8  # count, sequence: of the frame; body: its payload; outbox: to the worker, AHEAD and SHARED
    ARENA = 13  # with a descriptor; to the worker: sequence: the arena's number; to the parent: the worker's own


_KINDS = frozenset(Say)
#: A header, unpacked.
_Head: TypeAlias = tuple[int, int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Message:
    kind: Say
    count: int = 0
    sequence: int = 0
    body: bytes | bytearray = b""
    outbox: int = 0
    blocks: bytes = b""
    descriptor: int | None = None
    #: What stands for the body, where a store that both sides reach has it.
    elsewhere: Payload | None = None

    def buffers(self) -> list[bytes | bytearray]:
        """What to send: one buffer, or two where joining them would copy a large body."""
        size, blocks = len(self.blocks) + len(self.body), len(self.blocks) // BLOCK.size
        head = HEADER.pack(self.kind, self.outbox, self.count, self.sequence, size, blocks) + self.blocks
        return [head + self.body] if len(self.body) < CHUNK else [head, self.body]


def descriptors_in(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that `recvmsg_into` brought beside the bytes."""
    found = array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


class MessageReader:
    """Turns received bytes into messages: receive into `buffer()`, then tell `received(n)`.

    Small messages are cut out of a chunk; a large body is received into its final place.

    last_words: what came instead of a message. A worker that crashes writes its stack there (see `_child.main`).
    """

    def __init__(self) -> None:
        self.last_words = bytearray()
        self._chunk = bytearray(CHUNK)
        self._pending = bytearray()  # received, less than a message
        self._head: _Head | None = None  # of the large message whose body is being received
        self._body = bytearray()
        self._filled = 0

    def buffer(self) -> memoryview:
        """Where to receive the next bytes."""
        if self._head is not None:
            return memoryview(self._body)[self._filled :]
        return memoryview(self._chunk)

    def received(self, size: int) -> list[Message]:
        """The messages that are complete now that `size` more bytes are in the buffer."""
        if self.last_words:
            self.last_words += memoryview(self._chunk)[:size]
            return []
        if self._head is None:
            self._pending += memoryview(self._chunk)[:size]
            return self._cut()
        self._filled += size
        if self._filled < len(self._body):
            return []
        message = _message(self._head, self._body)
        self._head, self._body, self._filled = None, bytearray(), 0
        return [message]

    def _cut(self) -> list[Message]:
        messages = []
        pending, start = self._pending, 0
        while len(pending) - start >= HEADER.size:
            head: _Head = HEADER.unpack_from(pending, start)
            if head[0] not in _KINDS:
                self.last_words += pending[start:]
                start = len(pending)
                break
            first, length = start + HEADER.size, head[4]
            if len(pending) - first < length:
                if length > CHUNK:
                    self._receive_in_place(head, length, memoryview(pending)[first:])
                    start = len(pending)
                break
            messages.append(_message(head, bytes(memoryview(pending)[first : first + length])))
            start = first + length
        del pending[:start]
        return messages

    def _receive_in_place(self, head: _Head, length: int, received: memoryview) -> None:
        self._head, self._body, self._filled = head, bytearray(length), len(received)
        self._body[: len(received)] = received
        received.release()


def _message(head: _Head, body: bytes | bytearray) -> Message:
    kind, outbox, count, sequence, _, blocks = head
    end = blocks * BLOCK.size
    return Message(Say(kind), count, sequence, body[end:] if end else body, outbox, bytes(body[:end]))


def pack_failure(failure: Failure) -> bytes:
    """A failure as a body: its text, and apart from it the exception, if it comes out of a pickle as it went in.

    An exception class whose `__init__` takes other arguments than `args` pickles, and fails when unpickled.
    """
    exception: bytes | None
    try:
        exception = encode(failure.exception)
        if type(decode(exception)) is not type(failure.exception):
            exception = None
    except BaseException:
        exception = None
    return pickle.dumps((replace(failure, exception=None, remote=True), exception), PROTOCOL)


def unpack_failure(body: bytes | bytearray) -> Failure:
    """The failure that was packed, without its exception if that cannot be unpickled here."""
    failure, exception = pickle.loads(body)
    assert isinstance(failure, Failure)
    if exception is None:
        return failure
    try:
        return replace(failure, exception=decode(exception))
    except BaseException:
        return failure
