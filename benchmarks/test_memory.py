"""How much is in memory?"""

from __future__ import annotations

from benchmarks.measure import Meter, answers
from benchmarks.questions import QUESTIONS
from benchmarks.systems import System


@answers("read_ahead")
def test_read_ahead(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["read_ahead"], system)


@answers("flat_memory")
def test_flat_memory(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["flat_memory"], system)
