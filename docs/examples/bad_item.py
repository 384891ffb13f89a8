"""One bad item: what was finished is delivered, then the error is raised, with its cause."""

from pipekit import TaskException, map_stage


@map_stage
def add_one(number: int) -> int:
    return number + 1


pipe = [2, 3, "ops", 7] | add_one  # type: ignore[operator]  # a type checker sees it, too

try:
    for result in pipe.results():
        print(result)
except TaskException as error:
    print(error)
    print("stage:", error.stage, "| worker:", error.worker, "| item:", error.item)
    print("cause:", repr(error.__cause__))

# Output:
# 3
# 4
# The task "add_one-0" raised TypeError('can only concatenate str (not "int") to str')
# stage: add_one | worker: add_one-0 | item: 'ops'
# cause: TypeError('can only concatenate str (not "int") to str')
