"""The contract between a run and the backends that its stages ask for.

A *backend* is a value that a user names. For each run it makes one *executor*, which opens *workers*. A worker takes
frames from its inbox, runs the loop of `pipekit._worker` on them wherever it likes, puts frames into its outboxes, and
reports its outcome exactly once. It knows no other worker. The run owns all queues and decides everything else.

No call of the inbox and outbox blocks: who must wait passes a waiter, whose `wake(answer)` is called once, from any
thread. `pipekit._channel` has blocking ends for backends that have a thread for each worker.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from pipekit._task import FRAME_SECONDS

if TYPE_CHECKING:
    from pipekit._edge import Signal, Waiter
    from pipekit._frame import Frame
    from pipekit._stats import WorkerState
    from pipekit._task import Task
    from pipekit._worker import Outcome

Report: TypeAlias = "Callable[[Outcome], None]"
Answer: TypeAlias = "Callable[[Sequence[WorkerState]], None]"


class Inbox(Protocol):
    """The reading end of a channel, for one worker."""

    def get(self, waiter: Waiter) -> Frame | Signal | None:
        """The next frame, lent; `Signal.END`; `Signal.CANCELLED`; or None: the waiter will get one of these."""

    def withdraw(self, waiter: Waiter) -> None:
        """The waiter wants no frame any more: it is told `Signal.CANCELLED`, unless it has been told something."""

    def taken(self, items: int) -> None:
        """This many lent items are taken for good. A frame of one: when its item is read; others: when all are."""

    def measured(self, items: int, seconds: float, blocked: float) -> None:
        """A frame of `items` took the stage's function `seconds`, and `blocked` more were spent waiting for room behind
        it; sizes the frames to come."""

    def surplus(self) -> Frame | None:
        """A frame more, lent, for a worker that had better have some ahead: if the other readers do not need it."""

    def give_back(self, lent: int, frames: Sequence[Frame]) -> None:
        """The worker stops reading: of its `lent` items, those in `frames` are for others to read."""


class Outbox(Protocol):
    """A writing end, for one worker: of a channel, or of those of all branches of a tee."""

    @property
    def frame_size(self) -> int:
        """Items that a frame should hold now."""

    @property
    def window(self) -> int:
        """Frames that may be put without waiting for the answers to those before: for workers to which answers take
        long. All answers come in the order of the frames."""

    def put(self, waiter: Waiter, frame: Frame) -> Signal | None:
        """`Signal.OK`; CLOSED: nobody reads here any more; CANCELLED: stop; or None: the frame waits for room, the
        waiter will be told."""

    def offer(self, frame: Frame) -> bool:
        """Put the frame if there is room at once."""


class Worker(ABC):
    """The parent's handle of one worker."""

    @abstractmethod
    def abort(self) -> None:
        """Ask it to stop so that `finally` blocks run; returns at once. Its results are not wanted any more: the run
        stops, or nobody reads at any of its outboxes."""

    @abstractmethod
    def kill(self) -> None:
        """Stop it by force, as far as the backend can; returns at once."""

    @abstractmethod
    def join(self, timeout: float) -> bool:
        """Wait until nothing of it is left, at most `timeout` seconds; True if so."""

    def inquire(self, answer: Answer, *, detail: bool) -> None:
        """Have `answer` called with what it is doing now (`WorkerLoop.states`), from any thread, soon or never. Returns
        at once. A backend that cannot know answers with nothing, as here."""
        answer(())


class Executor(ABC):
    """Everything that one backend does for one run."""

    @abstractmethod
    def open(self, prepared: Any, name: str, inbox: Inbox | None, outboxes: Sequence[Outbox], report: Report) -> Worker:
        """Create a worker called `name` (in the first of its task's steps), with the outboxes that its task's outlet
        numbers. It may start at once, but starts no thread in this process before `start` (a worker that is opened
        later may be forked). Raises what hinders it."""

    @abstractmethod
    def start(self) -> None:
        """All workers of the run are open: let them run."""

    @abstractmethod
    def close(self) -> None:
        """The run is over and every worker joined or given up: release what is left. Also called without `start`."""


class Backend(ABC):
    """A way to run workers; a hashable value. Equal backends share an executor in a run."""

    #: What `setup(backend=...)` calls it.
    name: str
    #: Whether items must be pickled to reach its workers. If so, those who produce for it pickle them.
    remote: bool
    #: Whether stages are fused here by themselves where there are enough workers for all CPUs. True where workers
    #: compute; False where they wait, since a worker that runs two stages waits for one of them at a time.
    fuses: bool = False
    #: Whether its workers, if remote, take and give frames with leases of shared memory (`pipekit._arena`).
    shares_memory: bool = False
    #: The store in which frames may stay between its workers and those of other backends with the same one: only a
    #: reference goes through this process then (a `Payload` that its workers open). "": there is none.
    store: str = ""
    #: Seconds of work that a frame to or from its workers holds; more where a frame costs more. A result may wait twice
    #: as long until its frame is handed on.
    frame_seconds: float = FRAME_SECONDS

    @abstractmethod
    def prepare(self, task: Task) -> Any:
        """Check when the pipeline is compiled that `task` can run here; what `Executor.open` needs of it.

        Raises:
            BackendUnavailable: it cannot run on this machine.
            NotPicklable: the function or an argument cannot get there.
        """

    @abstractmethod
    def executor(self) -> Executor:
        """A new executor for one run."""

    def cpus(self) -> int | None:
        """The CPUs that its workers share; None, as here: those that this process may use.

        Raises:
            BackendUnavailable: it cannot run here.
        """
        return None

    def warm_up(self) -> None:  # noqa: B027  # most have nothing to do
        """A run that uses this backend is about to be compiled: begin what takes long, is no worker, and can be shared
        by all runs, such as a server. Waits for nothing, and raises nothing: `open` reports what hinders it."""
