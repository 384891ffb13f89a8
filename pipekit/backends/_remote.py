"""The parent's side of a remote worker, whatever carries the messages: of a process, or an actor on another machine.

What the two sides say to each other is in `_wire`; the worker's side is `_link`.
"""

from __future__ import annotations

import pickle
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from pipekit._edge import Signal
from pipekit._errors import Failure, NotPicklable, WorkerDied, short_repr
from pipekit._frame import Frame, Pickled, to_part
from pipekit._pickling import PROTOCOL, encode_by_value, encode_task
from pipekit._stats import Doing, WorkerState
from pipekit._task import Names, Step, Task
from pipekit._worker import Outcome, describe
from pipekit.backends._base import Answer, Inbox, Outbox, Report, Worker
from pipekit.backends._blocks import ParentsBlocks
from pipekit.backends._hub import Hub
from pipekit.backends._logs import LogReceiver
from pipekit.backends._wire import AHEAD, PROGRESS, SHARED, Message, Say, unpack_failure

#: Items of a dead worker that its error shows.
ITEMS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task, ready to be sent.

    stored: as in the task.
    """

    stages: list[str]
    task: bytes
    stored: tuple[bool, ...]


def pickled_task(task: Task) -> bytes:
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


class RemoteWorker(Worker):
    """The parent's handle of a worker that is reached by messages. Everything but `abort`, `kill`, `join`, `inquire`
    runs in the hub's thread."""

    def __init__(
        self, hub: Hub, logs: LogReceiver, names: Names, inbox: Inbox | None, outboxes: Sequence[Outbox], report: Report
    ) -> None:
        self._hub = hub
        self._logs = logs
        self._names = names
        self._inbox = inbox
        self._outboxes = outboxes
        self._closed: set[int] = set()  # outboxes where nobody reads any more
        self._credits = [(0, 1)] * len(outboxes)  # due and not told yet, and the size of frames that was told last
        self._report = report
        self._blocks = ParentsBlocks()
        self._lent: deque[Frame] = deque()  # frames at the worker, not finished; kept to name or give back their items
        self._lent_items = 0  # items that the inbox counts as lent
        self._frames_finished = 0
        self._wanted = 0  # frames that it asked for and has not got
        self._asked: deque[Answer] = deque()  # who waits for its answers to ASK
        self._reported = False
        self._reader = _Waiter(hub, self._on_input)
        self._writers = [_Waiter(hub, partial(self._on_put, outbox)) for outbox in range(len(outboxes))]

    @abstractmethod
    def send(self, message: Message) -> None:
        """Send a message, now or soon; the order stays. To a worker that is gone, nothing."""

    def abort(self) -> None:
        self._hub.call(partial(self.send, Message(Say.STOP)))

    def inquire(self, answer: Answer, *, detail: bool) -> None:
        self._hub.call(partial(self._ask, answer, detail))

    def greet(self, task: bytes) -> None:
        """Send the task, and what may be put into the outboxes from the start."""
        self.send(Message(Say.TASK, len(self._outboxes), body=task))
        for number, outbox in enumerate(self._outboxes):
            if outbox.window > 1:  # it has one credit from the start
                self.send(Message(Say.CREDIT, 1, outbox.window - 1, outbox=number))

    def release(self) -> None:
        """Let go what refers back to the run."""
        self._blocks.clear()
        for waiter in (self._reader, *self._writers):
            waiter.close()

    # -- messages

    def handle(self, message: Message) -> None:
        """Do what the worker has said."""
        if message.kind is Say.FRAME:
            payload = message.elsewhere or Pickled(message.body, self._blocks.received(message.blocks))
            frame = Frame(message.sequence, message.count, payload)
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
        self._send_payload(frame, AHEAD if ahead else 0)

    def _send_payload(self, frame: Frame, how: int) -> None:
        payload = pickled(frame)
        for message in self._blocks.announce(payload.leases):
            self.send(message)
        blocks = self._blocks.lend(payload.leases)
        self.send(Message(Say.FRAME, frame.count, frame.sequence, payload.body, how | payload.shared * SHARED, blocks))

    def _drop_finished(self, finished: int) -> None:
        while self._frames_finished < finished:
            self._frames_finished += 1
            self._lent.popleft()

    # -- the end

    def _end(self, outcome: Outcome, message: Message) -> None:
        """It has reported its end: what it has not read goes back, for others to read."""
        if self._reported:
            return
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

    def fail(self, error: BaseException) -> None:
        self._report_once(Outcome(describe(error, *self._names[0], None)))

    def _report_once(self, outcome: Outcome) -> None:
        if not self._reported:
            self._reported = True
            self._report(outcome)

    def _died(self, how: str, *, pid: int, traceback: str = "", node: str | None = None) -> Failure:
        """The failure of a worker that has ended without a word."""
        items = self._items_shown()
        (stage, worker), *others = self._names
        quoted = ", ".join(f'"{other}"' for _, other in others)
        fused = f" (fused with {quoted})" if others else ""
        return Failure(
            stage=stage,
            worker=worker,
            kind=WorkerDied,
            type_name="WorkerDied",
            message=f'The worker "{worker}"{fused} died: {how}. {self._in_hand(items)}',
            traceback=traceback,
            item=", ".join(items) or None,
            pid=pid,
            exception=None,
            node=node,
        )

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


def fail_all(workers: Sequence[RemoteWorker], error: BaseException) -> None:
    """A callback of the hub raised: an error in pipekit or in a payload's code. The run fails, it does not hang."""
    for worker in workers:
        worker.fail(error)


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


def pickled(frame: Frame) -> Pickled:
    """What a frame holds, as it came, if a remote worker has put it."""
    if isinstance(frame.payload, Pickled):
        return frame.payload
    parts, decode_part = frame.open()
    items = parts if decode_part is None else map(decode_part, parts)
    return Pickled.pack([to_part(item) for item in items])
