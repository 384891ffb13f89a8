"""What a run can say about itself; frozen records, made when asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StageStats:
    """One stage of a run.

    name: the stage's name.
    running: workers that have not reported their end yet.
    received: items that its workers have read for good, or have in their hands.
    results: items that it has handed on.
    waiting: of its results, those in the queue behind it.
    """

    name: str
    running: int
    received: int
    results: int
    waiting: int


@dataclass(frozen=True, slots=True)
class RunStats:
    """A run, in the order of its stages.

    state: "new", "running", "stopping" or "stopped".
    stages: a record for each stage; the first is the source.
    """

    state: str
    stages: tuple[StageStats, ...]
