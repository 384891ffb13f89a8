"""A backend around another one."""

from __future__ import annotations

from typing import Any

from pipekit.backends import Backend, Task


class Around(Backend):
    """Looks to a run like `backend`; what it does with the workers is up to its executor.

    what: the first word of its name.
    """

    def __init__(self, backend: Backend, what: str) -> None:
        self._backend = backend
        self.name = f"{what} {backend.name}"
        self.remote = backend.remote
        self.fuses = backend.fuses
        self.shares_memory = backend.shares_memory
        self.store = backend.store
        self.frame_seconds = backend.frame_seconds

    def prepare(self, task: Task) -> Any:
        return self._backend.prepare(task)

    def cpus(self) -> int | None:
        return self._backend.cpus()

    def warm_up(self) -> None:
        self._backend.warm_up()
