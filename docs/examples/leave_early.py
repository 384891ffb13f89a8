"""Leaving in the middle of an endless pipeline: the worker is stopped, and `finally` blocks run."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from pipekit import stage


@stage
def squares(numbers: Iterable[int], directory: Path) -> Iterator[int]:
    try:
        for number in numbers:
            yield number * number
    finally:
        (directory / "cleaned up").touch()


with TemporaryDirectory() as name:
    pipe = itertools.count() | squares(Path(name))

    with pipe.results() as results:
        for result in results:
            if result > 10_000:
                print("found one, that is enough")
                break

    print(sorted(path.name for path in Path(name).iterdir()))

# Output:
# found one, that is enough
# ['cleaned up']
