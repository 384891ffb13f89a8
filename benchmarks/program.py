"""A run of one system, in a program of its own: some of them hang, and leave processes behind.

    python benchmarks/program.py SYSTEM QUESTION ITEMS [--check]

Says "ready"; when it is given a line it runs, and prints its figures as one line of JSON. `--check` compares every
result with the serial run's, and times nothing.

Nothing is imported by those who import this: each worker of a Pool of the fork server does.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    # The package of the benchmarks, behind all others: an installed pipekit is the one to measure.
    sys.path.append(str(Path(__file__).resolve().parent.parent))

    from benchmarks.child import main

    main(*sys.argv[1:])
