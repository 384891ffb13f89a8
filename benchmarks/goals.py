"""What pipekit wants to reach, on two cores with default settings; held against the medians."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks.questions import QUESTIONS, Medians
from benchmarks.systems import SYSTEMS

#: A value, and what it was taken from where that is not said by the goal; None if something was not measured.
Value = tuple[float, str] | None


@dataclass(frozen=True)
class Goal:
    """A value that should be at most, or at least, some limit.

    question: whose medians it is taken from.
    text: what is compared.
    value: the value, from the medians.
    limit: the limit.
    sense: which side of the limit is good.
    unit: of both.
    """

    question: str
    text: str
    value: Callable[[Medians], Value]
    limit: float
    sense: Literal["at most", "at least"] = "at most"
    unit: str = ""

    def met(self, value: float) -> bool:
        return value <= self.limit if self.sense == "at most" else value >= self.limit


def ratio(question: str, system: str, other: str) -> Callable[[Medians], Value]:
    """How many times as long as another one a system takes."""
    figure = QUESTIONS[question].figures[0].name

    def value(medians: Medians) -> Value:
        mine, theirs = medians.get((question, system, figure)), medians.get((question, other, figure))
        return None if mine is None or theirs is None else (mine / theirs, "")

    return value


def to_best(question: str, system: str) -> Callable[[Medians], Value]:
    """How many times as long as the fastest peer a system takes."""
    figure = QUESTIONS[question].figures[0].name

    def value(medians: Medians) -> Value:
        mine = medians.get((question, system, figure))
        peers = {
            name: seconds
            for (asked, name, key), seconds in medians.items()
            if asked == question and key == figure and SYSTEMS[name].is_peer
        }
        if mine is None or not peers:
            return None
        best = min(peers, key=lambda name: peers[name])
        return mine / peers[best], best

    return value


def to_ideal(question: str, system: str, *, share: bool = False) -> Callable[[Medians], Value]:
    """How many times the ideal a system takes; or what share of the ideal speed it has, in percent."""
    figure, ideal = QUESTIONS[question].figures[0].name, QUESTIONS[question].ideal
    assert ideal is not None

    def value(medians: Medians) -> Value:
        mine, best = medians.get((question, system, figure)), ideal(medians)
        if mine is None or best is None:
            return None
        return (100 * best / mine if share else mine / best), ""

    return value


def plain(question: str, system: str, figure: str) -> Callable[[Medians], Value]:
    """A figure as it is."""

    def value(medians: Medians) -> Value:
        found = medians.get((question, system, figure))
        return None if found is None else (found, "")

    return value


THREAD, PROCESS, UNFUSED, MIXED = "pipekit-thread", "pipekit-process", "pipekit-process-unfused", "pipekit-mixed"
TUNED = "pool-process-tuned"


def _goals() -> Iterator[Goal]:
    yield Goal("overhead", "threads / serial", ratio("overhead", THREAD, "serial"), 1.5)
    for peer in ("stagepipe-thread", "pyper-thread", "pypeln-thread"):
        yield Goal("overhead", f"{peer} / threads", ratio("overhead", peer, THREAD), 20, "at least")
    yield Goal(
        "overhead", "processes, fused / a Pool for each stage, chunk 256", ratio("overhead", PROCESS, TUNED), 0.4
    )
    yield Goal("overhead", "processes, not fused / the same", ratio("overhead", UNFUSED, TUNED), 0.5)
    text = "parallelpipe / processes, fused"
    yield Goal("overhead", text, ratio("overhead", "parallelpipe-process", PROCESS), 40, "at least")
    yield Goal("small_cpu", "fused / a Pool for each stage, chunk 64", ratio("small_cpu", PROCESS, TUNED), 0.85)
    yield Goal("small_cpu", "not fused / the same", ratio("small_cpu", UNFUSED, TUNED), 0.95)
    yield Goal("cpu", "processes: share of the ideal", to_ideal("cpu", PROCESS, share=True), 95, "at least", "%")
    for question, limit in (("io", 1.1), ("http", 1.2)):
        yield Goal(question, "threads / ideal", to_ideal(question, THREAD), limit)
        yield Goal(question, "threads / executor.map", ratio(question, THREAD, "executor-map-thread"), 1.03)
    yield Goal("mixed_stages", "pipekit / best peer", to_best("mixed_stages", MIXED), 0.85)
    yield Goal("words", "pipekit / best peer", to_best("words", MIXED), 1.0)
    yield Goal("big_payload", "processes / serial", ratio("big_payload", PROCESS, "serial"), 1.3)
    yield Goal("big_payload", "processes / best peer", to_best("big_payload", PROCESS), 0.25)
    yield Goal("medium_payload", "processes / best peer", to_best("medium_payload", PROCESS), 0.3)
    yield Goal("skew", "processes / Pool, chunk 8", ratio("skew", PROCESS, TUNED), 0.95)
    text = "first result / a bare Pool's with the same start method"
    yield Goal("start", text, ratio("start", PROCESS, "pool-forkserver"), 1.1)
    yield Goal("start", "the second run, whole", plain("start", PROCESS, "whole_again"), 60, unit="ms")
    yield Goal("import_cost", "import pipekit", plain("import_cost", THREAD, "import"), 30, unit="ms")
    for system, limit in ((THREAD, 0.2), (PROCESS, 0.5)):
        yield Goal("latency", f"{system}, median", plain("latency", system, "p50"), limit, unit="ms")
    for system in (THREAD, PROCESS):
        yield Goal("held", f"{system}, longest", plain("held", system, "max"), 10, unit="ms")
        yield Goal("read_ahead", f"{system}, items ahead", plain("read_ahead", system, "items"), 5000)
        yield Goal("flat_memory", f"{system}, growth", plain("flat_memory", system, "rss_growth"), 5, unit="MB")
    for figure, text in (("consumer", "reader"), ("thread_stage", "thread stage")):
        value = plain("busy_parent", MIXED, figure)
        yield Goal("busy_parent", f"workers busy beside a busy {text}", value, 80, "at least", "%")


GOALS = tuple(_goals())
