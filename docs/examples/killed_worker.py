"""A worker that is killed is an error at once, not a hang and not a short result."""

import os
import signal
import textwrap
import time

from pipekit import WorkerDied, map_stage


@map_stage
def check(number: int) -> int:
    time.sleep(0.02)  # some work
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)  # as the out-of-memory killer would
    return number


pipe = [1, 2, 3, 4] | check

try:
    with pipe.results() as results:
        for result in results:
            print(result)
except WorkerDied as error:
    print(textwrap.fill(str(error), 100))

# Output:
# 1
# 2
# The worker "check-0" died: killed by signal 9 (SIGKILL, usually the out-of-memory killer: check the
# memory that its items need, or use fewer workers). It had 1 item in hand: 3
