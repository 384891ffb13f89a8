"""What must type-check, and what it infers. Read by mypy only: see tests/test_types.py."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Never, assert_type

from pipekit import (
    DROP,
    Doing,
    NoInput,
    Pipeline,
    ProcessBackend,
    RayBackend,
    Results,
    RunStats,
    Stage,
    Stalled,
    ThreadBackend,
    WorkerState,
    map_stage,
    merge,
    route,
    run_inline,
    stage,
    tee,
)
from pipekit.testing import CHECKS, Faults, FaultyBackend, check_backend


@stage(workers=4, qsize=30, backend="thread")
def fetch(urls: Iterable[str]) -> Iterator[bytes]:
    for url in urls:
        yield url.encode()


@stage
def titles(pages: Iterable[bytes]) -> Iterator[str]:
    for page in pages:
        yield page.decode()


@stage()
def add_n(numbers: Iterable[int], n: int) -> Iterator[int]:
    for number in numbers:
        yield number + n


@stage()
def scale(numbers: Iterable[int], factor: float = 1.0, *, offset: int = 0) -> Iterator[float]:
    for number in numbers:
        yield number * factor + offset


@map_stage
def length(text: str) -> int:
    return len(text)


@map_stage(workers=2, filter_errors=True)
def power(number: int, exponent: int, modulus: int | None = None) -> int:
    return pow(number, exponent, modulus)


@map_stage
def upper(text: str) -> str:
    return text.upper()


@map_stage
def letters(text: str) -> list[str]:
    return list(text)


@map_stage
def ratio(text: str) -> float:
    return float(text)


@map_stage
def fetch_one(url: str) -> bytes:
    return url.encode()


def fetch_plain(urls: Iterable[str]) -> Iterator[bytes]:
    for url in urls:
        yield url.encode()


@stage(workers=2)
def numbers(upto: int) -> Iterator[int]:
    yield from range(upto)


@stage
def forever() -> Iterator[int]:
    while True:
        yield 0


@stage
def write(texts: Iterable[str], path: str) -> None:
    """A sink."""
    print(*texts, path)


def plain_add_n(numbers: Iterable[int], n: int) -> Iterator[int]:
    for number in numbers:
        yield number + n


@dataclass
class Corpus:
    prefix: str

    def words(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            yield self.prefix + text

    def read(self) -> list[str]:
        return [self.prefix]

    def mark(self, text: str) -> tuple[str, str]:
        return self.prefix, text


urls = ["a", "b"]

# Stages
assert_type(fetch, Stage[str, bytes, []])
assert_type(titles, Stage[bytes, str, []])
assert_type(length, Stage[str, int, []])
needs_n: Stage[int, int, [int]] = add_n
assert_type(add_n(7), Stage[int, int])
assert_type(scale(), Stage[int, float])
assert_type(scale(2.0, offset=1), Stage[int, float])
assert_type(power(2), Stage[int, int])
assert_type(power(2, modulus=5), Stage[int, int])

# Pipelines
assert_type(urls | fetch | titles, Pipeline[NoInput, str])
assert_type((urls | fetch | titles).results(), Results[str])
assert_type((urls | fetch | titles).execute(), str | None)
assert_type((urls | fetch | titles | length | add_n(1) | power(2)).results(), Results[int])
assert_type((range(10) | scale(2.0)).execute(), float | None)
for title in (urls | fetch | titles).results():
    assert_type(title, str)
with (urls | fetch).results() as results:
    assert_type(results, Results[bytes])
    assert_type(next(results), bytes)
    assert_type(results.stats(), RunStats)
    assert_type(list(results), list[bytes])

# Open pipelines
opened = fetch | titles
assert_type(opened, Pipeline[str, str])
assert_type(urls | opened, Pipeline[NoInput, str])
assert_type(opened | length, Pipeline[str, int])
assert_type(length | (add_n(1) | power(2)), Pipeline[str, int])
assert_type((urls | opened | (length | add_n(1))).execute(), int | None)

# Producers
assert_type(numbers(10), Stage[NoInput, int])
assert_type(numbers(10).results(), Results[int])
assert_type(numbers(10) | add_n(1), Pipeline[NoInput, int])
assert_type(forever.execute(), int | None)
assert_type(Stage(range, 10) | Stage(plain_add_n, 5), Pipeline[NoInput, int])
assert_type((Stage(range, 10).setup(qsize=5) | Stage(plain_add_n, 5).setup(workers=2)).execute(), int | None)
assert_type(Stage(range, 10).results(), Results[int])
assert_type(Stage(plain_add_n, n=5), Stage[int, int])

# Methods
corpus = Corpus("-")
assert_type(Stage(corpus.words), Stage[str, str])
assert_type(stage(corpus.words), Stage[str, str, []])
assert_type(map_stage(corpus.mark), Stage[str, tuple[str, str], []])
assert_type(Stage(corpus.read) | Stage(corpus.words), Pipeline[NoInput, str])

# setup() keeps the type
assert_type(fetch.setup(workers=2, qsize=0), Stage[str, bytes, []])
assert_type(fetch.setup(qsize=None, backend=ThreadBackend()), Stage[str, bytes, []])
assert_type(add_n.setup(workers=2)(7), Stage[int, int])
assert_type(add_n(7).setup(backend=ProcessBackend(start_method="spawn")), Stage[int, int])
assert_type(add_n(7).setup(backend=RayBackend(num_gpus=0.5, resources={"disk": 1})), Stage[int, int])
assert_type(urls | fetch.setup(workers=2), Pipeline[NoInput, bytes])


# Sources: any iterable
class Indexed(Iterable[int]):
    def __iter__(self) -> Iterator[int]:
        return iter([1])


def sources(named: Mapping[str, int], texts: Iterable[str]) -> None:
    assert_type(("a", "b") | length, Pipeline[NoInput, int])
    assert_type((text for text in urls) | length, Pipeline[NoInput, int])
    assert_type(iter(urls) | length, Pipeline[NoInput, int])
    assert_type(map(str, [1]) | length, Pipeline[NoInput, int])
    assert_type("text" | length, Pipeline[NoInput, int])
    assert_type({"a", "b"} | length, Pipeline[NoInput, int])
    assert_type(frozenset(urls) | length, Pipeline[NoInput, int])
    assert_type({"a": 1} | length, Pipeline[NoInput, int])
    assert_type({"a": 1}.items() | items, Pipeline[NoInput, str])
    assert_type(named | length, Pipeline[NoInput, int])
    assert_type(texts | length, Pipeline[NoInput, int])
    assert_type(Indexed() | add_n(1), Pipeline[NoInput, int])
    assert_type([True] | add_n(1), Pipeline[NoInput, int])


@map_stage
def items(pair: tuple[str, int]) -> str:
    return pair[0]


# Variance: a stage takes the place of one that reads less, or gives more general items.
@map_stage
def show(value: object) -> str:
    return repr(value)


reads_text: Stage[str, object] = show
gives_object: Pipeline[str, object] = opened
assert_type(urls | fetch | show, Pipeline[NoInput, str])

# a sink has no results
assert_type((["a"] | write("file")).results(), Results[Never])

# Time limits; and the same pipeline in this thread
assert_type((["a"] | length).results(stall_timeout=60), Results[int])
assert_type((["a"] | length).execute(stall_timeout=0.5), int | None)
assert_type(run_inline(["a"] | length), Generator[int])
assert_type(run_inline(numbers(3)), Generator[int])
try:
    (["a"] | length).execute()
except Stalled as stalled:
    assert_type(stalled.workers, tuple[WorkerState, ...])
    assert_type(stalled.workers[0].doing, Doing)

# Backends with faults take the place of backends
add_n.setup(backend=FaultyBackend("process", Faults(before_put=0.1, fail_start=2)))
check_backend(ProcessBackend())
CHECKS[0](ThreadBackend(), timeout=5)


# Graphs: a tee takes what every branch takes, and gives what any of them gives
assert_type(tee(length, upper), Stage[str, int | str])
assert_type(tee(length), Stage[str, int])
assert_type(tee(length, upper, length | add_n(1)), Stage[str, int | str])
assert_type(tee(length, upper, letters, ratio), Stage[str, int | str | list[str] | float])
assert_type(tee(length, upper, letters, ratio, fetch_one), Stage[str, int | str | list[str] | float | bytes])
assert_type(tee(*[upper, length | show]), Stage[str, str])
assert_type(tee(length | add_n(1), upper | letters), Stage[str, int | list[str]])
assert_type(["a"] | upper | tee(length, letters), Pipeline[NoInput, int | list[str]])
assert_type((["a"] | tee(length, letters) | show).results(), Results[str])
assert_type(["a"] | upper | tee(tee(length, letters), upper), Pipeline[NoInput, int | list[str] | str])
assert_type(tee(write("file"), length), Stage[str, int])
assert_type(tee(upper, upper, upper, upper, upper, upper), Stage[str, str])
assert_type(tee(length, upper).setup(name="both"), Stage[str, int | str])
for value in (["a"] | tee(length, letters)).results():
    assert_type(value, int | list[str])


# a route too, where its branches give the same; else say what it gives
def first_letter(text: str) -> str:
    return text[0]


assert_type(route(first_letter, a=length, b=length | add_n(1)), Stage[str, int])
assert_type(route(first_letter, {".": length}, default=DROP), Stage[str, int])
assert_type(route(first_letter, {".": upper}, x=upper, default=upper), Stage[str, str])
assert_type(["a"] | upper | route(first_letter, a=length) | add_n(1), Pipeline[NoInput, int])
assert_type(route(len, {1: upper | length}, default=tee(length, length)), Stage[str, int])
assert_type(route(first_letter, {"a": length | show, "b": upper}), Stage[str, str])
either: Stage[str, int | str] = route(first_letter, a=length, b=upper)

# merged are pipelines with their source, and iterables
assert_type(merge(["a"] | length, [1.5]), Pipeline[NoInput, int | float])
assert_type(merge(["a"], ["b"] | upper), Pipeline[NoInput, str])
assert_type(merge(["a"], ["b"] | upper) | length, Pipeline[NoInput, int])
assert_type(merge(numbers(3), ["a"] | letters, urls | fetch), Pipeline[NoInput, int | list[str] | bytes])
assert_type(merge(["a"] | tee(length, letters), [None]), Pipeline[NoInput, int | list[str] | None])
assert_type(merge(range(3), range(4), range(5), range(6), range(7)).results(), Results[int])
assert_type(list(run_inline(merge(["a"] | length, [1]))), list[int])

# a key is a function of an item
assert_type(length.setup(key=len, name="lengths"), Stage[str, int, []])
assert_type(length.setup(key=lambda text: text.upper()), Stage[str, int, []])
assert_type(length.setup(key=None, name=None), Stage[str, int, []])
assert_type(stage(workers=2, key=len)(fetch_plain), Stage[str, bytes, []])

# what is to be run, and pictures
assert_type((["a"] | tee(length, letters)).explain(), str)
assert_type(tee(length, letters).to_mermaid() + upper.to_dot() + (upper | length).to_svg(), str)
