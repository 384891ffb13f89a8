"""A call that never returns: the run is given up, and says what each worker was doing."""

import threading

from pipekit import Stalled, map_stage


@map_stage(backend="thread")
def fetch(number: int) -> int:
    return number


@map_stage
def save(number: int) -> int:
    if number == 3:
        threading.Event().wait()  # a lock that nobody releases, a server that does not answer, ...
    return number


try:
    for result in (range(5) | fetch | save).results(stall_timeout=1):
        print(result)
except Stalled as error:
    print(str(error).splitlines()[0])
    for state in error.workers:
        print(f"{state.worker}: {state.doing.value}")
    print("item:", error.workers[2].item)
    print("in the code:", error.workers[2].traceback.splitlines()[1].strip())

# Output:
# 0
# 1
# 2
# nothing has moved for 1 s although the results were waited for; the run is stopped. What its workers were doing:
# source-0: ended
# fetch-0: ended
# save-0: in user code
# item: 3
# in the code: threading.Event().wait()  # a lock that nobody releases, a server that does not answer, ...
