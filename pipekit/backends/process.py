"""Workers that are processes of this machine: for Python code that computes.

    parent                                                     worker process
    channel ── _ProcessWorker (hub thread) ══ socket ══ receiver thread ── main thread: WorkerLoop

Each worker has a socket pair of its own and shares no queue, lock or semaphore with anybody: when it dies, however it
dies, its end of the pair closes, and nobody else is held up.
"""

from __future__ import annotations

import multiprocessing
import os
import selectors
import signal
import socket
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import connection
from typing import Any, NamedTuple, TypeAlias

from pipekit import _worker
from pipekit._arena import CAN_SHARE, forget_own_store
from pipekit._errors import BackendUnavailable, Failure, OptionError
from pipekit._public import public
from pipekit._signals import uninterrupted
from pipekit._task import Names, Task, worker_names
from pipekit._worker import Outcome
from pipekit.backends import _child
from pipekit.backends._base import Backend, Executor, Inbox, Outbox, Report, Worker
from pipekit.backends._hub import Hub
from pipekit.backends._launch import (
    FORK_SERVER_LOST,
    StartMethod,
    close_in_forks,
    default_start_method,
    exit_sentinel,
    flush_what_was_printed,
    start_fork_server,
    start_process,
    wait_until_made,
)
from pipekit.backends._logs import LogReceiver, log_levels
from pipekit.backends._remote import Prepared, RemoteWorker, fail_all, pickled_task
from pipekit.backends._wire import CLOSE_ON_EXEC, DESCRIPTORS, Message, MessageReader, Say, descriptors_in

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
#: Buffers that one system call sends (POSIX allows at least 16).
MAX_BUFFERS = 16
#: Items of a dead worker that its error shows.
ITEMS_SHOWN = 3
#: Workers that may be asked for and not made yet: the descriptors that are on their way to the fork server count.
ASKED_AHEAD = 16
#: Seconds that a process which is about to end gets for it.
EXIT_SECONDS = 1.0


@public
@dataclass(frozen=True, slots=True)
class ProcessBackend(Backend):
    """Run each worker in a process of its own. Items are pickled.

    Args:
        start_method: how processes are started: "forkserver" (the default on Linux), "spawn" (the default elsewhere),
            or "fork", which copies the calling process with its threads' locks as they are: only when you know that
            none of them is held.

    Raises:
        OptionError: there is no such start method.
    """

    start_method: StartMethod | None = None
    name = "process"
    remote = True
    fuses = True
    shares_memory = CAN_SHARE

    def __post_init__(self) -> None:
        known = ("forkserver", "spawn", "fork", None)
        if self.start_method not in known:
            raise OptionError(f"start_method={self.start_method!r} cannot work: use 'forkserver', 'spawn' or 'fork'")

    def prepare(self, task: Task) -> Prepared:
        method = self._method()
        if method not in multiprocessing.get_all_start_methods():
            raise BackendUnavailable(f"this system cannot start processes by {method!r}: use 'spawn'")
        return Prepared([step.stage for step in task.steps], pickled_task(task), task.stored)

    def executor(self) -> Executor:
        return _ProcessExecutor(self._method())

    def warm_up(self) -> None:
        if self._method() == "forkserver":
            start_fork_server()

    def _method(self) -> StartMethod:
        return self.start_method or default_start_method()


class _ProcessExecutor(Executor):
    def __init__(self, method: StartMethod) -> None:
        self._context = multiprocessing.get_context(method)
        if method == "fork":
            import logging.handlers  # noqa: F401  # once, or each worker would
        self._workers: list[_ProcessWorker] = []
        self._hub = Hub(partial(fail_all, self._workers))
        self._logs = LogReceiver()

    def open(
        self,
        prepared: Prepared,
        name: str,
        inbox: Inbox | None,
        outboxes: Sequence[Outbox],
        report: Report,
    ) -> Worker:
        names = worker_names(prepared.stages, name)
        if len(self._workers) >= ASKED_AHEAD:
            self._workers[-ASKED_AHEAD].wait_until_made()
        if not self._workers and self._context.get_start_method() != "fork":
            flush_what_was_printed()
        ours, theirs = socket.socketpair()
        close_in_forks(ours)
        theirs.setblocking(True)  # it is not so where the program has called socket.setdefaulttimeout
        with uninterrupted():  # until `close` knows whom it has to end
            try:
                process = start_process(self._context, name, _child.main, (theirs, names, log_levels()))
            except BaseException:
                ours.close()
                raise
            finally:
                theirs.close()
            worker = _ProcessWorker(process, ours, self._hub, self._logs, names, inbox, outboxes, report)
            self._workers.append(worker)
        worker.greet(prepared.task)
        worker.flush()
        return worker

    def start(self) -> None:
        for worker in self._workers:
            worker.watch()
        self._hub.start()

    def close(self) -> None:
        self._hub.close()
        self._logs.close()
        for worker in self._workers:
            worker.close()
        self._workers.clear()  # and with them what refers back to the run: it goes without waiting for a collection
        forget_own_store()


class _ProcessWorker(RemoteWorker):
    """The parent's side of a worker process."""

    def __init__(
        self,
        process: Any,
        ours: socket.socket,
        hub: Hub,
        logs: LogReceiver,
        names: Names,
        inbox: Inbox | None,
        outboxes: Sequence[Outbox],
        report: Report,
    ) -> None:
        super().__init__(hub, logs, names, inbox, outboxes, report)
        ours.setblocking(False)
        self._process = process
        self._sentinel = exit_sentinel(process)
        self._socket = ours
        self._messages = MessageReader()
        self._descriptors: deque[int] = deque()  # that have come, for messages that are still to be handled
        self._unsent: deque[_Unsent] = deque()
        self._watched = 0  # events of the socket that the hub watches
        self._killed = False
        self._gone = threading.Event()

    # -- from any thread

    def kill(self) -> None:
        self._killed = True
        if self._hub.is_running:
            self._hub.call(self._kill)
        else:
            self._kill()

    def join(self, timeout: float) -> bool:
        if self._hub.is_running:
            return self._gone.wait(timeout)
        return self._gone.is_set() or bool(connection.wait([self._sentinel], timeout))

    def close(self) -> None:
        """Release what is left; the hub has ended."""
        if not self._gone.is_set() and self._process.exitcode is None:  # a run that did not come to start it
            self._kill()
            self._process.join(EXIT_SECONDS)
        if self._sentinel != self._process.sentinel:
            os.close(self._sentinel)
        if self._process.exitcode is not None:
            self._process.close()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._socket.close()
        self.release()

    def wait_until_made(self) -> None:
        wait_until_made(self._process)

    # -- bytes

    def watch(self) -> None:
        """Begin to listen; called before the hub's thread starts. Raises OSError if it could not be made."""
        self.wait_until_made()
        self._hub.watch(self._sentinel, READ, self._on_exit)
        self._watch_socket()

    def send(self, message: Message) -> None:
        """Queue a message; what one pass of the hub brings together goes out together."""
        if not self._gone.is_set():
            buffers = message.buffers()
            self._unsent.extend(buffers if message.descriptor is None else [_Beside(buffers[0], message.descriptor)])
            self._hub.call_afterwards(self.flush)

    def flush(self) -> None:
        try:
            while self._unsent:
                if isinstance(self._unsent[0], _Beside):
                    head, descriptor = self._unsent[0]
                    size = socket.send_fds(self._socket, [head], [descriptor])
                    self._unsent[0] = head
                else:
                    size = self._socket.sendmsg(self._plain_buffers())
                self._drop_sent(size)
        except BlockingIOError:
            pass
        except OSError as error:  # it has closed its end, which is no death: what it has said is still to be read
            if error.errno is None:  # or a signal handler's TimeoutError, in the main thread
                raise
            self._unsent.clear()
        self._watch_socket()

    def _plain_buffers(self) -> list[bytes | bytearray | memoryview]:
        """The next ones that nothing is to be sent beside."""
        buffers: list[bytes | bytearray | memoryview] = []
        for buffer in islice(self._unsent, MAX_BUFFERS):
            if isinstance(buffer, _Beside):
                break
            buffers.append(buffer)
        return buffers

    def _drop_sent(self, size: int) -> None:
        while size:
            buffer = self._unsent[0]
            assert not isinstance(buffer, _Beside)
            if size < len(buffer):
                self._unsent[0] = memoryview(buffer)[size:]
                return
            size -= len(buffer)
            self._unsent.popleft()

    def _watch_socket(self) -> None:
        events = READ | WRITE if self._unsent else READ
        if events != self._watched and not self._gone.is_set():
            self._watched = events
            self._hub.watch(self._socket, events, self._on_socket)

    def _on_socket(self, events: int) -> None:
        if events & WRITE:
            self.flush()
        if events & READ and self._receive() == 0:
            self._on_hang_up()

    def _receive(self) -> int | None:
        """Handle what has come; the number of bytes, 0 at the end, None if nothing has come."""
        try:
            size, beside, _, _ = self._socket.recvmsg_into([self._messages.buffer()], DESCRIPTORS, CLOSE_ON_EXEC)
        except BlockingIOError:
            return None
        except OSError:
            return 0
        if beside:
            self._descriptors.extend(descriptors_in(beside))
        for message in self._messages.received(size) if size else ():
            self.handle(message)
        return size

    def handle(self, message: Message) -> None:
        if message.kind is Say.ARENA:
            self._blocks.opened(self._descriptors.popleft())
        else:
            super().handle(message)

    # -- the end

    def _on_hang_up(self) -> None:
        """It has closed its end of the socket, so it is exiting; one that only did that is of no use any more."""
        self._hub.forget(self._socket)
        if not self._reported:
            self._kill()

    def _on_exit(self, _: int) -> None:
        self._hub.forget(self._sentinel)
        while self._receive():  # what it said before
            pass
        self._hub.forget(self._socket)
        if self._process.exitcode is None:  # the sentinel closes a moment before the process can be waited for
            self._kill()
            self._process.join(EXIT_SECONDS)
        self._blocks.clear()
        self._gone.set()
        if not self._reported:
            self._report_once(Outcome() if self._killed else Outcome(self._death()))

    def _kill(self) -> None:
        if self._process.exitcode is None:
            self._process.kill()

    def _death(self) -> Failure:
        crash = self._last_words()
        status = _exit_status(self._process.exitcode, "its stack is above" if crash else "where is not known")
        return self._died(status, pid=self._process.pid, traceback=crash)

    def _last_words(self) -> str:
        """Where native code crashed: Python's stack, without pipekit's part of it."""
        text = self._messages.last_words.decode(errors="replace")
        for file in _worker.LOOP_FILES:
            text = text.partition(f'  File "{file}"')[0]
        return text


class _Beside(NamedTuple):
    """Bytes that are sent with a descriptor beside them."""

    head: bytes | bytearray
    descriptor: int


_Unsent: TypeAlias = bytes | bytearray | memoryview | _Beside


def _exit_status(status: int | None, where: str) -> str:
    """An exit status as multiprocessing gives it (-9: by signal 9), in words, with the likely cause.

    where: what is known of the place where native code crashed.
    """
    if status is None:
        return "its exit status is not known"
    if status == FORK_SERVER_LOST:
        return "it exited with status 255, or the fork server, which knows the status, was killed"
    if status >= 0:
        how = "its code called os._exit, or closed pipekit's connection, or native code did so"
        if status == 1:
            how = f"an exception, which is on stderr, has cut off what it said to this process; or {how}"
        return f"it exited with status {status} before it had finished: {how}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = "unknown"
    return f"killed by signal {-status} ({name}{_CAUSES.get(name, '').format(where)})"


_CRASH = ", a crash in native code: {}"
_CAUSES = {
    "SIGKILL": ", usually the out-of-memory killer: check the memory that its items need, or use fewer workers",
    "SIGTERM": ", somebody asked it to end",
    **dict.fromkeys(("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"), _CRASH),
}
