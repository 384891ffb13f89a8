"""Where stages run. Each backend is a module of its own, imported when a stage asks for it.

Here are the contract, and the pieces of which a backend is made that runs the common worker loop.
"""

from __future__ import annotations

from pipekit._channel import BlockingReader as BlockingReader
from pipekit._channel import BlockingWriter as BlockingWriter
from pipekit._edge import Signal as Signal
from pipekit._edge import Waiter as Waiter
from pipekit._frame import Frame as Frame
from pipekit._frame import Payload as Payload
from pipekit._output import Flusher as Flusher
from pipekit._task import Step as Step
from pipekit._task import Task as Task
from pipekit._worker import Outcome as Outcome
from pipekit._worker import WorkerLoop as WorkerLoop
from pipekit.backends._base import Answer as Answer
from pipekit.backends._base import Backend as Backend
from pipekit.backends._base import Executor as Executor
from pipekit.backends._base import Inbox as Inbox
from pipekit.backends._base import Outbox as Outbox
from pipekit.backends._base import Report as Report
from pipekit.backends._base import Worker as Worker

__all__ = [
    "Answer",
    "Backend",
    "BlockingReader",
    "BlockingWriter",
    "Executor",
    "Flusher",
    "Frame",
    "Inbox",
    "Outbox",
    "Outcome",
    "Payload",
    "Report",
    "Signal",
    "Step",
    "Task",
    "Waiter",
    "Worker",
    "WorkerLoop",
]
