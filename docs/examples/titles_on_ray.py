"""The titles of many pages, searched on two nodes of a Ray cluster. (Both are on this machine, to try it.)"""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}  # the same for all nodes and this program
logging.getLogger("ray").setLevel("ERROR")

import ray.util  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from pipekit import RayBackend, map_stage, stage  # noqa: E402

TITLE = re.compile("<title>(.*?)</title>")
URLS = [f"page/{number}" for number in range(1000)]


@map_stage(workers=4, backend="thread")
def download(url: str) -> str:
    """Stands for the network: every third page is called "Home"."""
    number = int(url.removeprefix("page/"))
    return f"<html><title>{'Home' if number % 3 == 0 else f'Page {number}'}</title></html>"


@stage(workers=2)
def parse_titles(pages: Iterable[str]) -> Iterator[tuple[str, Counter[str]]]:
    found = map(TITLE.search, pages)
    yield ray.util.get_node_ip_address(), Counter(match.group(1) for match in found if match is not None)


cluster = Cluster(
    initialize_head=True, head_node_args={"num_cpus": 0, "node_ip_address": "127.0.0.2", "include_dashboard": False}
)
for address in ("127.0.0.3", "127.0.0.4"):
    cluster.add_node(num_cpus=1, node_ip_address=address, object_store_memory=100_000_000)

on_cluster = RayBackend(address=cluster.address)  # a CPU for each worker: one on each node
pipe = URLS | download | parse_titles.setup(backend=on_cluster)

nodes, counts = zip(*pipe.results(), strict=True)
print(sum(counts, Counter()).most_common(1))
print(sorted(nodes))

ray.shutdown()
cluster.shutdown()

# Output:
# [('Home', 334)]
# ['127.0.0.3', '127.0.0.4']
