"""How soon is there a first result?"""

from __future__ import annotations

from benchmarks.measure import Meter, answers
from benchmarks.questions import QUESTIONS
from benchmarks.systems import System


@answers("start")
def test_start(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["start"], system)


@answers("import_cost")
def test_import_cost(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["import_cost"], system)
