"""Messages as bytes and back, without a socket."""

from __future__ import annotations

import pytest

from pipekit import TaskException
from pipekit._worker import describe
from pipekit.backends._wire import CHUNK, Message, MessageReader, Say, pack_failure, unpack_failure

MESSAGES = [
    Message(Say.END),
    Message(Say.FRAME, 3, 7, b"body"),
    Message(Say.FRAME, 1, 8, b"x" * (CHUNK - 1)),
    Message(Say.FRAME, 1, 9, b"y" * (5 * CHUNK + 11)),
    Message(Say.NEXT, 1 << 31, 1 << 40, b"z"),
    Message(Say.CREDIT, 5),
    Message(Say.FRAME, 2, 1, b"small", outbox=3),
    Message(Say.FRAME, 1, 2, b"w" * (2 * CHUNK), outbox=4),
    Message(Say.CREDIT, 0, outbox=(1 << 32) - 1),
]
STREAM = b"".join(bytes(buffer) for message in MESSAGES for buffer in message.buffers())


@pytest.mark.parametrize("step", [997, 4096, CHUNK - 1, CHUNK, len(STREAM)])
def test_messages_arrive_whole_however_the_bytes_are_cut(step: int) -> None:
    reader, arrived, position = MessageReader(), [], 0
    while position < len(STREAM):
        room = reader.buffer()
        size = min(step, len(room), len(STREAM) - position)
        room[:size] = STREAM[position : position + size]
        room.release()
        position += size
        arrived += reader.received(size)
    assert arrived == MESSAGES


@pytest.mark.parametrize("size", [0, 10, CHUNK, 3 * CHUNK])
def test_a_frame_says_for_which_outbox_it_is(size: int) -> None:
    """Also where its body is so large that it is received in place."""
    sent = [Message(Say.FRAME, 1, number, bytes([number]) * size, outbox=number) for number in (0, 1, 255, 7)]
    reader, arrived = MessageReader(), []
    stream = b"".join(bytes(buffer) for message in sent for buffer in message.buffers())
    while stream:
        with reader.buffer() as room:
            received = min(len(room), len(stream))
            room[:received] = stream[:received]
        stream = stream[received:]
        arrived += reader.received(received)
    assert arrived == sent


def test_byte_by_byte() -> None:
    reader, arrived = MessageReader(), []
    for byte in b"".join(bytes(buffer) for message in MESSAGES[:2] for buffer in message.buffers()):
        reader.buffer()[:1] = bytes([byte])
        arrived += reader.received(1)
    assert arrived == MESSAGES[:2]


class TwoArguments(Exception):
    """Pickles, and fails when unpickled: `args` holds one of the two."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first + second)


def test_a_failure_keeps_an_exception_that_survives_pickling() -> None:
    failure = unpack_failure(pack_failure(describe(ValueError("wrong"), "parse", "parse-0", "'item'")))
    assert isinstance(failure.exception, ValueError)
    assert failure.remote


def test_a_failure_travels_without_an_exception_that_does_not() -> None:
    failure = unpack_failure(pack_failure(describe(TwoArguments(1, 2), "parse", "parse-0", None)))
    assert failure.exception is None
    assert failure.type_name == "TwoArguments"
    assert issubclass(failure.kind, TaskException)
