"""How long does a word count over text files take?"""

from __future__ import annotations

from benchmarks.measure import Meter, answers
from benchmarks.questions import QUESTIONS
from benchmarks.systems import System


@answers("words")
def test_words(meter: Meter, system: System) -> None:
    meter.ask(QUESTIONS["words"], system)
