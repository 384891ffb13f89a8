"""How well does work for the processor spread?"""

from __future__ import annotations

from benchmarks.measure import Meter, answers
from benchmarks.questions import QUESTIONS
from benchmarks.systems import System


@answers("cpu")
def test_cpu(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["cpu"], system)
