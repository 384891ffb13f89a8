"""Where stages run. Each backend is a module of its own, imported when a stage asks for it."""

from __future__ import annotations

from pipekit.backends._base import Backend as Backend
from pipekit.backends._base import Executor as Executor
from pipekit.backends._base import Inbox as Inbox
from pipekit.backends._base import Outbox as Outbox
from pipekit.backends._base import Report as Report
from pipekit.backends._base import Worker as Worker

__all__ = ["Backend", "Executor", "Inbox", "Outbox", "Report", "Worker"]
