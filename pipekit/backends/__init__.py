"""Where stages run. Each backend is a module of its own, imported when a stage asks for it.

Here are the contract, and the pieces of which a backend is made that runs the common worker loop.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as in `pipekit`
if TYPE_CHECKING:
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

# As in `pipekit`: to declare a pipeline, only the contract is needed of all this.
_LATER = {
    "Answer": "pipekit.backends._base",
    "Backend": "pipekit.backends._base",
    "BlockingReader": "pipekit._channel",
    "BlockingWriter": "pipekit._channel",
    "Executor": "pipekit.backends._base",
    "Flusher": "pipekit._output",
    "Frame": "pipekit._frame",
    "Inbox": "pipekit.backends._base",
    "Outbox": "pipekit.backends._base",
    "Outcome": "pipekit._worker",
    "Payload": "pipekit._frame",
    "Report": "pipekit.backends._base",
    "Signal": "pipekit._edge",
    "Step": "pipekit._task",
    "Task": "pipekit._task",
    "Waiter": "pipekit._edge",
    "Worker": "pipekit.backends._base",
    "WorkerLoop": "pipekit._worker",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_LATER[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
