"""Two sources, each read in its own way, into one stage."""

from collections.abc import Iterable, Iterator

from pipekit import map_stage, merge, stage

OLD = ["ann;1999", "bob;2001"]
NEW = [("claire", 2020), ("dan", 2024)]


@map_stage(backend="thread")
def parse(line: str) -> tuple[str, int]:
    name, _, year = line.partition(";")
    return name, int(year)


@stage
def names(people: Iterable[tuple[str, int]]) -> Iterator[str]:
    for name, _ in people:
        yield name.title()


pipe = merge(OLD | parse, NEW) | names
print(sorted(pipe.results()))

# Output:
# ['Ann', 'Bob', 'Claire', 'Dan']
