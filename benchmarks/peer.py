"""A program that runs three identity stages on processes with one of the libraries that are compared.

    python benchmarks/peer.py LIBRARY ITEMS

Says "ready" when it has the first result, reads to the end when it is given a line, and then says how many it has read.
A program of its own, because a run of some libraries can hang.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from typing import Any

WORKERS = 2


def same(item: int) -> int:
    return item


def results_of(library: str, size: int) -> Iterator[int]:
    # parallelpipe changes a stage when it is put into a pipeline: each place has one of its own, used once.
    module: Any = importlib.import_module(library)
    first, second, third = (module.map_stage(workers=WORKERS)(same) for _ in range(3))
    return iter((range(size) | first | second | third).results())


def main(library: str, size: str) -> None:
    results = results_of(library, int(size))
    next(results)
    print("ready", flush=True)
    sys.stdin.readline()
    print(1 + len(list(results)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
