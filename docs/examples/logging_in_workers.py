"""What workers log reaches your handlers, with the names of stage and worker."""

import logging
import sys

from pipekit import WorkerNames, map_stage

handler = logging.StreamHandler(sys.stdout)
handler.setFormatter(logging.Formatter("%(worker)s %(levelname)s %(message)s"))
handler.addFilter(WorkerNames())  # the names also for threads, and "-" where no worker logs
logging.basicConfig(level=logging.INFO, handlers=[handler])


@map_stage
def parse(text: str) -> int:
    logging.info("parsing %r", text)
    return int(text)


@map_stage(backend="thread")
def save(number: int) -> int:
    logging.debug("not shown: the level is INFO, in the workers too")
    return number


logging.info("total: %s", sum((["1", "2"] | parse | save).results()))

# Output:
# parse-0 INFO parsing '1'
# parse-0 INFO parsing '2'
# - INFO total: 3
