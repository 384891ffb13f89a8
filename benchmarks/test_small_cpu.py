"""What is left of small work?"""

from __future__ import annotations

from benchmarks.measure import Meter, answers
from benchmarks.questions import QUESTIONS
from benchmarks.systems import System


@answers("small_cpu")
def test_small_cpu(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["small_cpu"], system)
