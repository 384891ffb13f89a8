"""Native code that crashes: the error shows where, and with which item."""

import ctypes
import textwrap

from pipekit import WorkerDied, map_stage


@map_stage
def read_address(address: int) -> bytes:
    return ctypes.string_at(address) if address == 0 else b"..."


try:
    ([1, 0] | read_address).execute()
except WorkerDied as error:
    print(textwrap.fill(str(error), 100))
    crash = str(error.__cause__).splitlines()
    print(crash[2])
    print(*(line.rpartition("/")[2] for line in crash if "crashed_worker.py" in line))

# Output:
# The worker "read_address-0" died: killed by signal 11 (SIGSEGV, a crash in native code: its stack is
# above). It had 1 item in hand: 0
# Fatal Python error: Segmentation fault
# crashed_worker.py", line 11 in read_address
