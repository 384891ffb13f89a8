"""Do workers starve while the parent computes?"""

from __future__ import annotations

from benchmarks.measure import Meter, answers
from benchmarks.questions import QUESTIONS
from benchmarks.systems import System


@answers("busy_parent")
def test_busy_parent(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["busy_parent"], system)
