"""What a run can say about itself; frozen records, made when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from pipekit._public import public


@public
@dataclass(frozen=True, slots=True)
class StageStats:
    """One stage of a run.

    name: the stage's name.
    running: workers that have not reported their end yet.
    received: items that its workers have read for good, or have in their hands.
    results: items that it has handed on; one that goes to several branches counts once, when all have it.
    waiting: results in the queue behind it, or in the queues; where stages meet, also those of the others.

    Of stages that share their workers, an item has passed all but the last once it has been read for good.
    """

    name: str
    running: int
    received: int
    results: int
    waiting: int


@public
@dataclass(frozen=True, slots=True)
class RunStats:
    """A run, in the order of its stages.

    state: "new", "running", "stopping" or "stopped".
    stages: a record for each stage, branch by branch; the first is a source.
    """

    state: str
    stages: tuple[StageStats, ...]


@public
class Doing(Enum):
    """What a worker can be busy with."""

    STARTING = "starting"
    READING = "waiting for input"
    WORKING = "in user code"
    WRITING = "waiting to hand on"
    ENDED = "ended"
    UNKNOWN = "not answering"


@public
@dataclass(frozen=True, slots=True)
class WorkerState:
    """What a worker is doing.

    stage, worker: their names.
    doing: `Doing.UNKNOWN` if it did not answer (see `stall_timeout`).
    seconds: since it last read a frame of items or handed one on; its current call may have begun later.
    read, results: items that its function has read and given so far.
    item: shortened repr of the item that its function has read last, or None.
    traceback: where its function is, the innermost call last; "" where that is not known.
    """

    stage: str
    worker: str
    doing: Doing
    seconds: float = 0.0
    read: int = 0
    results: int = 0
    item: str | None = None
    traceback: str = ""
