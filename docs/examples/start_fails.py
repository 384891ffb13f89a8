"""A worker that cannot be started: those that were are stopped, and a smaller pipeline may do."""

import textwrap

from pipekit import StartError, map_stage
from pipekit.testing import Faults, FaultyBackend


@map_stage
def double(number: int) -> int:
    return 2 * number


# A machine that refuses the third process, as one does that has no more to give.
crowded = FaultyBackend("process", Faults(fail_start=2))

for workers in (8, 2):
    try:
        print(sorted((range(5) | double.setup(workers=workers, backend=crowded)).results()))
    except StartError as error:
        print(textwrap.fill(str(error), 100))

# Output:
# the worker "double-2" could not be started (BlockingIOError(11, 'Resource temporarily
# unavailable')): all workers of this run are stopped. If the system has no more processes, threads or
# memory to give, use fewer workers
# [0, 2, 4, 6, 8]
