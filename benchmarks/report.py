"""docs/performance.md and its pictures, from the figures of all runs."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.goals import GOALS, Goal
from benchmarks.picture import bars
from benchmarks.probes import Figures
from benchmarks.questions import QUESTIONS, Figure, Medians, Question
from benchmarks.systems import SYSTEMS

DOCS = Path(__file__).parent.parent / "docs"
PAGE, RESULTS, PICTURES = DOCS / "performance.md", DOCS / "performance.json", DOCS / "pictures" / "performance"
PACKAGES = ("pipekit-parallel", "parallelpipe", "pypeln", "python-pyper", "mpire", "joblib", "stagepipe", "numpy")


@dataclass
class Results:
    """What was measured: figures of each run by question and system, and why there are none.

    machine: by question, where and with what it was measured.
    """

    runs: dict[str, dict[str, list[Figures]]] = field(default_factory=dict)
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    machine: dict[str, dict[str, str]] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Results:
        """What was written last, without what is not asked any more."""
        results = cls(**json.loads(RESULTS.read_text())) if RESULTS.exists() else cls()
        for question, systems in list(results.runs.items()):
            if question not in QUESTIONS or not _has_figures(QUESTIONS[question], systems):
                for known in (results.runs, results.failed, results.machine):
                    known.pop(question, None)
        return results

    def write(self) -> None:
        rounded: Any = {
            question: {system: [_rounded(run) for run in runs] for system, runs in systems.items()}
            for question, systems in self.runs.items()
        }
        lines = {"runs": rounded, "failed": self.failed, "machine": self.machine}
        RESULTS.write_text(json.dumps(lines, indent=1, sort_keys=True) + "\n")

    def medians(self) -> Medians:
        return {
            (question, system, figure): statistics.median(run[figure] for run in runs)
            for question, systems in self.runs.items()
            for system, runs in systems.items()
            if runs and system in SYSTEMS
            for figure in runs[0]
        }


def _has_figures(question: Question, systems: dict[str, list[Figures]]) -> bool:
    wanted = {figure.name for figure in question.figures}
    return all(wanted <= run.keys() for runs in systems.values() for run in runs)


def _rounded(figures: Figures) -> Figures:
    return {name: float(f"{value:.5g}") for name, value in figures.items()}


def machine() -> dict[str, str]:
    """What the figures depend on: names and versions."""
    versions = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    versions["cores"] = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            pass
    return versions


def write(results: Results) -> None:
    """The raw figures, the page and the pictures."""
    results.write()
    PICTURES.mkdir(parents=True, exist_ok=True)
    medians = results.medians()
    asked = [question for name, question in QUESTIONS.items() if results.runs.get(name)]
    for question in asked:
        (PICTURES / f"{question.name}.svg").write_text(_picture(question, medians))
    PAGE.write_text("\n".join(_page(results, asked, medians)) + "\n")


HEAD = """\
# Performance

Made by `tox -e peers` (all of it, half an hour) or `tox -e peers -- --only io skew`; do not edit.

Each run is a program of its own; the systems take turns, round by round; a figure is the median of the rounds, with the
least and the most beside it. Each system has shown the right results before it is timed. *Times pipekit* says how many
times as long as pipekit (its fastest row with the same kind of workers, if there is one) a system takes: below 1, it is
faster. The raw figures are in `docs/performance.json`, what each system runs in `benchmarks/systems.py`.
"""


def _page(results: Results, asked: Iterable[Question], medians: Medians) -> Iterator[str]:
    yield HEAD
    yield from _versions(results)
    yield "## Goals\n"
    yield from _table(
        ("question", "what", "goal", "measured", ""), (_goal_row(goal, medians) for goal in GOALS), left=3
    )
    for question in asked:
        yield from _section(question, results, medians)


def _versions(results: Results) -> Iterator[str]:
    groups: dict[str, list[str]] = {}
    for question, found in results.machine.items():
        text = ", ".join(f"{name} {value}" for name, value in found.items())
        groups.setdefault(text, []).append(question)
    for text, names in groups.items():
        where = "" if len(groups) == 1 else f" ({', '.join(names)})"
        yield f"Measured with{where}: {text}.\n"


def _goal_row(goal: Goal, medians: Medians) -> tuple[str, ...]:
    found = goal.value(medians)
    wanted = f"{goal.sense} {goal.limit:g} {goal.unit}".strip()
    if found is None:
        return goal.question, goal.text, wanted, "not measured", ""
    value, beside = found
    measured = f"{shown(value)} {goal.unit}".strip() + (f" ({beside})" if beside else "")
    return goal.question, goal.text, wanted, measured, "met" if goal.met(value) else "**not met**"


def _section(question: Question, results: Results, medians: Medians) -> Iterator[str]:
    yield f"\n## {question.title}\n"
    yield f"`{question.name}`: {question.about}\n"
    yield f"![{question.title}](pictures/performance/{question.name}.svg)\n"
    ideal = question.ideal(medians) if question.ideal is not None else None
    if ideal is not None:
        yield f"Ideal: {shown(ideal)} {question.figures[0].title}.\n"
    runs = results.runs[question.name]
    names = [system.name for system in question.systems if runs.get(system.name)]
    names.sort(key=lambda name: medians[question.name, name, question.figures[0].name])
    columns = ("system", question.figures[0].title, "least-most", *_ratio_titles(question, ideal, names))
    titles = (*columns, *(figure.title for figure in question.figures[1:]))
    rows = (_row(question, name, runs[name], ideal, names, medians) for name in names)
    yield from _table(titles, rows)
    apart = question.apart | results.failed.get(question.name, {})
    if apart:
        yield "\nNot comparable, or not quite:\n"
        yield from (f"- {who}: {why}." for who, why in apart.items())


def _ratio_titles(question: Question, ideal: float | None, names: list[str]) -> Iterator[str]:
    if "serial" in names:
        yield "times serial"
    if ideal is not None:
        yield "times ideal"
    if _pipekits(names) != names:
        yield "times pipekit"


def _row(
    question: Question, name: str, runs: list[Figures], ideal: float | None, names: list[str], medians: Medians
) -> tuple[str, ...]:
    def median(system: str, figure: Figure = question.figures[0]) -> float:
        return medians[question.name, system, figure.name]

    values = [run[question.figures[0].name] for run in runs]
    ratios = [median("serial")] if "serial" in names else []
    ratios += [ideal] if ideal is not None else []
    ratios += [median(_pipekit_beside(name, names, medians, question))] if _pipekits(names) != names else []
    return (
        f"**{name}**" if name.startswith("pipekit") else name,
        shown(median(name)),
        f"{shown(min(values))}-{shown(max(values))}",
        *(shown(median(name) / other) if other else "-" for other in ratios),
        *(shown(median(name, figure)) for figure in question.figures[1:]),
    )


def _pipekits(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("pipekit")]


def _pipekit_beside(name: str, names: list[str], medians: Medians, question: Question) -> str:
    """The fastest pipekit with the same kind of workers, or of all."""
    pipekits = _pipekits(names)
    alike = [other for other in pipekits if SYSTEMS[other].where == SYSTEMS[name].where] or pipekits
    return min(alike, key=lambda other: medians[question.name, other, question.figures[0].name])


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]], left: int = 1) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * left}{'---:|' * (len(titles) - left)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def _picture(question: Question, medians: Medians) -> str:
    figure = question.figures[0]
    values = {
        name: medians[key]
        for system in question.systems
        if (key := (question.name, name := system.name, figure.name)) in medians
    }
    return bars(f"{question.name}: {figure.title}", values)


def shown(value: float) -> str:
    """Three digits."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{float(f'{value:.3g}'):g}"
