"""Workers that are processes of this machine: for Python code that computes.

    parent                                                     worker process
    channel ── _ProcessWorker (hub thread) ══ socket ══ receiver thread ── main thread: WorkerLoop

Each worker has a socket pair of its own and shares no queue, lock or semaphore with anybody: when it dies, however it
dies, its end of the pair closes, and nobody else is held up.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import selectors
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import connection
from typing import Any

from pipekit import _worker
from pipekit._edge import Signal
from pipekit._errors import (
    BackendUnavailable,
    Failure,
    NotPicklable,
    OptionError,
    WorkerDied,
    short_repr,
)
from pipekit._frame import Frame, Pickled, to_part
from pipekit._pickling import encode_by_value, encode_task
from pipekit._public import public
from pipekit._stats import Doing, WorkerState
from pipekit._task import Task
from pipekit._worker import Outcome, describe
from pipekit.backends import _child
from pipekit.backends._base import Answer, Backend, Executor, Inbox, Outbox, Report, Worker
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
from pipekit.backends._wire import PROGRESS, Message, MessageReader, Say, unpack_failure

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

    def __post_init__(self) -> None:
        known = ("forkserver", "spawn", "fork", None)
        if self.start_method not in known:
            raise OptionError(f"start_method={self.start_method!r} cannot work: use 'forkserver', 'spawn' or 'fork'")

    def prepare(self, task: Task) -> tuple[str, bytes]:
        method = self._method()
        if method not in multiprocessing.get_all_start_methods():
            raise BackendUnavailable(f"this system cannot start processes by {method!r}: use 'spawn'")
        try:
            return task.stage, encode_task(task)
        except Exception as error:
            raise NotPicklable(f"stage {task.stage!r} cannot be sent to a process: {_culprit(task, error)}") from error

    def executor(self) -> Executor:
        return _ProcessExecutor(self._method())

    def warm_up(self) -> None:
        if self._method() == "forkserver":
            start_fork_server()

    def _method(self) -> StartMethod:
        return self.start_method or default_start_method()


def _culprit(task: Task, error: Exception) -> str:
    """Which part of a task does not pickle, and what to do."""
    advice = 'create it inside the function, or run the stage with backend="thread"'
    for name, value in [*enumerate(task.args, start=1), *task.kwargs.items()]:
        try:
            encode_by_value(value)
        except Exception as reason:
            return f"its argument {name} is {short_repr(value)} and cannot be pickled ({reason}); {advice}"
    try:
        encode_by_value(task.outlet)
    except Exception as reason:
        return f"what chooses where its results go, a `route` or `key`, cannot be pickled ({reason}); {advice}"
    return f"something that its function uses cannot be pickled ({error}); {advice}"


class _ProcessExecutor(Executor):
    def __init__(self, method: StartMethod) -> None:
        self._context = multiprocessing.get_context(method)
        if method == "fork":
            import logging.handlers  # noqa: F401  # once, or each worker would
        self._hub = Hub(self._on_error)
        self._logs = LogReceiver()
        self._workers: list[_ProcessWorker] = []

    def open(
        self,
        prepared: tuple[str, bytes],
        name: str,
        inbox: Inbox | None,
        outboxes: Sequence[Outbox],
        report: Report,
    ) -> Worker:
        stage, task = prepared
        if len(self._workers) >= ASKED_AHEAD:
            self._workers[-ASKED_AHEAD].wait_until_made()
        if not self._workers and self._context.get_start_method() != "fork":
            flush_what_was_printed()
        ours, theirs = socket.socketpair()
        close_in_forks(ours)
        theirs.setblocking(True)  # it is not so where the program has called socket.setdefaulttimeout
        try:
            process = start_process(self._context, name, _child.main, (theirs, stage, name, log_levels()))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        worker = _ProcessWorker(process, ours, self._hub, self._logs, stage, name, inbox, outboxes, report)
        self._workers.append(worker)  # at once: a Ctrl-C may come before the run knows it, and `close` ends it then
        worker.send(Message(Say.TASK, len(outboxes), body=task))
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

    def _on_error(self, error: BaseException) -> None:
        """A callback of the hub raised: an error in pipekit or in a payload's code. The run fails, it does not hang."""
        for worker in self._workers:
            worker.fail(error)


class _ProcessWorker(Worker):
    """The parent's side of a worker process. Everything but `abort`, `kill`, `join` runs in the hub's thread."""

    def __init__(
        self,
        process: Any,
        ours: socket.socket,
        hub: Hub,
        logs: LogReceiver,
        stage: str,
        name: str,
        inbox: Inbox | None,
        outboxes: Sequence[Outbox],
        report: Report,
    ) -> None:
        ours.setblocking(False)
        self._process = process
        self._sentinel = exit_sentinel(process)
        self._socket = ours
        self._hub = hub
        self._logs = logs
        self._stage = stage
        self._name = name
        self._inbox = inbox
        self._outboxes = outboxes
        self._closed: set[int] = set()  # outboxes where nobody reads any more
        self._report = report
        self._messages = MessageReader()
        self._unsent: deque[bytes | bytearray | memoryview] = deque()
        self._watched = 0  # events of the socket that the hub watches
        self._lent: deque[Frame] = deque()  # frames at the worker, not finished; kept to name or give back their items
        self._lent_items = 0  # items that the inbox counts as lent
        self._frames_finished = 0
        self._asked: deque[Answer] = deque()  # who waits for its answers to ASK
        self._reported = False
        self._killed = False
        self._gone = threading.Event()
        self._reader = _Waiter(hub, self._on_input)
        self._writers = [_Waiter(hub, partial(self._on_put, outbox)) for outbox in range(len(outboxes))]

    # -- from any thread

    def abort(self) -> None:
        self._hub.call(partial(self.send, Message(Say.STOP)))

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

    def inquire(self, answer: Answer, *, detail: bool) -> None:
        self._hub.call(partial(self._ask, answer, detail))

    def close(self) -> None:
        """Release what is left; the hub has ended."""
        if not self._gone.is_set() and self._process.exitcode is None:  # a run that did not come to start it
            self._kill()
            self._process.join(EXIT_SECONDS)
        if self._sentinel != self._process.sentinel:
            os.close(self._sentinel)
        if self._process.exitcode is not None:
            self._process.close()
        self._socket.close()

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
            self._unsent.extend(message.buffers())
            self._hub.call_afterwards(self.flush)

    def flush(self) -> None:
        try:
            while self._unsent:
                self._drop_sent(self._socket.sendmsg(islice(self._unsent, MAX_BUFFERS)))
        except BlockingIOError:
            pass
        except OSError:  # it has closed its end, which is no death: what it has said is still to be read
            self._unsent.clear()
        self._watch_socket()

    def _drop_sent(self, size: int) -> None:
        while size:
            buffer = self._unsent[0]
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
            size = self._socket.recv_into(self._messages.buffer())
        except BlockingIOError:
            return None
        except OSError:
            return 0
        for message in self._messages.received(size) if size else ():
            self._handle(message)
        return size

    # -- messages

    def _handle(self, message: Message) -> None:
        if message.kind is Say.FRAME:
            frame = Frame(message.sequence, message.count, Pickled(message.body))
            outbox = message.outbox
            self._on_put(outbox, self._outboxes[outbox].put(self._writers[outbox], frame))
        elif message.kind is Say.NEXT:
            self._on_next(message)
        elif message.kind is Say.LOG:
            self._logs.put(bytes(message.body), self._logged)
        elif message.kind is Say.STATE:
            self._asked.popleft()(pickle.loads(message.body))
        elif message.kind is Say.DONE:
            self._end(Outcome(), message)
        elif message.kind is Say.FAILED:
            self._end(Outcome(unpack_failure(message.body)), message)

    def _logged(self) -> None:
        """A log record was handled; called from the thread that did it."""
        self._hub.call(partial(self.send, Message(Say.LOGGED, 1)))

    def _ask(self, answer: Answer, detail: bool) -> None:
        if self._reported:
            answer(WorkerState(self._stage, self._name, Doing.ENDED))
        else:
            self._asked.append(answer)
            self.send(Message(Say.ASK, int(detail)))

    def _on_put(self, outbox: int, answer: Frame | Signal | None) -> None:
        if answer is None:
            return
        if answer is Signal.CLOSED:
            self._closed.add(outbox)
        if answer is Signal.CANCELLED or len(self._closed) == len(self._outboxes):
            self.send(Message(Say.STOP))
        else:
            size = 0 if answer is Signal.CLOSED else self._outboxes[outbox].frame_size
            self.send(Message(Say.CREDIT, size, outbox=outbox))

    def _on_next(self, message: Message) -> None:
        assert self._inbox is not None
        items, seconds, asks = PROGRESS.unpack(message.body)
        self._drop_finished(message.sequence)
        if items:
            self._inbox.measured(items, seconds)
        if message.count:
            self._lent_items -= message.count
            self._inbox.taken(message.count)
        if asks:
            self._on_input(self._inbox.get(self._reader))

    def _on_input(self, answer: Frame | Signal | None) -> None:
        if self._reported and isinstance(answer, Frame):  # it was on its way when the worker left
            assert self._inbox is not None
            self._inbox.give_back(answer.count, (answer,))
        elif isinstance(answer, Frame):
            self._lent.append(answer)
            self._lent_items += answer.count
            self.send(Message(Say.FRAME, answer.count, answer.sequence, _body(answer)))
        elif answer is Signal.END:
            self.send(Message(Say.END))
        elif answer is not None:
            self.send(Message(Say.STOP))

    def _drop_finished(self, finished: int) -> None:
        while self._frames_finished < finished:
            self._frames_finished += 1
            self._lent.popleft()

    # -- the end

    def _end(self, outcome: Outcome, message: Message) -> None:
        """It has reported its end: what it has not read goes back, for others to read."""
        self._drop_finished(message.sequence)
        if self._inbox is not None:
            self._inbox.withdraw(self._reader)
            self._inbox.give_back(self._lent_items, self._unread(message.count))
        self._report_once(outcome)

    def _unread(self, consumed: int) -> list[Frame]:
        """The frames that it has not read, the first one from `consumed` on."""
        frames = list(self._lent)
        self._lent.clear()
        first = frames[0].rest(consumed) if frames else None
        return frames[1:] if first is None else [first, *frames[1:]]

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
        self._gone.set()
        if not self._reported:
            self._report_once(Outcome() if self._killed else Outcome(self._death()))

    def _kill(self) -> None:
        if self._process.exitcode is None:
            self._process.kill()

    def fail(self, error: BaseException) -> None:
        self._report_once(Outcome(describe(error, self._stage, self._name, None)))

    def _report_once(self, outcome: Outcome) -> None:
        if not self._reported:
            self._reported = True
            self._report(outcome)

    def _death(self) -> Failure:
        items = self._items_shown()
        crash = self._last_words()
        status = _exit_status(self._process.exitcode, "its stack is above" if crash else "where is not known")
        return Failure(
            stage=self._stage,
            worker=self._name,
            kind=WorkerDied,
            type_name="WorkerDied",
            message=f'The worker "{self._name}" died: {status}. {self._in_hand(items)}',
            traceback=crash,
            item=", ".join(items) or None,
            pid=self._process.pid,
            exception=None,
        )

    def _last_words(self) -> str:
        """Where native code crashed: Python's stack, without pipekit's part of it."""
        text = self._messages.last_words.decode(errors="replace")
        for file in _worker.LOOP_FILES:
            text = text.partition(f'  File "{file}"')[0]
        return text

    def _in_hand(self, shown: list[str]) -> str:
        count = sum(frame.count for frame in self._lent)
        if count == 0:
            return "It had no items in hand"
        all_items = f"It had {count} item{'s' if count > 1 else ''} in hand"
        if not shown:
            return all_items
        return f"{all_items}: {', '.join(shown)}{f' and {count - len(shown)} more' if count > len(shown) else ''}"

    def _items_shown(self) -> list[str]:
        """The first of the items in hand. Their own code is not run: it might be what the worker has died of."""
        texts: list[str] = []
        for frame in self._lent:
            if isinstance(frame.payload, Pickled) and len(texts) < ITEMS_SHOWN:
                texts += frame.payload.shown(ITEMS_SHOWN - len(texts))
        return texts


class _Waiter:
    """Brings a channel's answer to the hub's thread."""

    def __init__(self, hub: Hub, callback: Callable[[Frame | Signal], None]) -> None:
        self._hub = hub
        self._callback = callback

    def wake(self, answer: Frame | Signal) -> None:
        self._hub.call(partial(self._callback, answer))


def _body(frame: Frame) -> bytes | bytearray:
    """The bytes of a frame: as they came, if they came from a process."""
    if isinstance(frame.payload, Pickled):
        return frame.payload.body
    parts, decode_part = frame.open()
    items = parts if decode_part is None else map(decode_part, parts)
    return Pickled.pack([to_part(item) for item in items]).body


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
