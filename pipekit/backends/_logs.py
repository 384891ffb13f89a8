"""Log records of process workers reach the handlers of the parent.

The worker formats each record as `logging.handlers.QueueHandler` does and sends it; the parent hands it to its logger
of the same name. Which levels are sent is what the parent's loggers were set to when the worker was started.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING, cast

from pipekit._errors import short_repr
from pipekit._frame import UNCHANGING
from pipekit._pickling import decode, encode

if TYPE_CHECKING:
    import logging

#: Seconds that the handlers get at the end of a run for what has come; they go on behind it.
LOG_SECONDS = 0.5

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


def forward_logs(levels: Levels | None, stage: str, worker: str, send: Callable[[bytes], None]) -> None:
    """Have what this worker logs sent to the parent, and only there: handlers that a fork copied are not its own."""
    import logging
    from logging.handlers import QueueHandler

    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    if levels is not None:
        names, disabled = levels
        for name, level in names.items():
            logging.getLogger(name).setLevel(level)
        logging.disable(disabled)
    logging.root.handlers[:] = [QueueHandler(cast("SimpleQueue[object]", _Sending(stage, worker, send)))]


class _Sending:
    """What `QueueHandler` takes for its queue."""

    def __init__(self, stage: str, worker: str, send: Callable[[bytes], None]) -> None:
        self._stage = stage
        self._worker = worker
        self._send = send

    def put_nowait(self, record: logging.LogRecord) -> None:
        vars(record).setdefault("stage", self._stage)  # a pipeline inside this worker has set its own
        vars(record).setdefault("worker", self._worker)
        try:
            body = encode(vars(record))
        except Exception:  # something in `extra`
            plain = {name: _plain(value) for name, value in vars(record).items()}
            body = encode(plain)
        self._send(body)


def _plain(value: object) -> object:
    return value if type(value) in UNCHANGING else short_repr(value)


class LogReceiver:
    """Hands the records of workers to this process's loggers, in a thread of its own: handlers are the user's code."""

    def __init__(self) -> None:
        self._records: SimpleQueue[tuple[bytes, Callable[[], None]] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, body: bytes, handled: Callable[[], None]) -> None:
        """Handle a record soon, then call `handled`. Records are handled in the order in which they come."""
        self._records.put((body, handled))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="pipekit-logs", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """No more records will come; wait a moment until those that have come are handled."""
        if self._thread is not None:
            self._records.put(None)
            self._thread.join(LOG_SECONDS)

    def _run(self) -> None:
        while (entry := self._records.get()) is not None:
            body, handled = entry
            try:
                _handle(body)
            except Exception:  # of a filter, say: logging itself prints the errors of handlers in the same way
                traceback.print_exc()
            handled()


def _handle(body: bytes) -> None:
    import logging

    record = logging.makeLogRecord(decode(body))
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
