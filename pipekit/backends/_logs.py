"""Log records of process workers reach the handlers of the parent.

The worker formats each record as `logging.handlers.QueueHandler` does and sends it; the parent hands it to its logger
of the same name. Which levels are sent is what the parent's loggers were set to when the worker was started.
"""

from __future__ import annotations

import atexit
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING, cast

from pipekit._errors import short_repr
from pipekit._frame import UNCHANGING
from pipekit._pickling import decode, encode
from pipekit._signals import start_thread

if TYPE_CHECKING:
    import logging

#: Seconds that the handlers get at the end of a run for what has come; they go on behind it ...
LOG_SECONDS = 0.3
#: ... until the program ends, which waits this long.
EXIT_SECONDS = 3.0

# Loggers' names and levels; "" is the root logger, and the number is what `logging.disable` was given.
Levels = tuple[dict[str, int], int]


def log_levels() -> Levels | None:
    """The levels that loggers of this process were given; None if it does not use logging."""
    logging = sys.modules.get("logging")
    if logging is None:
        return None
    loggers = {name: found for name, found in logging.root.manager.loggerDict.copy().items() if hasattr(found, "level")}
    levels = {name: logger.level for name, logger in loggers.items() if logger.level != logging.NOTSET}
    return {"": logging.root.level, **levels}, logging.root.manager.disable


def forward_logs(levels: Levels | None, names: Callable[[], tuple[str, str]], send: Callable[[bytes], None]) -> None:
    """Have what this worker logs sent to the parent, and only there: handlers that a fork copied are not its own.

    names: tells stage and worker, when a record is made.
    """
    import logging

    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    if levels is not None:
        by_logger, disabled = levels
        for name, level in by_logger.items():
            logging.getLogger(name).setLevel(level)
        logging.disable(disabled)
    logging.root.handlers[:] = [_sender(_Sending(names, send))]


def _sender(sending: _Sending) -> logging.Handler:
    from logging import LogRecord
    from logging.handlers import QueueHandler

    class Sender(QueueHandler):
        """Without the handler's lock: who waits here with it would keep a destructor in another thread waiting, which
        may be the thread that hears of the end of the wait."""

        def handle(self, record: LogRecord) -> bool:
            passed: object = self.filter(record)  # since Python 3.12 it may give another record
            if passed:
                self.emit(passed if isinstance(passed, LogRecord) else record)
            return bool(passed)

    return Sender(cast("SimpleQueue[object]", sending))


class _Sending:
    """What `QueueHandler` takes for its queue."""

    def __init__(self, names: Callable[[], tuple[str, str]], send: Callable[[bytes], None]) -> None:
        self._names = names
        self._process = names()[1]  # what the process is called: as in the first stage that it runs
        self._send = send

    def put_nowait(self, record: logging.LogRecord) -> None:
        stage, worker = self._names()
        vars(record).setdefault("stage", stage)  # a pipeline inside this worker has set its own
        vars(record).setdefault("worker", worker)
        if record.processName == self._process:
            record.processName = worker
        self._send(encode({name: _travelling(value) for name, value in vars(record).items()}))


def _travelling(value: object) -> object:
    """The value, or its shortened repr if it does not come out of a pickle. (Few are not plain: those of `extra`.)"""
    if type(value) in UNCHANGING:
        return value
    try:
        decode(encode(value))
    except Exception:
        return short_repr(value)
    return value


class LogReceiver:
    """Hands the records of workers to this process's loggers, in a thread of its own: handlers are the user's code."""

    def __init__(self) -> None:
        self._records: SimpleQueue[tuple[bytes, Callable[[], None]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, body: bytes, handled: Callable[[], None]) -> None:
        """Handle a record soon, then call `handled`. Records are handled in the order in which they come."""
        self._records.put((body, handled))
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="pipekit-logs", daemon=True)
            with suppress(RuntimeError):  # no more threads to be had: the next record tries again
                start_thread(thread)
                self._thread = thread

    def close(self) -> None:
        """No more records will come; wait a moment until those that have come are handled."""
        if self._thread is None:
            return
        self._records.put(None)
        if self._thread is not threading.current_thread():  # a handler may close the results
            self._thread.join(LOG_SECONDS)
            if self._thread.is_alive():
                atexit.register(self._thread.join, EXIT_SECONDS)

    def _run(self) -> None:
        while (entry := self._records.get()) is not None:
            body, handled = entry
            try:
                _handle(body)
            except BaseException:  # of a filter or a handler: the records behind it must arrive all the same
                traceback.print_exc()
            finally:
                handled()


def _handle(body: bytes) -> None:
    import logging

    record = logging.makeLogRecord(decode(body))
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
