"""Threads wait, processes compute, and a thread writes into this program's own dictionary."""

import time
from collections.abc import Iterable, Iterator

from pipekit import map_stage, stage

lengths: dict[str, int] = {}


@map_stage(workers=8, backend="thread")
def fetch(name: str) -> tuple[str, str]:
    time.sleep(0.01)  # waits, as for a network
    return name, name * 1000


@map_stage(workers=2)  # backend="process" is the default
def measure(page: tuple[str, str]) -> tuple[str, int]:
    name, text = page
    return name, sum(map(str.isalpha, text))


@stage(backend="thread")
def store(measured: Iterable[tuple[str, int]]) -> Iterator[str]:
    for name, length in measured:
        lengths[name] = length  # a thread of this program: no copy
        yield name


pipe = ["ann", "bob7", "claire"] | fetch | measure | store
print(sorted(pipe.results()))
print(sorted(lengths.items()))

# Output:
# ['ann', 'bob7', 'claire']
# [('ann', 3000), ('bob7', 3000), ('claire', 6000)]
