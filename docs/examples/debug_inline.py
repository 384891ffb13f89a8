"""The same pipeline in this thread, without workers: breakpoints, print and profilers work, and no item is pickled."""

from collections.abc import Iterable, Iterator

from pipekit import TaskException, map_stage, run_inline, stage


@map_stage(workers=8, backend="thread")
def fetch(number: int) -> str:
    return f"page {number}"


@stage(workers=4)
def parse(pages: Iterable[str]) -> Iterator[int]:
    for page in pages:
        yield 10 // int(page.removeprefix("page "))  # breakpoint() would stop here


pipe = [5, 2, 0, 1] | fetch | parse

try:
    for result in run_inline(pipe):  # instead of pipe.results()
        print(result)
except TaskException as error:
    print(error)
    print("item:", error.item)

# Output:
# 2
# 5
# The task "parse-0" raised ZeroDivisionError('integer division or modulo by zero')
# item: 'page 0'
