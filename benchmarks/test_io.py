"""How well does waiting overlap?"""

from __future__ import annotations

from benchmarks.measure import Meter, answers
from benchmarks.questions import QUESTIONS
from benchmarks.systems import System


@answers("io")
def test_io(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["io"], system)


@answers("http")
def test_http(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["http"], system)
