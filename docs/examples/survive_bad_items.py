"""Two ways to go on after a bad item: leave it out, or catch the exception and hand something on."""

from collections.abc import Iterable, Iterator

from pipekit import map_stage, stage


@map_stage(workers=2, filter_errors=True)
def parse(text: str) -> int:
    return int(text)


@stage(workers=2)
def parse_or_tell(texts: Iterable[str]) -> Iterator[int | str]:
    for text in texts:
        try:
            yield int(text)
        except ValueError as error:
            yield f"bad: {error}"


texts = ["1", "two", "3"]
print(sorted((texts | parse).results()))
print(sorted((texts | parse_or_tell).results(), key=str))

# Output:
# [1, 3]
# [1, 3, "bad: invalid literal for int() with base 10: 'two'"]
