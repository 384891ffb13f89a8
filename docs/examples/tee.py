"""Every word goes to both branches: one counts the words, one finds the longest."""

from collections import Counter
from collections.abc import Iterable, Iterator

from pipekit import stage, tee

LINES = ["the cat sat on the mat", "the dog saw the cat"]


@stage(workers=2)  # runs once, for both branches
def words(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield from line.split()


@stage(backend="thread")
def most_common(words: Iterable[str]) -> Iterator[tuple[str, int]]:
    yield from Counter(words).most_common(1)


@stage(backend="thread")
def longest(words: Iterable[str]) -> Iterator[str]:
    yield max(words, key=len)


pipe = LINES * 100 | words | tee(most_common, longest)
print(pipe.explain())
print(sorted(pipe.results(), key=repr))  # of the branches, whichever is ready first comes first

# Output:
# source: 1 x thread -> words, queue as its reader needs it, at most 262144 items
# words: 2 x process -> tee(most_common, longest), queue as its reader needs it, at most 262144 items each
# most_common: 1 x thread -> results, queue as its reader needs it, at most 262144 items
# longest: 1 x thread -> results, queue as its reader needs it, at most 262144 items
# ['the', ('the', 400)]
