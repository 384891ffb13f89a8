"""What do large items cost?"""

from __future__ import annotations

from benchmarks.measure import Meter, answers
from benchmarks.questions import QUESTIONS
from benchmarks.systems import System


@answers("big_payload")
def test_big_payload(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["big_payload"], system)


@answers("medium_payload")
def test_medium_payload(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["medium_payload"], system)
