"""How soon is a result with the reader?"""

from __future__ import annotations

from benchmarks.measure import Meter, answers
from benchmarks.questions import QUESTIONS
from benchmarks.systems import System


@answers("latency")
def test_latency(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["latency"], system)


@answers("held")
def test_held(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["held"], system)
