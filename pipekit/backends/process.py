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
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import connection
from typing import Any, NamedTuple, TypeAlias

from pipekit import _worker
from pipekit._arena import CAN_SHARE, forget_own_store
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
from pipekit._pickling import PROTOCOL, encode_by_value, encode_task
from pipekit._public import public
from pipekit._stats import Doing, WorkerState
from pipekit._task import Names, Step, Task, worker_names
from pipekit._worker import Outcome, describe
from pipekit.backends import _child
from pipekit.backends._base import Answer, Backend, Executor, Inbox, Outbox, Report, Worker
from pipekit.backends._blocks import ParentsBlocks
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
from pipekit.backends._wire import (
    AHEAD,
    CLOSE_ON_EXEC,
    DESCRIPTORS,
    PROGRESS,
    SHARED,
    Message,
    MessageReader,
    Say,
    descriptors_in,
    unpack_failure,
)

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

    def prepare(self, task: Task) -> _Prepared:
        method = self._method()
        if method not in multiprocessing.get_all_start_methods():
            raise BackendUnavailable(f"this system cannot start processes by {method!r}: use 'spawn'")
        return _Prepared([step.stage for step in task.steps], _pickled_task(task))

    def executor(self) -> Executor:
        return _ProcessExecutor(self._method())

    def warm_up(self) -> None:
        if self._method() == "forkserver":
            start_fork_server()

    def _method(self) -> StartMethod:
        return self.start_method or default_start_method()


@dataclass(frozen=True, slots=True)
class _Prepared:
    stages: list[str]
    task: bytes


def _pickled_task(task: Task) -> bytes:
    """Each step as a pickle of its own: what they share is not shared in the worker, as if each had one to itself."""
    steps = []
    for step in task.steps:
        try:
            steps.append(encode_task(step))
        except Exception as error:
            raise NotPicklable(_UNSENDABLE.format(step.stage, _culprit(step, error), _ADVICE)) from error
    try:
        rest = encode_task(replace(task, steps=()))
    except Exception as error:
        culprit = f"what chooses where its results go, a `route` or `key`, cannot be pickled ({error})"
        raise NotPicklable(_UNSENDABLE.format(task.steps[-1].stage, culprit, _ADVICE)) from error
    return pickle.dumps([*steps, rest], PROTOCOL)


_UNSENDABLE = "stage {!r} cannot be sent to a process: {}; {}"
_ADVICE = 'create it inside the function, or run the stage with backend="thread"'


def _culprit(step: Step, error: Exception) -> str:
    """Which part of a step does not pickle."""
    for name, value in [*enumerate(step.args, start=1), *step.kwargs.items()]:
        try:
            encode_by_value(value)
        except Exception as reason:
            return f"its argument {name} is {short_repr(value)} and cannot be pickled ({reason})"
    return f"something that its function uses cannot be pickled ({error})"


class _ProcessExecutor(Executor):
    def __init__(self, method: StartMethod) -> None:
        self._context = multiprocessing.get_context(method)
        if method == "fork":
            import logging.handlers  # noqa: F401  # once, or each worker would
        self._workers: list[_ProcessWorker] = []
        self._hub = Hub(partial(_fail_all, self._workers))
        self._logs = LogReceiver()

    def open(
        self,
        prepared: _Prepared,
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
        try:
            process = start_process(self._context, name, _child.main, (theirs, names, log_levels()))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        worker = _ProcessWorker(process, ours, self._hub, self._logs, names, inbox, outboxes, report)
        self._workers.append(worker)  # at once: a Ctrl-C may come before the run knows it, and `close` ends it then
        worker.send(Message(Say.TASK, len(outboxes), body=prepared.task))
        for number, outbox in enumerate(outboxes):
            if outbox.window > 1:  # it has one credit from the start
                worker.send(Message(Say.CREDIT, 1, outbox.window - 1, outbox=number))
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


def _fail_all(workers: Sequence[_ProcessWorker], error: BaseException) -> None:
    """A callback of the hub raised: an error in pipekit or in a payload's code. The run fails, it does not hang."""
    for worker in workers:
        worker.fail(error)


class _ProcessWorker(Worker):
    """The parent's side of a worker process. Everything but `abort`, `kill`, `join` runs in the hub's thread."""

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
        ours.setblocking(False)
        self._process = process
        self._sentinel = exit_sentinel(process)
        self._socket = ours
        self._hub = hub
        self._logs = logs
        self._names = names
        self._inbox = inbox
        self._outboxes = outboxes
        self._closed: set[int] = set()  # outboxes where nobody reads any more
        self._credits = [(0, 1)] * len(outboxes)  # due and not told yet, and the size of frames that was told last
        self._report = report
        self._messages = MessageReader()
        self._descriptors: deque[int] = deque()  # that have come, for messages that are still to be handled
        self._blocks = ParentsBlocks()
        self._unsent: deque[_Unsent] = deque()
        self._watched = 0  # events of the socket that the hub watches
        self._lent: deque[Frame] = deque()  # frames at the worker, not finished; kept to name or give back their items
        self._lent_items = 0  # items that the inbox counts as lent
        self._frames_finished = 0
        self._wanted = 0  # frames that it asked for and has not got
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
        self._blocks.clear()
        for descriptor in self._descriptors:
            os.close(descriptor)
        self._socket.close()
        for waiter in (self._reader, *self._writers):
            waiter.close()

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
        except OSError:  # it has closed its end, which is no death: what it has said is still to be read
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
            self._handle(message)
        return size

    # -- messages

    def _handle(self, message: Message) -> None:
        if message.kind is Say.FRAME:
            payload = Pickled(message.body, self._blocks.received(message.blocks))
            frame = Frame(message.sequence, message.count, payload)
            outbox = message.outbox
            self._on_put(outbox, self._outboxes[outbox].put(self._writers[outbox], frame))
        elif message.kind is Say.NEXT:
            self._on_next(message)
        elif message.kind is Say.ARENA:
            self._blocks.opened(self._descriptors.popleft())
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
            answer([WorkerState(stage, worker, Doing.ENDED) for stage, worker in self._names])
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
            self._credit(outbox, closed=answer is Signal.CLOSED)

    def _credit(self, outbox: int, *, closed: bool) -> None:
        """One more frame may come; told when half of the window is free, or when there is something new to tell."""
        due, told_size = self._credits[outbox]
        size = 0 if closed else self._outboxes[outbox].frame_size
        due += 1
        if size != told_size or 2 * due >= self._outboxes[outbox].window:
            self.send(Message(Say.CREDIT, size, due, body=self._blocks.free(), outbox=outbox))
            due = 0
        self._credits[outbox] = (due, size)

    def _on_next(self, message: Message) -> None:
        assert self._inbox is not None
        items, seconds, blocked, wanted = PROGRESS.unpack_from(message.body)
        self._blocks.returned(message.body[PROGRESS.size :])
        self._drop_finished(message.sequence)
        if items:
            self._inbox.measured(items, seconds, blocked)
        if message.count:
            self._lent_items -= message.count
            self._inbox.taken(message.count)
        if wanted:
            self._wanted = wanted
            self._on_input(self._inbox.get(self._reader))

    def _on_input(self, answer: Frame | Signal | None) -> None:
        assert self._inbox is not None
        if self._reported and isinstance(answer, Frame):  # it was on its way when the worker left
            self._inbox.give_back(answer.count, (answer,))
        elif isinstance(answer, Frame):
            self._send_frame(answer, ahead=False)
            while self._wanted and (frame := self._inbox.surplus()) is not None:
                self._send_frame(frame, ahead=True)
        elif answer is Signal.END:
            self.send(Message(Say.END))
        elif answer is not None:
            self.send(Message(Say.STOP))

    def _send_frame(self, frame: Frame, *, ahead: bool) -> None:
        self._wanted -= 1
        self._lent.append(frame)
        self._lent_items += frame.count
        payload = _pickled(frame)
        for message in self._blocks.announce(payload.leases):
            self.send(message)
        how = ahead * AHEAD | payload.shared * SHARED
        blocks = self._blocks.lend(payload.leases)
        self.send(Message(Say.FRAME, frame.count, frame.sequence, payload.body, how, blocks))

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
        self._blocks.clear()
        self._gone.set()
        if not self._reported:
            self._report_once(Outcome() if self._killed else Outcome(self._death()))

    def _kill(self) -> None:
        if self._process.exitcode is None:
            self._process.kill()

    def fail(self, error: BaseException) -> None:
        self._report_once(Outcome(describe(error, *self._names[0], None)))

    def _report_once(self, outcome: Outcome) -> None:
        if not self._reported:
            self._reported = True
            self._report(outcome)

    def _death(self) -> Failure:
        items = self._items_shown()
        crash = self._last_words()
        (stage, worker), *others = self._names
        quoted = ", ".join(f'"{other}"' for _, other in others)
        fused = f" (fused with {quoted})" if others else ""
        status = _exit_status(self._process.exitcode, "its stack is above" if crash else "where is not known")
        return Failure(
            stage=stage,
            worker=worker,
            kind=WorkerDied,
            type_name="WorkerDied",
            message=f'The worker "{worker}"{fused} died: {status}. {self._in_hand(items)}',
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


class _Beside(NamedTuple):
    """Bytes that are sent with a descriptor beside them."""

    head: bytes | bytearray
    descriptor: int


_Unsent: TypeAlias = bytes | bytearray | memoryview | _Beside


class _Waiter:
    """Brings a channel's answer to the hub's thread."""

    def __init__(self, hub: Hub, callback: Callable[[Frame | Signal], None]) -> None:
        self._hub = hub
        self._callback = callback

    def wake(self, answer: Frame | Signal) -> None:
        self._hub.call(partial(self._callback, answer))

    def close(self) -> None:
        """It refers to its worker, which has it."""
        self._callback = _ignore


def _ignore(answer: Frame | Signal) -> None:
    pass


def _pickled(frame: Frame) -> Pickled:
    """What a frame holds, as it came, if it came from a process."""
    if isinstance(frame.payload, Pickled):
        return frame.payload
    parts, decode_part = frame.open()
    items = parts if decode_part is None else map(decode_part, parts)
    return Pickled.pack([to_part(item) for item in items])


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
