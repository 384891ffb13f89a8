"""A pipeline that starts with a function instead of an iterable, and ends with one result."""

from collections.abc import Iterable, Iterator

from pipekit import Stage, stage


@stage
def numbers(first: int, last: int) -> Iterator[int]:
    """A producer: it is called without items, in its worker."""
    yield from range(first, last + 1)


@stage(workers=3)
def squares(items: Iterable[int]) -> Iterator[int]:
    for item in items:
        yield item * item


@stage
def total(items: Iterable[int]) -> Iterator[int]:
    """An aggregate: reads everything, gives one result. One worker, or there would be several totals."""
    yield sum(items)


print((numbers(1, 100) | squares | total).execute())
print((Stage(range, 5).setup(workers=2) | total).execute())  # two workers: two copies of range(5)
print(sorted(numbers(1, 5).results()))  # a single stage that needs no input runs as well

# Output:
# 338350
# 20
# [1, 2, 3, 4, 5]
