"""Names of stage and worker on log records."""

from __future__ import annotations

import logging

from pipekit._activity import names_of_this_thread
from pipekit._public import public


@public
class WorkerNames(logging.Filter):
    """A filter for handlers that puts `stage` and `worker` on each record, so that their format can use them.

    Records from process workers have both already. This adds them for thread workers, and "-" where no worker logs.
    What a program has set itself (`extra={"stage": ...}`) stays.

    Example: `handler.addFilter(WorkerNames())`, with the format `"%(worker)s %(message)s"`.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        stage, worker = names_of_this_thread() or ("-", "-")
        vars(record).setdefault("stage", stage)
        vars(record).setdefault("worker", worker)
        return True
