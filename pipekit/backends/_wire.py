"""What a process worker and its parent say to each other: messages as bytes and back. Does no I/O.

A message is a header - kind, outbox, count, sequence, length of the body - and a body. All that is said is one of
`Say`.

The worker asks for frames (NEXT) and the parent answers with a FRAME or END, and with more frames if there are plenty.
For each frame of results the worker needs a CREDIT, which the parent gives when an earlier frame, in the same outbox,
has found room in its queue. So neither side ever has more to write than the other is ready to read, and no message
waits behind a blocked one.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from enum import IntEnum
from struct import Struct

from pipekit._errors import Failure
from pipekit._pickling import PROTOCOL, decode, encode

HEADER = Struct("<BIIQQ")
#: Body of NEXT: items of the frame that was finished last (0: none), seconds of work and of waiting for room that it
#: took; frames wanted: one as soon as there is one, the others if there are plenty.
PROGRESS = Struct("<IddB")
#: Bytes that are asked of the socket at once; a body longer than this is received in place.
CHUNK = 1 << 16


class Say(IntEnum):
    """Kinds of messages."""

    # parent to worker
    TASK = 1  # body: what to do; count: its outboxes
    CREDIT = 2  # one more frame may be put into the outbox; count: results that it should hold, 0: nobody reads there
    END = 3  # the end of the input
    STOP = 4  # nobody wants the results: stop
    ASK = 9  # say what you are doing; count: 1 for the item and the traceback, too
    LOGGED = 10  # count: log records that were handled
    # worker to parent
    NEXT = 5  # sequence: frames finished so far; count: items now taken for good; body: PROGRESS
    DONE = 6  # finished or stopped; sequence: frames finished; count: items read of the next one
    FAILED = 7  # as DONE; body: the failure
    STATE = 11  # body: what it is doing, the answer to ASK
    LOG = 12  # body: a log record
    # both ways
    FRAME = 8  # count, sequence: of the frame; body: its payload; outbox: to the worker, 1 for what it has ahead


_KINDS = frozenset(Say)


@dataclass(frozen=True, slots=True)
class Message:
    kind: Say
    count: int = 0
    sequence: int = 0
    body: bytes | bytearray = b""
    outbox: int = 0

    def buffers(self) -> list[bytes | bytearray]:
        """What to send: one buffer, or two where joining them would copy a large body."""
        head = HEADER.pack(self.kind, self.outbox, self.count, self.sequence, len(self.body))
        return [head + self.body] if len(self.body) < CHUNK else [head, self.body]


class MessageReader:
    """Turns received bytes into messages: receive into `buffer()`, then tell `received(n)`.

    Small messages are cut out of a chunk; a large body is received into its final place.

    last_words: what came instead of a message. A worker that crashes writes its stack there (see `_child.main`).
    """

    def __init__(self) -> None:
        self.last_words = bytearray()
        self._chunk = bytearray(CHUNK)
        self._pending = bytearray()  # received, less than a message
        self._head: tuple[int, int, int, int] | None = None  # of the large message whose body is being received
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
        kind, outbox, count, sequence = self._head
        message = Message(Say(kind), count, sequence, self._body, outbox)
        self._head, self._body, self._filled = None, bytearray(), 0
        return [message]

    def _cut(self) -> list[Message]:
        messages = []
        pending, start = self._pending, 0
        while len(pending) - start >= HEADER.size:
            kind, outbox, count, sequence, length = HEADER.unpack_from(pending, start)
            if kind not in _KINDS:
                self.last_words += pending[start:]
                start = len(pending)
                break
            first = start + HEADER.size
            if len(pending) - first < length:
                if length > CHUNK:
                    head = (kind, outbox, count, sequence)
                    self._receive_in_place(head, length, memoryview(pending)[first:])
                    start = len(pending)
                break
            body = bytes(memoryview(pending)[first : first + length])
            messages.append(Message(Say(kind), count, sequence, body, outbox))
            start = first + length
        del pending[:start]
        return messages

    def _receive_in_place(self, head: tuple[int, int, int, int], length: int, received: memoryview) -> None:
        self._head, self._body, self._filled = head, bytearray(length), len(received)
        self._body[: len(received)] = received
        received.release()


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
