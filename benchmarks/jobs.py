"""The jobs that every system does: plain functions of this module, so that each of them can pickle them.

Numbers that all programs must agree on (how many loops are 5 ms here, where the server is) are in the environment.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import process_time, sleep
from typing import Any, Literal, TypeAlias

Kind: TypeAlias = Literal["thread", "process"]
#: How many items a system gets where a run of the fastest ones' size would take minutes.
Pace: TypeAlias = Literal["fast", "medium", "slow"]

LOOPS, PORT, FILES = "PIPEKIT_BENCHMARK_LOOPS_PER_MS", "PIPEKIT_BENCHMARK_PORT", "PIPEKIT_BENCHMARK_FILES"

WAIT_SECONDS = 0.01
ARRAY_BYTES = 8_000_000
PAGE_BYTES = 10_000


# Work of known cost


def same(item: Any) -> Any:
    return item


def spin(loops: int) -> int:
    """Keep a core busy with Python code."""
    total = 0
    for number in range(loops):
        total += number & 1
    return total


def measure_loops_per_ms() -> float:
    """How many loops of `spin` need a millisecond of processor time here; by the fastest of many tries."""
    loops = 20_000
    return loops / min(_processor_ms(loops) for _ in range(20))


def _processor_ms(loops: int) -> float:
    started = process_time()
    spin(loops)
    return (process_time() - started) * 1e3


@cache
def loops_for(ms: float) -> int:
    given = os.environ.get(LOOPS)
    return round(ms * (float(given) if given else measure_loops_per_ms()))


def compute_20_us(item: int) -> int:
    spin(loops_for(0.02))
    return item


def compute_5_ms(item: int) -> int:
    spin(loops_for(5))
    return item


def compute_skewed(item: int) -> int:
    """0.2 ms, and 20 ms for about one item of a hundred, at places that no chunk size knows."""
    spin(loops_for(20 if is_long(item) else 0.2))
    return item


def is_long(item: int) -> bool:
    return item * 2654435761 % 2**32 < 2**32 // 100  # Knuth's multiplicative hash


def wait(item: int) -> int:
    sleep(WAIT_SECONDS)
    return item


_connections = threading.local()


def fetch(item: int) -> int:
    """Ask the loopback server, on this thread's connection."""
    from http.client import HTTPConnection

    connection: HTTPConnection | None = getattr(_connections, "open", None)
    if connection is None:
        connection = _connections.open = HTTPConnection("127.0.0.1", int(os.environ[PORT]))
    connection.request("GET", f"/{item}")
    return int(connection.getresponse().read())


def arrays(items: int) -> Iterator[Any]:
    # Not by programs that do without; and at once: a fork while a thread imports would hang the child.
    import numpy

    return (numpy.full(ARRAY_BYTES // 8, item, dtype=numpy.int64) for item in range(items))


def add_one(array: Any) -> Any:
    return array + 1


def pages(items: int, size: int = PAGE_BYTES) -> Iterator[bytes]:
    return (item.to_bytes(4, "big") * (size // 4) for item in range(items))


def files(items: int) -> list[str]:
    return [str(path) for path in sorted(Path(os.environ[FILES]).iterdir())[:items]]


def make_files(directory: Path, count: int) -> None:
    """Text of 20,000 words each, always the same."""
    for number in range(count):
        words = (f"word{(number + place) * place % 4001}" for place in range(20_000))
        (directory / f"{number:04}.txt").write_text(" ".join(words))


def read_text(path: str) -> str:
    return Path(path).read_text()


def count_words(text: str) -> Counter[str]:
    return Counter(text.split())


def merge_counts(counters: Iterable[Counter[str]]) -> Iterator[Counter[str]]:
    """One by one, without keeping them."""
    merged: Counter[str] = Counter()
    for counter in counters:
        merged.update(counter)
    yield merged


def total(items: Iterable[int]) -> Iterator[int]:
    yield sum(items)


def last_elements(results: Iterable[Any]) -> int:
    return sum(int(array[-1]) for array in results)


def total_length(results: Iterable[bytes]) -> int:
    return sum(map(len, results))


def only(results: Iterable[Any]) -> Any:
    (result,) = results
    return result


# What is asked of a system


@dataclass(frozen=True)
class Step:
    """A function of an item (or, if it folds, of all items) and its workers.

    on: where it runs in a job that mixes threads and processes; elsewhere the system says.
    """

    function: Callable[[Any], Any]
    workers: int = 2
    on: Kind | None = None
    fold: bool = False


@dataclass(frozen=True)
class Job:
    """Items that pass through some steps.

    steps: what is done.
    sizes: how many items a system gets, by its pace.
    smoke: how many, where only is seen that it works.
    expected: the answer for so many items.
    answer: what is made of the results, at the least cost.
    source: the items.
    chunk: of pools that are tuned for it by hand.
    from_first: whether the time counts from the first result on, else from the call.
    """

    steps: tuple[Step, ...]
    sizes: dict[Pace, int]
    expected: Callable[[int], Any]
    smoke: int = 30
    answer: Callable[[Iterable[Any]], Any] = sum
    source: Callable[[int], Iterable[Any]] = range
    chunk: int = 1
    from_first: bool = False

    @property
    def mixed(self) -> bool:
        return any(step.on is not None for step in self.steps)

    @property
    def maps(self) -> Sequence[Step]:
        return [step for step in self.steps if not step.fold]


def _sizes(fast: int, medium: int | None = None, slow: int | None = None) -> dict[Pace, int]:
    return {"fast": fast, "medium": medium or fast, "slow": slow or medium or fast}


def _sum_of_range(items: int) -> int:
    return sum(range(items))


def _counted(items: int) -> Counter[str]:
    return only(merge_counts(map(count_words, map(read_text, files(items)))))  # type: ignore[no-any-return]


WAITERS = 20
CLIENTS = 8

JOBS = {
    "overhead": Job(
        steps=(Step(same),) * 3,
        sizes=_sizes(800_000, 20_000, 2_000),
        expected=_sum_of_range,
        chunk=256,
        from_first=True,
    ),
    "in_turn": Job(
        steps=(Step(same, 2, "thread"), Step(same, 2, "process"), Step(same, 2, "thread")),
        sizes=_sizes(300_000, 10_000, 2_000),
        expected=_sum_of_range,
        from_first=True,
    ),
    "small_cpu": Job(
        steps=(Step(compute_20_us),) * 2,
        sizes=_sizes(160_000, 20_000, 2_000),
        expected=_sum_of_range,
        chunk=64,
    ),
    "cpu": Job(steps=(Step(compute_5_ms),), sizes=_sizes(800), expected=_sum_of_range, smoke=10),
    "io": Job(steps=(Step(wait, WAITERS),), sizes=_sizes(2_000), expected=_sum_of_range),
    "http": Job(steps=(Step(fetch, CLIENTS),), sizes=_sizes(1_000), expected=_sum_of_range),
    "mixed_stages": Job(
        steps=(Step(wait, WAITERS, "thread"), Step(compute_5_ms, 2, "process"), Step(total, 1, "thread", fold=True)),
        sizes=_sizes(600),
        expected=_sum_of_range,
        answer=only,
        smoke=10,
    ),
    "big_payload": Job(
        steps=(Step(add_one),) * 2,
        sizes=_sizes(300, 60),
        expected=lambda items: sum(range(2, items + 2)),
        answer=last_elements,
        source=arrays,
        from_first=True,
        smoke=5,
    ),
    "medium_payload": Job(
        steps=(Step(same),) * 2,
        sizes=_sizes(50_000, 10_000, 1_000),
        expected=lambda items: items * PAGE_BYTES,
        answer=total_length,
        source=pages,
        from_first=True,
        chunk=16,
    ),
    "skew": Job(steps=(Step(compute_skewed),), sizes=_sizes(6_000), expected=_sum_of_range, chunk=8),
    "words": Job(
        steps=(
            Step(read_text, 4, "thread"),
            Step(count_words, 2, "process"),
            Step(merge_counts, 1, "thread", fold=True),
        ),
        sizes=_sizes(400),
        expected=_counted,
        answer=only,
        source=files,
        smoke=5,
    ),
}
