"""Does one long item hold up the others?"""

from __future__ import annotations

from benchmarks.measure import Meter, answers
from benchmarks.questions import QUESTIONS
from benchmarks.systems import System


@answers("skew")
def test_skew(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["skew"], system)
