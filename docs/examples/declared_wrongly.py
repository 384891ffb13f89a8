"""What is declared wrongly is an error where it is declared, before anything runs."""

import textwrap
from collections.abc import Iterable
from typing import Any

from pipekit import PipelineError, map_stage, stage


@map_stage
def scale(number: int, factor: int) -> int:
    return number * factor


@stage
def total(numbers: Iterable[int]) -> Iterable[int]:
    return [sum(numbers)]


mistakes: dict[str, Any] = {
    "an option's value": lambda: scale.setup(workers=0),
    "an option's name": lambda: scale.setup(worker=2),  # type: ignore[call-arg]
    "a backend's name": lambda: scale.setup(backend="threads"),
    "a missing argument": lambda: [1, 2] | scale,  # type: ignore[operator]
    "a number on the left": lambda: 5 | total,  # type: ignore[operator]
    "a function on the right": lambda: [1, 2] | total | print,  # type: ignore[operator]
    "no source": (scale(2) | total).results,  # type: ignore[misc]
    "a time limit": lambda: ([1] | total).results(stall_timeout=0),
}
for mistake, declare in mistakes.items():
    try:
        declare()
    except PipelineError as error:
        print(textwrap.fill(f"{mistake}: {type(error).__name__}: {error}", 100))

# Output:
# an option's value: OptionError: workers=0 cannot work: it must be a whole number, 1 or more
# an option's name: SignatureError: there is no option 'worker': the options are workers, qsize,
# backend, key, name, fuse
# a backend's name: OptionError: there is no backend 'threads': use one of 'auto', 'free-threaded',
# 'process', 'ray', 'thread', or a Backend object
# a missing argument: SignatureError: stage 'scale': missing a required argument: 'factor'; call the
# stage to give its arguments, scale(...)
# a number on the left: SignatureError: 5 cannot stand left of `|`: that must be an iterable, a stage
# or a pipeline
# a function on the right: SignatureError: <built-in function print> cannot stand right of `|`: that
# must be a stage or a pipeline; make a function one with `stage` or `map_stage`
# no source: SignatureError: the pipeline starts with stage 'scale', which needs an input (it maps
# items): give it one with `iterable | scale`
# a time limit: OptionError: stall_timeout=0 cannot work: it must be a number of seconds above 0, or
# None
