"""What must not type-check: mypy complains about a `type: ignore` that it does not need. Read by mypy only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pipekit import DROP, NoInput, Pipeline, RayBackend, Stage, map_stage, merge, route, run_inline, stage, tee
from pipekit.testing import Faults, FaultyBackend


@stage
def titles(pages: Iterable[bytes]) -> Iterator[str]:
    for page in pages:
        yield page.decode()


@stage()
def add_n(numbers: Iterable[int], n: int) -> Iterator[int]:
    for number in numbers:
        yield number + n


@map_stage(workers=2)
def power(number: int, exponent: int) -> int:
    return number + exponent


@map_stage
def upper(text: str) -> str:
    return text.upper()


def plain(numbers: Iterable[int]) -> Iterator[int]:
    yield from numbers


def plain_add_n(numbers: Iterable[int], n: int) -> Iterator[int]:
    for number in numbers:
        yield number + n


# Joints that do not fit
titles | add_n(1)  # type: ignore[operator]
["text"] | titles  # type: ignore[operator]
[1] | add_n(1) | titles  # type: ignore[operator]
[b""] | titles | power(2)  # type: ignore[operator]
[b""] | (titles | power(2))  # type: ignore[operator]
[1] | (titles | upper)  # type: ignore[operator]
Stage(range, 10) | titles  # type: ignore[operator]

# Extra arguments
add_n("x")  # type: ignore[arg-type]
add_n(m=1)  # type: ignore[call-arg]
add_n()  # type: ignore[call-arg]
add_n(1, 2)  # type: ignore[call-arg]
power("x")  # type: ignore[arg-type]
[1] | add_n  # type: ignore[operator]
[1] | power  # type: ignore[operator]
add_n(1) | power  # type: ignore[operator]
Stage(plain_add_n, "x")  # type: ignore[call-overload]
Stage(plain_add_n, 1, 2)  # type: ignore[call-overload]

# Nothing to read
titles.results()  # type: ignore[misc]
titles.execute()  # type: ignore[misc]
(titles | upper).results()  # type: ignore[misc]
(add_n(1) | power(2)).results()  # type: ignore[misc]
(add_n(1) | power(2)).execute()  # type: ignore[misc]
(add_n(1) | power(2)).plan()  # type: ignore[misc]
Stage(range, 10) | Stage(range, 10)  # type: ignore[operator]
[1] | ([1] | add_n(1))  # type: ignore[operator]

# Options
add_n.setup(worker=2)  # type: ignore[call-arg]
add_n.setup(workers="2")  # type: ignore[arg-type]
add_n.setup(workers=None)  # type: ignore[arg-type]
add_n.setup(qsize=1.5)  # type: ignore[arg-type]
add_n.setup(backend=3)  # type: ignore[arg-type]
RayBackend(address=6379)  # type: ignore[arg-type]
RayBackend(resources=["disk"])  # type: ignore[arg-type]
RayBackend(gpus=1)  # type: ignore[call-arg]
stage(worker=2)  # type: ignore[call-overload]
stage(workers="2")  # type: ignore[call-overload]
stage(filter_errors=True)  # type: ignore[call-overload]
map_stage(worker=2)  # type: ignore[call-overload]
map_stage(filter_errors=1)  # type: ignore[call-overload]
map_stage(qsize="1")  # type: ignore[call-overload]

# What cannot be joined
add_n(1) | plain  # type: ignore[operator]
[1] | add_n(1) | plain  # type: ignore[operator]
3 | add_n(1)  # type: ignore[operator]
3 | (add_n(1) | power(2))  # type: ignore[operator]
add_n(1) | [1]  # type: ignore[operator]
add_n(1) | None  # type: ignore[operator]


# What cannot be a stage
@stage  # type: ignore[arg-type]
def takes_item(number: int) -> int:
    return number


@stage(workers=2)  # type: ignore[arg-type]
def gives_item(numbers: Iterable[int]) -> int:
    return sum(numbers)


Stage(3)  # type: ignore[call-overload]
map_stage(3)  # type: ignore[call-overload]

# Results have a type
last: int = ([b"a"] | titles).execute()  # type: ignore[assignment]
for wrong in ([1] | add_n(1)).results():
    wrong.upper()  # type: ignore[attr-defined]
closed: Pipeline[NoInput, int] = add_n(1) | power(2)  # type: ignore[assignment]
ordinary: Stage[str, Any] = add_n(1)  # type: ignore[assignment]

# Running
([1] | add_n(1)).results(60)  # type: ignore[call-arg]
([1] | add_n(1)).results(stall_timeout="60")  # type: ignore[arg-type]
run_inline(add_n(1))  # type: ignore[arg-type]
run_inline([1])  # type: ignore[arg-type]
inline: Iterator[str] = run_inline([1] | add_n(1))  # type: ignore[arg-type]
Faults(before_put="a little")  # type: ignore[arg-type]
FaultyBackend(3, Faults())  # type: ignore[arg-type]


# Graphs
@map_stage
def length(text: str) -> int:
    return len(text)


def first_letter(text: str) -> str:
    return text[0]


# branches that do not take what comes
[1] | tee(length, upper)  # type: ignore[operator]
[1] | add_n(1) | tee(length, upper)  # type: ignore[arg-type]
["a"] | tee(length, add_n(1))  # type: ignore[operator]
["a"] | upper | tee(length, tee(upper, add_n(1)))  # type: ignore[arg-type]
[b""] | route(first_letter, a=length)  # type: ignore[operator]
["a"] | route(first_letter, a=add_n(1))  # type: ignore[arg-type, operator]
["a"] | route(first_letter, {"a": upper}, default=add_n(1))  # type: ignore[operator]
[1] | add_n(1) | route(first_letter, a=upper)  # type: ignore[arg-type]
# what they give is not taken
["a"] | tee(upper, length) | upper  # type: ignore[operator]
["a"] | tee(upper, length) | add_n(1)  # type: ignore[operator]
["a"] | tee(upper, upper | length) | upper  # type: ignore[operator]
["a"] | route(first_letter, a=upper) | add_n(1)  # type: ignore[operator]
# merged, and used as if alike
merge(["a"], [1]) | upper  # type: ignore[operator]
merge(["a"] | upper, ["a"] | length) | add_n(1)  # type: ignore[operator]
number: int = next(merge([1], ["a"]).results())  # type: ignore[assignment]
# no branch, nothing to merge
tee([1])  # type: ignore[call-overload]
["a"] | tee([1] | add_n(1), length)  # type: ignore[operator]
tee(plain)  # type: ignore[call-overload]
tee(length, 3)  # type: ignore[call-overload]
route("a", a=length)  # type: ignore[arg-type]
route(first_letter, [length])  # type: ignore[arg-type]
route(first_letter, a=plain)  # type: ignore[arg-type]
route(first_letter, default="drop")  # type: ignore[arg-type]
merge(length)  # type: ignore[arg-type]
merge(length | add_n(1), [1])  # type: ignore[arg-type]
merge(3)  # type: ignore[call-overload]
["a"] | merge(["a"], ["b"])  # type: ignore[operator]
length.setup(key=add_n)  # type: ignore[arg-type]
length.setup(key=lambda text: text.no_such_method())  # type: ignore[attr-defined]
add_n(1).setup(key=len)  # type: ignore[arg-type]
length.setup(name=3)  # type: ignore[arg-type]
tee(length, upper)(3)  # type: ignore[call-arg]
(upper | length).explain()  # type: ignore[misc]
tee(length, DROP)  # type: ignore[call-overload]
