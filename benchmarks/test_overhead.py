"""What does an item cost where stages do nothing?"""

from __future__ import annotations

from benchmarks.measure import Meter, answers
from benchmarks.questions import QUESTIONS
from benchmarks.systems import System


@answers("overhead")
def test_overhead(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["overhead"], system)


@answers("in_turn")
def test_in_turn(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["in_turn"], system)
