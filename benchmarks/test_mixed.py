"""Does a slow stage hide the others?"""

from __future__ import annotations

from benchmarks.measure import Meter, answers
from benchmarks.questions import QUESTIONS
from benchmarks.systems import System


@answers("mixed_stages")
def test_mixed_stages(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["mixed_stages"], system)
