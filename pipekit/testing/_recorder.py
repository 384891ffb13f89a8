"""A backend around another one that notes where it breaks the rules between a run and its workers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from pipekit.backends import Backend, Executor, Frame, Inbox, Outbox, Outcome, Report, Signal, Waiter, Worker
from pipekit.testing._around import Around


class Recorder(Around):
    """Runs workers on `backend`; `broken` has a sentence for each rule that it broke."""

    def __init__(self, backend: Backend) -> None:
        super().__init__(backend, "recorded")
        self.broken: list[str] = []

    def executor(self) -> Executor:
        return _RecordedExecutor(self._backend.executor(), self.broken)


class _RecordedExecutor(Executor):
    def __init__(self, executor: Executor, broken: list[str]) -> None:
        self._executor = executor
        self._broken = broken
        self._accounts: list[_Account] = []
        self._workers: list[tuple[str, Worker]] = []

    def open(self, prepared: Any, name: str, inbox: Inbox | None, outboxes: Sequence[Outbox], report: Report) -> Worker:
        account = _Account(name)
        self._accounts.append(account)

        def recorded_report(outcome: Outcome) -> None:
            account.reports += 1
            report(outcome)

        recorded_inbox = None if inbox is None else _RecordedInbox(inbox, account)
        recorded_outboxes = [_RecordedOutbox(outbox, account, self._broken) for outbox in outboxes]
        threads = set(threading.enumerate())
        worker = self._executor.open(prepared, name, recorded_inbox, recorded_outboxes, recorded_report)
        if not set(threading.enumerate()) <= threads:
            self._broken.append("Executor.open started a thread in this process")
        self._workers.append((name, worker))
        return worker

    def start(self) -> None:
        self._executor.start()

    def close(self) -> None:
        self._broken.extend(f"{name} was not joined" for name, worker in self._workers if not worker.join(0))
        self._executor.close()
        for account in self._accounts:
            if account.reports != 1:
                self._broken.append(f"{account.name} reported its end {account.reports} times")
            if account.lent:
                self._broken.append(f"{account.name} got {account.lent} items that it neither took nor gave back")


class _Account:
    """What one worker has done."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reports = 0
        self.lent = 0
        self.lock = threading.Lock()

    def add(self, items: int) -> None:
        with self.lock:
            self.lent += items


class _RecordedInbox:
    def __init__(self, inbox: Inbox, account: _Account) -> None:
        self._inbox = inbox
        self._account = account
        self._waiters: dict[int, _RecordedWaiter] = {}

    def get(self, waiter: Waiter) -> Frame | Signal | None:
        recorded = self._waiters.setdefault(id(waiter), _RecordedWaiter(waiter, self._account))
        answer = self._inbox.get(recorded)
        if isinstance(answer, Frame):
            self._account.add(answer.count)
        return answer

    def withdraw(self, waiter: Waiter) -> None:
        self._inbox.withdraw(self._waiters.get(id(waiter), waiter))

    def taken(self, items: int) -> None:
        self._account.add(-items)
        self._inbox.taken(items)

    def measured(self, items: int, seconds: float, blocked: float) -> None:
        self._inbox.measured(items, seconds, blocked)

    def surplus(self) -> Frame | None:
        frame = self._inbox.surplus()
        if frame is not None:
            self._account.add(frame.count)
        return frame

    def give_back(self, lent: int, frames: Sequence[Frame]) -> None:
        self._account.add(-lent)
        self._inbox.give_back(lent, frames)


class _RecordedWaiter:
    def __init__(self, waiter: Waiter, account: _Account) -> None:
        self._waiter = waiter
        self._account = account

    def wake(self, answer: Frame | Signal) -> None:
        if isinstance(answer, Frame):
            self._account.add(answer.count)
        self._waiter.wake(answer)


class _RecordedOutbox:
    def __init__(self, outbox: Outbox, account: _Account, broken: list[str]) -> None:
        self._outbox = outbox
        self._account = account
        self._broken = broken

    @property
    def frame_size(self) -> int:
        return self._outbox.frame_size

    @property
    def window(self) -> int:
        return self._outbox.window

    def put(self, waiter: Waiter, frame: Frame) -> Signal | None:
        self._check(frame)
        return self._outbox.put(waiter, frame)

    def offer(self, frame: Frame) -> bool:
        self._check(frame)
        return self._outbox.offer(frame)

    def _check(self, frame: Frame) -> None:
        if self._account.reports:
            self._broken.append(f"{self._account.name} put {frame.count} results after it had reported its end")
        if frame.count < 1 or (isinstance(frame.payload, list) and len(frame.payload) != frame.count):
            self._broken.append(f"{self._account.name} put a frame of {frame.count} with another number of results")
