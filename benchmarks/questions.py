"""The questions: what is run for each, by which systems, which figures come out, and what cannot be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from benchmarks import jobs, probes
from benchmarks.jobs import JOBS
from benchmarks.systems import SYSTEMS, System, Where

#: Medians by question, system and figure.
Medians: TypeAlias = Mapping[tuple[str, str, str], float]


@dataclass(frozen=True)
class Figure:
    """One number of a run.

    name: its key in what the program prints.
    title: the head of its column.
    """

    name: str
    title: str


PER_ITEM = Figure("per_item", "us per item")
FROM_FIRST = Figure("from_first", "us per item, start not counted")
FROM_CALL = Figure("from_call", "us per item, start counted")


@dataclass(frozen=True)
class Question:
    """A question, and who answers it how.

    name: of the job or probe, the marker and the table.
    title: the question, in words.
    about: what is done, for the reader of the table.
    systems: those that are compared.
    figures: what a run gives; the first one is compared.
    size: how many items a probe gets; a job knows it.
    smoke: the same where only is seen that it works.
    ideal: the least possible first figure, from the medians.
    apart: what is not comparable, and why.
    """

    name: str
    title: str
    about: str
    systems: tuple[System, ...]
    figures: tuple[Figure, ...] = (PER_ITEM, FROM_FIRST)
    size: int = 0
    smoke: int = 0
    ideal: Callable[[Medians], float | None] | None = None
    apart: dict[str, str] = field(default_factory=dict)

    def items(self, system: System, smoke: bool) -> int:
        if self.name in JOBS:
            return JOBS[self.name].smoke if smoke else system.size(self.name, JOBS[self.name])
        return self.smoke if smoke else self.size


def _systems(*where: Where | None, without: str = "", also: str = "") -> tuple[System, ...]:
    """The systems of these kinds, without some and with some more, by name."""
    left_out = {"pool-forkserver", *without.split()}
    chosen = [system for system in SYSTEMS.values() if system.where in where and system.name not in left_out]
    more = [SYSTEMS[name] for name in also.split() if name in SYSTEMS]
    return (*more, *chosen)


def _half_of_serial(name: str) -> Callable[[Medians], float | None]:
    def ideal(medians: Medians) -> float | None:
        serial = medians.get((name, "serial", "per_item"))
        return None if serial is None else serial / 2

    return ideal


def _time_of(name: str, system: str) -> Callable[[Medians], float | None]:
    return lambda medians: medians.get((name, system, "per_item"))


def _waiting_on(workers: int) -> Callable[[Medians], float | None]:
    return lambda _: jobs.WAIT_SECONDS * 1e6 / workers


def _mixed_ideal(medians: Medians) -> float | None:
    serial = medians.get(("mixed_stages", "serial", "per_item"))
    return (
        None if serial is None else max(jobs.WAIT_SECONDS * 1e6 / jobs.WAITERS, (serial - jobs.WAIT_SECONDS * 1e6) / 2)
    )


# Why something is not in a table

NO_PROCESSES = {"stagepipe": "has threads only"}
NO_THREADS = {"parallelpipe": "has processes only"}
BY_HAND = {
    "mpire, joblib, executor.map": "know no stages; they run the steps composed by hand into one function (as do the "
    "pools called composed): fewer hops for the same result, and all steps share the workers",
}
NO_MIX = {
    "mpire, joblib": "know no stages: nothing overlaps the waiting with the computing",
    "stagepipe": "has threads only",
}
NOT_FROM_FIRST = {
    "pools of threads": "may do half of the work before the reader gets the interpreter's lock for its first "
    "result; see the last column",
    "stagepipe, executor.map": "read all of their input before they give a result: their start is counted, too",
}
FEWER_ITEMS = {
    "pypeln, pyper, parallelpipe, mpire, joblib, submit, pools with chunk 1": "get fewer items, because they need up "
    "to a thousand times as long for one; the figure is per item",
}
# Systems that are the same as others where there is one step, or where chunks of one, the default, are best.
COMPOSED = "pool-thread-composed pool-process-composed"
TUNED = "pool-thread-tuned pool-process-tuned"
ONE_STEP = f"{COMPOSED} pipekit-process-unfused"

_QUESTIONS = (
    Question(
        "overhead",
        "What does an item cost where stages do nothing?",
        "Three stages that give back what they get, two workers each; from the first result on.",
        _systems("thread", "process", also="serial"),
        figures=(PER_ITEM, FROM_CALL),
        apart=BY_HAND | FEWER_ITEMS | NOT_FROM_FIRST | NO_PROCESSES | NO_THREADS,
    ),
    Question(
        "in_turn",
        "And where threads and processes take turns?",
        "The same three stages, on threads, on processes, on threads; from the first result on.",
        _systems("mixed", also="serial"),
        figures=(PER_ITEM, FROM_CALL),
        apart=FEWER_ITEMS | {"mpire, joblib, stagepipe": "cannot mix them", "parallelpipe": "has processes only"},
    ),
    Question(
        "small_cpu",
        "What is left of small work?",
        "Two stages of 20 us of Python code, two processes each; from the call.",
        _systems("process", also="serial pipekit-thread"),
        ideal=_half_of_serial("small_cpu"),
        apart=BY_HAND | FEWER_ITEMS | NO_PROCESSES,
    ),
    Question(
        "cpu",
        "Does work for the processor spread?",
        "One stage of 5 ms of Python code, two processes; from the call. Ideal is what two forked processes take that "
        "share the items beforehand and say nothing before the end (bare).",
        _systems("process", without=f"{TUNED} {ONE_STEP}", also="serial bare pipekit-thread"),
        ideal=_time_of("cpu", "bare"),
        apart=NO_PROCESSES,
    ),
    Question(
        "io",
        "Does waiting overlap?",
        f"One stage that sleeps 10 ms, {jobs.WAITERS} threads; from the call.",
        _systems("thread", without=f"{TUNED} {ONE_STEP}", also="pipekit-process parallelpipe-process"),
        ideal=_waiting_on(jobs.WAITERS),
        apart={"parallelpipe": "has processes only: as many of them"},
    ),
    Question(
        "http",
        "And with a real server?",
        f"GET from a loopback server that answers after 10 ms, {jobs.CLIENTS} threads with a connection each; from the "
        "call.",
        _systems("thread", without=f"{TUNED} {ONE_STEP}", also="pipekit-process parallelpipe-process"),
        ideal=_waiting_on(jobs.CLIENTS),
        apart={"parallelpipe": "has processes only: as many of them"},
    ),
    Question(
        "mixed_stages",
        "Does a slow stage hide the others?",
        f"10 ms of waiting on {jobs.WAITERS} threads, 5 ms of Python code on two processes, one stage that adds up; "
        "from the call. Ideal is the computing alone on two cores.",
        _systems("mixed", also="serial"),
        figures=(PER_ITEM,),
        ideal=_mixed_ideal,
        apart=NO_MIX | {"parallelpipe": "has processes only: twenty of them wait"},
    ),
    Question(
        "big_payload",
        "What do arrays of 8 MB cost?",
        "The source makes them, one stage on two processes adds 1, the reader looks at the last element; "
        "from the call.",
        _systems("process", without=f"{TUNED} {ONE_STEP} parallelpipe-process", also="serial pipekit-thread"),
        apart={"parallelpipe": "fails: it compares each item with its end mark by ==, which an array does not answer"}
        | NO_PROCESSES,
    ),
    Question(
        "medium_payload",
        "What do 10 KB of bytes cost?",
        "Two stages that give back what they get, two processes each; from the call.",
        _systems("process", also="serial pipekit-thread"),
        apart=BY_HAND | FEWER_ITEMS | NO_PROCESSES,
    ),
    Question(
        "skew",
        "Does one long item hold up the others?",
        "0.2 ms of Python code, 20 ms for one item of a hundred, two processes; from the call.",
        _systems("process", without=ONE_STEP, also="serial pipekit-thread"),
        ideal=_half_of_serial("skew"),
        apart=NO_PROCESSES,
    ),
    Question(
        "words",
        "How long does a word count take?",
        "Text files of 20,000 words, read by four threads, counted by two processes, merged by one stage; "
        "from the call.",
        _systems("mixed", also="serial"),
        figures=(PER_ITEM,),
        apart=NO_MIX | {"parallelpipe": "has processes only: four of them read"},
    ),
    Question(
        "start",
        "How soon is there a first result?",
        "Ten items on four workers in a new program, and again in the same one; imports are not counted.",
        _systems("thread", "process", without=f"{TUNED} {ONE_STEP} stagepipe-thread", also="pool-forkserver"),
        figures=(
            Figure("first", "first result, ms"),
            Figure("whole", "to the end, ms"),
            Figure("first_again", "first result of the second run, ms"),
            Figure("whole_again", "second run to the end, ms"),
        ),
        size=10,
        smoke=10,
        apart={
            "stagepipe": "gives all results together at the end",
            "all but pool-forkserver and joblib": "fork the program, which is faster and unsafe once it has "
            "threads; pipekit and pool-forkserver use the fork server",
        },
    ),
    Question(
        "import_cost",
        "What does the import cost?",
        "Starting Python with `import pipekit`, less starting Python with `pass`.",
        (SYSTEMS["pipekit-thread"],),
        figures=(Figure("import", "import, ms"), Figure("python", "Python alone, ms")),
        size=15,
        smoke=1,
    ),
    Question(
        "latency",
        "How long does a result of a slow source take?",
        "A source that gives an item each 5 ms, through two stages of two workers; from the source to the reader.",
        _systems(
            "thread", "process", without=f"{TUNED} {COMPOSED} executor-map-thread executor-map-process stagepipe-thread"
        ),
        figures=(Figure("p50", "median, ms"), Figure("p99", "99 %, ms"), Figure("max", "longest, ms")),
        size=200,
        smoke=20,
        apart={
            "executor.map": "reads all of its input before it gives a result",
            "stagepipe": "gives all results together at the end",
        },
    ),
    Question(
        "held",
        "Is a finished item held because its neighbour takes long?",
        "One stage on two workers where every 50th item takes 50 ms; from the function's return to the reader.",
        _systems("thread", "process", without=f"{ONE_STEP} executor-map-thread executor-map-process stagepipe-thread"),
        figures=(Figure("max", "longest, ms"), Figure("p99", "99 %, ms"), Figure("p50", "median, ms")),
        size=1_000,
        smoke=100,
        apart={
            "executor.map": "gives results in the order of the items: all wait for the slow one",
            "stagepipe": "gives all results together at the end",
        },
    ),
    Question(
        "read_ahead",
        "How far is the source read ahead of a slow reader?",
        "An endless source, two stages of two workers, a reader that needs 1 ms for each item; the most items "
        "that were taken and not read, within 1,000 results.",
        _systems(
            "thread",
            "process",
            without=f"{TUNED} {COMPOSED} executor-map-thread executor-map-process stagepipe-thread "
            "parallelpipe-process mpire-thread mpire-process",
        ),
        figures=(Figure("items", "items ahead"), Figure("rss_growth", "memory grown by, MB")),
        size=1_000,
        smoke=50,
        apart={
            "executor.map": "reads all of its input before it gives a result: never, here",
            "stagepipe": "gives all results together at the end: never, here",
            "parallelpipe": "reads the source in a process of its own, where it cannot be counted; its queues "
            "have no limit",
            "mpire": "wants to know the number of items",
        },
    ),
    Question(
        "flat_memory",
        "Does memory stay flat over many items?",
        "2,000,000 items through two stages, a fast reader; memory of the program and its workers after a tenth of the "
        "items and at its highest later.",
        (SYSTEMS["pipekit-thread"], SYSTEMS["pipekit-process"]),
        figures=(Figure("rss_growth", "memory grown by, MB"),),
        size=2_000_000,
        smoke=2_000,
        apart={"peers": "would need an hour"},
    ),
    Question(
        "busy_parent",
        "Do workers starve while the parent computes?",
        f"Items of {probes.ITEM_MS:g} ms on {probes.BUSY_WORKERS} process(es), and Python code in the parent for "
        f"{probes.PARENT_MS:g} of the time: in the reader, in a thread stage before them; and in a thread of the "
        "program all the time. How busy the workers stay, against the same run with an idle parent.",
        tuple(SYSTEMS[name] for name in ("pipekit-mixed", "pool-mixed", "submit-mixed", "pyper-mixed")),
        figures=(
            Figure("consumer", "the reader computes, %"),
            Figure("thread_stage", "a thread stage computes, %"),
            Figure("other_thread", "another thread computes, %"),
        ),
        size=1_000,
        smoke=20,
        apart={"pypeln": "needs more than a millisecond for an item"},
    ),
)


QUESTIONS = {question.name: question for question in _QUESTIONS}
