"""What a worker is asked to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from pipekit._outlet import Outlet

#: Seconds of work that a frame holds, where its way is that between threads and processes. Measured: through the parent
#: it costs some 0.05 ms.
FRAME_SECONDS = 0.003
#: For each stage that a worker runs: the stage, and what the worker is called in it.
Names: TypeAlias = "tuple[tuple[str, str], ...]"


class Kind(Enum):
    """How a stage's function is called."""

    ITERATOR = "function(items, *args) gives an iterable of results"
    MAP = "function(item, *args) gives one result"


@dataclass(frozen=True, slots=True)
class Step:
    """One stage in a worker.

    skip_errors: leave out items whose call raises an Exception (only for Kind.MAP).
    """

    stage: str
    kind: Kind
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    skip_errors: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker does.

    steps: the stage that it runs; or several, all of Kind.MAP, each of which gets the results of the one before. Of
        these only the last may skip errors.
    has_input: False for the first stage, whose function is called without items.
    pickled: for each outbox, whether its results are pickled, each before the function goes on, since they leave for
        another process.
    shared: for each outbox, whether big buffers of its results may go there in shared memory.
    stored: for each outbox, whether its frames may stay in the store of the worker's backend (`Backend.store`).
    outlet: the outboxes that a result of the last step goes to; None: there is one, for all results.
    copied: what a step gives is copied by pickle for the next one, as if it had gone to another process.
    frame_seconds: of its own work that a worker collects in a frame before it hands it on.
    """

    steps: tuple[Step, ...]
    has_input: bool = True
    pickled: tuple[bool, ...] = (False,)
    shared: tuple[bool, ...] = (False,)
    stored: tuple[bool, ...] = (False,)
    outlet: Outlet | None = None
    copied: bool = False
    frame_seconds: float = FRAME_SECONDS

    def names(self, worker: str) -> Names:
        """The names of a worker that is called `worker` in its first stage."""
        return worker_names([step.stage for step in self.steps], worker)


def worker_names(stages: Sequence[str], worker: str) -> Names:
    """The names of a worker that runs these stages, and is called `worker` in the first."""
    first, *others = stages
    index = worker.rpartition("-")[2]
    return ((first, worker), *((stage, f"{stage}-{index}") for stage in others))
