"""The worker's side of the process backend: what runs in a worker process.

The main thread runs the stage. A receiver thread reads the socket, so that a stop and the death of the parent are
noticed while the stage's function is busy.
"""

from __future__ import annotations

import errno
import faulthandler
import os
import signal
import socket
import sys
import threading
from collections import deque
from contextlib import suppress
from io import TextIOWrapper
from time import sleep

from pipekit._arena import own_store
from pipekit._errors import Released
from pipekit._live import stop_all
from pipekit._output import Flusher
from pipekit._task import Names
from pipekit._worker import Outcome, describe
from pipekit.backends._link import Link, run_task
from pipekit.backends._logs import Levels, forward_logs
from pipekit.backends._wire import CLOSE_ON_EXEC, DESCRIPTORS, Message, MessageReader, Say, descriptors_in

#: Seconds that a stage gets for its `finally` blocks after the parent has died.
ORPHAN_GRACE = 1.0
#: How a send fails where it has. (EBADF: in a process that the stage has forked.)
PARENT_HAS_GONE = (errno.EPIPE, errno.ECONNRESET, errno.EBADF)


def main(connection: socket.socket, names: Names, levels: Levels | None) -> None:
    """Run one worker. Ctrl-C is the parent's affair: the process starts with SIGINT blocked, and ignores it."""
    signal.signal(signal.SIGINT, _ignore)  # not SIG_IGN, which programs that the stage starts would inherit
    if callable(signal.getsignal(signal.SIGTERM)):  # a fork has the handler of the program
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)  # ... and would wake the program's event loop
    if hasattr(os, "register_at_fork"):  # a process forked by the stage must not keep the connection open
        os.register_at_fork(after_in_child=connection.close)
    connection.set_inheritable(False)  # nor one that it starts
    # Where native code crashes, its stack is the last that the parent hears, unless the program wants it elsewhere.
    # (In development mode Python writes it to stderr, in every process.)
    if not faulthandler.is_enabled() or sys.flags.dev_mode:
        faulthandler.enable(connection.fileno(), all_threads=False)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=faulthandler.disable)
    if hasattr(signal, "pthread_sigmask"):  # not on Windows
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if isinstance(sys.stdout, TextIOWrapper):  # what was printed arrives, also if this process is killed
        sys.stdout.reconfigure(line_buffering=True)
    link = _SocketLink(connection, names)
    forward_logs(levels, link.names, link.log)
    try:
        task = link.first()
    except (EOFError, OSError):  # the parent has gone, or was interrupted while it started this worker
        return
    except RuntimeError as error:  # no more threads to be had
        link.finish(Outcome(describe(error, *names[0], None, did="could not be started:")))
        return
    flusher = Flusher()
    outcome = run_task(link, task, names, levels, flusher)
    flusher.stop()
    stop_all()  # pipelines that the stage has left running
    with suppress(Released):
        link.finish(outcome)
    if link.cut_off is not None:
        raise link.cut_off


def _ignore(signal_number: int, frame: object) -> None:
    pass


class _SocketLink(Link):
    """The connection by a socket: who may send."""

    def __init__(self, connection: socket.socket, names: Names) -> None:
        super().__init__(names)
        self._connection = connection
        self._messages = MessageReader()
        self._descriptors: deque[int] = deque()  # that have come, for messages that are still to be handled
        self._shows_arena = False  # the parent has got this process's arena
        self._unsent: deque[Message] = deque()
        # Re-entrant, with `_busy`: a destructor or signal handler may log in the middle of a send.
        self._sending = threading.RLock()
        self._busy = False
        self.cut_off: BaseException | None = None  # what has come in the middle of a message

    def first(self) -> Message:
        """The parent's first message, the task; then the receiver takes over."""
        messages: list[Message] = []
        while not messages:
            messages = self._receive()
        self.open_writers(messages[0])
        receiver = threading.Thread(target=self._serve, args=(messages[1:],), name="pipekit-receiver", daemon=True)
        receiver.start()
        return messages[0]

    def send(self, message: Message) -> None:
        """Send a message. One that an exception cuts off, a signal handler's say, is the last: the worker has died."""
        with self._sending:
            if self.cut_off is not None:
                raise Released
            if message.blocks and not self._shows_arena:
                self._shows_arena = True
                self._unsent.append(Message(Say.ARENA, descriptor=own_store().arena.descriptor))
            self._unsent.append(message)
            if self._busy:  # this thread is in the middle of a message: it sends this one after it
                return
            self._busy = True
            try:
                while self._unsent:
                    self._send_now(self._unsent.popleft())
            except BaseException as error:
                if isinstance(error, OSError) and error.errno in PARENT_HAS_GONE:  # the receiver sees it too
                    raise Released from error
                self.cut_off = error
                raise
            finally:
                self._busy = False

    def _send_now(self, message: Message) -> None:
        if message.descriptor is not None:
            socket.send_fds(self._connection, message.buffers(), [message.descriptor])
            return
        for buffer in message.buffers():
            self._connection.sendall(buffer)

    def _receive(self) -> list[Message]:
        size, beside, _, _ = self._connection.recvmsg_into([self._messages.buffer()], DESCRIPTORS, CLOSE_ON_EXEC)
        if size == 0:
            raise EOFError
        if beside:
            self._descriptors.extend(descriptors_in(beside))
        return self._messages.received(size)

    def _serve(self, messages: list[Message]) -> None:
        self.hears_in_this_thread()
        try:
            while True:
                for message in messages:
                    self.handle(message)
                messages = self._receive()
        except (EOFError, OSError):
            self._orphaned()
        except BaseException as error:  # no memory for an item, say: without a receiver, the stage would wait for ever
            failure = describe(error, *self._names[0], None, did="could not receive an item:")
            with self._sending:
                with suppress(Released):
                    self.finish(Outcome(failure))
                self._hang_up()  # these were the last words
            self._orphaned()

    def handle(self, message: Message) -> None:
        if message.kind is Say.ARENA:
            self.blocks.opened(message.sequence, self._descriptors.popleft())
        else:
            super().handle(message)

    def _orphaned(self) -> None:
        """The parent is gone, or has given this worker up: stop the stage, then end, whatever it does."""
        self._hang_up()  # a stage that ends now must not report that it has finished
        self.stop()
        sleep(ORPHAN_GRACE)  # this thread is a daemon: a process that ends by itself does not wait for it
        os._exit(1)

    def _hang_up(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
