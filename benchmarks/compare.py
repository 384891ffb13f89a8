"""Measures all systems for all questions, and writes docs/performance.md with its pictures.

    python -m benchmarks.compare [--only QUESTION ...] [--rounds 5] [--smoke] [--page]

The systems take turns, round by round, so that a machine that becomes slower does so for all of them.
"""

from __future__ import annotations

import argparse
from time import perf_counter

from benchmarks.jobs import JOBS
from benchmarks.questions import QUESTIONS, Question
from benchmarks.report import Results, machine, write
from benchmarks.runs import LIMIT, RunFailedError, environment, run
from benchmarks.systems import System

ROUNDS = 5
#: Seconds that a run of a few items may take; what hangs with those is not timed.
CHECK_LIMIT = 30


def measure(question: Question, rounds: int, smoke: bool, results: Results) -> None:
    """All rounds of a question, instead of what is known of it."""
    failed: dict[str, str] = {}
    systems = [system for system in question.systems if system.installed]
    for system in question.systems:
        if not system.installed:
            failed[system.name] = f"not measured: {system.package} is not installed"
    if question.name in JOBS:
        for system in systems:
            _try(system, question, JOBS[question.name].smoke, failed, "--check", limit=CHECK_LIMIT)
    runs = results.runs[question.name] = {system.name: [] for system in systems}
    for _ in range(rounds):
        for system in systems:
            if system.name not in failed:
                figures = _try(system, question, question.items(system, smoke), failed, limit=LIMIT)
                runs[system.name] += [figures] if figures is not None else []
    results.failed[question.name] = failed
    results.machine[question.name] = machine()


def _try(
    system: System, question: Question, items: int, failed: dict[str, str], *options: str, limit: float
) -> dict[str, float] | None:
    started = perf_counter()
    try:
        figures = run(system, question, items, *options, limit=limit)
    except RunFailedError as error:
        failed[system.name] = str(error)
        print(f"  {system.name}: {error}", flush=True)
        return None
    found = ", ".join(f"{name} {value:.4g}" for name, value in figures.items()) or "right results"
    print(f"  {system.name}: {found} ({perf_counter() - started:.1f} s)", flush=True)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=QUESTIONS, default=list(QUESTIONS), metavar="QUESTION")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes: does everything work? writes nothing")
    parser.add_argument("--page", action="store_true", help="measure nothing; write the page again")
    given = parser.parse_args()
    results = Results.read()
    if given.page:
        write(results)
        return
    with environment(JOBS["words"].sizes["fast"]):
        for name in given.only:
            print(name, flush=True)
            measure(QUESTIONS[name], given.rounds, given.smoke, results)
            if not given.smoke:
                write(results)  # what is measured stays, whatever comes


if __name__ == "__main__":
    main()
