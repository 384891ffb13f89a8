"""What cannot travel to a process is a named error: arguments when the run starts, items and results when met."""

import threading
from typing import Any

from pipekit import ItemNotPicklable, NotPicklable, map_stage


@map_stage
def hold(number: int, lock: Any) -> int:
    with lock:
        return number


@map_stage
def open_lock(number: int) -> tuple[int, Any]:
    return number, threading.Lock()


try:
    (range(3) | hold(threading.Lock())).execute()
except NotPicklable as error:  # raised before anything runs
    print(str(error).partition(" is ")[0])

try:
    (range(3) | open_lock).execute()
except ItemNotPicklable as error:
    print("item:", error.item, "| cause:", error.__cause__)

# Nothing travels between threads: there it works.
on_threads = open_lock.setup(backend="thread")
print(len(list((range(3) | on_threads).results())), "locks")

# Output:
# stage 'hold' cannot be sent to a process: its argument 1
# item: 0 | cause: cannot pickle '_thread.lock' object
# 3 locks
