"""The Ray backend on a cluster of several nodes. All are on this machine: Ray makes its own address of 127.0.0.1."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from conftest import eventually, run_program

from pipekit import BackendUnavailable, Stage, TaskException, WorkerDied, map_stage, stage
from pipekit.backends.ray import RayBackend

#: Before the tests' session replaces it (see conftest).
cpus_of_a_cluster = RayBackend.cpus

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "pipekit-parallel[ray]"')

from ray.cluster_utils import Cluster  # noqa: E402

HEAD, LEFT, RIGHT, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4", "127.0.0.5"
#: How the head looks after the nodes: one is lost after three answers that did not come. (By default, after 15 s.)
HEALTH_CHECK = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 3,
}
#: Seconds that this takes at most, and as many for a busy machine.
HEALTH_CHECK_SECONDS = 2 * 3.5
MEGABYTE = 1 << 20
ARRAY_SIZE = 40 * MEGABYTE


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without CPUs, where the driver is, and two nodes, each with a resource of its name."""
    ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # on all nodes and here: there is no token in a home to agree on
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # Ray does not wait to hear why a connection broke: its 1 s could be enough or not for the health check below.
        patch.setenv("RAY_timeout_ms_task_wait_for_death_info", "0")
        head = {
            "num_cpus": 0,
            "node_ip_address": HEAD,
            "include_dashboard": False,
            "object_store_memory": 200 * MEGABYTE,
            "_system_config": HEALTH_CHECK,
        }
        nodes = Cluster(initialize_head=True, head_node_args=head)
        try:
            add_node(nodes, LEFT, "left")
            add_node(nodes, RIGHT, "right")
            assert ([1] | map_stage(backend=on(nodes, "left"))(plus_one)).execute() == 2  # connects this process
            yield nodes
        finally:
            ray.shutdown()
            nodes.shutdown()


def add_node(cluster: Any, address: str, name: str) -> Any:
    return cluster.add_node(
        num_cpus=2, resources={name: 100}, node_ip_address=address, object_store_memory=400 * MEGABYTE
    )


def on(cluster: Any, name: str) -> RayBackend:
    """Workers of that node."""
    return RayBackend(address=cluster.address, num_cpus=0, resources={name: 1})


def node_of(_: object) -> str:
    return str(ray.util.get_node_ip_address())


def plus_one(number: int) -> int:
    return number + 1


def test_stages_run_on_the_nodes_that_they_ask_for(cluster: Any) -> None:
    one = map_stage(backend=on(cluster, "left"), workers=2)(node_of)
    other = map_stage(backend=on(cluster, "right"), workers=2)(lambda node: (node, node_of(None)))
    assert set((range(100) | one | other).results()) == {(LEFT, RIGHT)}


def test_a_stage_is_spread_over_the_nodes(cluster: Any) -> None:
    spread = RayBackend(address=cluster.address, scheduling_strategy="SPREAD")
    nodes = (range(40) | map_stage(backend=spread, workers=2, qsize=1)(waits_and_tells_its_node)).results()
    assert set(nodes) == {LEFT, RIGHT}


def waits_and_tells_its_node(_: object) -> str:
    time.sleep(0.02)
    return node_of(None)


@pytest.mark.parametrize("middle", ["thread", "process"])
def test_items_pass_between_nodes_and_this_process(cluster: Any, middle: str) -> None:
    left, right = (map_stage(backend=on(cluster, name))(plus_one) for name in ("left", "right"))
    pipe = range(3000) | left | right | map_stage(backend=middle)(plus_one) | left
    assert list(pipe.results()) == list(range(4, 3004))


def arrays(count: int) -> Iterator[Any]:
    for number in range(count):
        yield np.full(ARRAY_SIZE // 8, number, dtype=float)


def first_and_size(array: Any) -> tuple[float, int]:
    array[0] += 1  # as on a machine of its own: it may be changed
    return float(array[0]), array.nbytes


def test_what_passes_between_stages_on_ray_does_not_come_here(cluster: Any) -> None:
    results = (
        Stage(arrays, 5).setup(backend=on(cluster, "left"), qsize=1)
        | map_stage(backend=on(cluster, "right"), qsize=1)(first_and_size)
    ).results()
    driver = psutil.Process()
    before, most = driver.memory_info().rss, 0
    received = []
    for result in results:
        received.append(result)
        most = max(most, driver.memory_info().rss)
    assert received == [(number + 1.0, ARRAY_SIZE) for number in range(5)]
    assert most - before < ARRAY_SIZE / 4
    stores = bytes_in_stores()
    assert stores[HEAD] < MEGABYTE
    assert stores[LEFT] >= ARRAY_SIZE
    assert stores[RIGHT] >= ARRAY_SIZE


def test_what_passes_on_to_this_process_does_come_here(cluster: Any) -> None:
    """The measure of the test before can tell."""
    pipe = Stage(arrays, 2).setup(backend=on(cluster, "left"), qsize=1) | map_stage(backend="thread")(first_and_size)
    assert sorted(pipe.results()) == [(1.0, ARRAY_SIZE), (2.0, ARRAY_SIZE)]
    assert bytes_in_stores()[HEAD] >= ARRAY_SIZE


def bytes_in_stores() -> dict[str, int]:
    """The memory that each node's store has taken so far, by the node's address: it is not given back."""
    taken = {}
    for process in psutil.Process().children(recursive=True):
        if process.name() == "raylet":
            (address,) = [part for part in process.cmdline() if part.startswith("--node_ip_address=")]
            taken[address.partition("=")[2]] = _shared_memory_of(process.pid)
    return taken


def _shared_memory_of(pid: int) -> int:
    taken = 0
    for descriptor in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{descriptor}"
        with suppress(OSError):
            if os.readlink(path).startswith("/dev/shm"):
                taken += 512 * os.stat(path).st_blocks
    return taken


@pytest.mark.parametrize(
    ("how", "told"),
    [("killed", f"it cannot be reached: its node {THIRD}"), ("frozen", f"its node {THIRD} was lost")],
    ids=["killed", "frozen"],
)
def test_a_lost_node_is_told(cluster: Any, how: str, told: str) -> None:
    doomed = add_node(cluster, THIRD, "doomed")
    frozen: list[psutil.Process] = []
    endless = itertools.count() | map_stage(backend=on(cluster, "left"))(plus_one)
    with (endless | map_stage(backend=on(cluster, "doomed"), workers=2)(plus_one)).results() as results:
        next(results)
        lost = time.monotonic()
        if how == "killed":
            cluster.remove_node(doomed, allow_graceful=False)
        else:
            frozen = freeze(THIRD)
        with pytest.raises(WorkerDied, match=rf'"plus_one#2-\d" died: {told}') as caught:
            for _ in results:
                pass
        assert time.monotonic() - lost < HEALTH_CHECK_SECONDS
    if how == "frozen":
        cluster.remove_node(doomed, allow_graceful=False)
    for process in frozen:  # Ray's agents among them end by themselves, when they can
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert caught.value.failure.node == THIRD
    after = range(100) | map_stage(backend=on(cluster, "left"))(plus_one)  # the others go on
    assert sorted(after.results()) == list(range(1, 101))


def freeze(address: str) -> list[psutil.Process]:
    """All processes of a node stand still: its connections stay."""
    frozen = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            if process.name() == "raylet" and f"--node_ip_address={address}" in command:
                for one in [process, *process.children(recursive=True)]:
                    one.suspend()
                    frozen.append(one)
    return frozen


def test_fusion_asks_for_the_clusters_cpus(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RayBackend, "cpus", cpus_of_a_cluster)
    two = RayBackend(address=cluster.address)
    for workers, fused in [(3, False), (4, True)]:
        one = map_stage(backend=two, workers=workers)(plus_one)
        assert ("fused" in (range(3) | one | one).explain()) is fused
    halves = RayBackend(address=cluster.address, num_cpus=2)
    one = map_stage(backend=halves, workers=2)(plus_one)
    assert "2 workers for 2 CPUs" in (range(3) | one | one).explain()


def test_results_on_a_lost_node_are_an_error_not_a_silent_end(cluster: Any, tmp_path: Path) -> None:
    """The worker has ended well; what it gave is in the store of its node, when that is lost."""
    doomed = add_node(cluster, THIRD, "doomed")
    path = tmp_path / "go"

    def waits(items: Iterable[Any], path: Path) -> Iterator[float]:
        for array in items:
            while not path.exists():
                time.sleep(0.01)
            yield float(array[0])

    pipe = Stage(arrays, 3).setup(backend=on(cluster, "doomed")) | stage(backend=on(cluster, "left"))(waits)(path)
    with pipe.results() as results:
        eventually(lambda: results.stats().stages[0].running == 0, seconds=30)
        cluster.remove_node(doomed, allow_graceful=False)
        path.touch()
        with pytest.raises(TaskException, match='"waits-0" raised RuntimeError.*lost, with the node that had them'):
            list(results)


@pytest.mark.parametrize("backend", ["'ray'", "RayBackend('auto')"])
def test_a_program_joins_the_cluster_of_its_machine(cluster: Any, backend: str) -> None:
    code = f"""
        import ray
        from pipekit import RayBackend, map_stage
        print(list(([-1] | map_stage(backend={backend})(abs)).results()), ray.get_runtime_context().gcs_address)
        """
    ran = run_program(code)
    assert ran.stdout == f"[1] {cluster.address}\n", ran.stderr


def test_a_program_that_does_not_agree_on_authentication_is_told_so(cluster: Any, tmp_path: Path) -> None:
    code = f"""
        from pipekit import BackendUnavailable, RayBackend, map_stage
        try:
            ([1] | map_stage(backend=RayBackend(address={cluster.address!r}))(abs)).plan()
        except BackendUnavailable as error:
            print(error)
        """
    ran = run_program(code, RAY_AUTH_MODE="token", HOME=str(tmp_path))
    assert "RAY_AUTH_MODE is the same on all nodes and here" in ran.stdout, ran.stderr


def test_a_program_that_is_connected_uses_that_cluster(cluster: Any) -> None:
    ([1] | map_stage(backend=RayBackend(address=cluster.address))(plus_one)).plan()
    assert set((range(10) | map_stage(backend=RayBackend(num_cpus=1))(node_of)).results()) <= {LEFT, RIGHT}
    with pytest.raises(BackendUnavailable, match="is connected to"):
        ([1] | map_stage(backend=RayBackend(address="127.0.0.9:6379"))(plus_one)).plan()


def test_a_worker_whose_first_call_is_lost_begins_when_it_is_sent_again(cluster: Any) -> None:
    """Ray fails the first calls, as a network would: some are not sent, of others the answer is lost."""
    lost = {"num_failures": 12, "req_failure_prob": 50, "resp_failure_prob": 50, "in_flight_failure_prob": 0}
    code = f"""
        from pipekit import RayBackend, map_stage
        far = RayBackend({cluster.address!r}, num_cpus=0)
        print(sorted((range(-9, 0) | map_stage(backend=far, workers=4)(abs)).results()))
        """
    ran = run_program(
        code,
        RAY_testing_rpc_failure=json.dumps({"CoreWorkerService.grpc_client.PushTask": lost}),
        RAY_testing_rpc_failure_avoid_intra_node_failures="0",
        RAY_task_retry_delay_ms="100",
    )
    assert "RpcFailureManager" in ran.stderr, "Ray has another setting for calls that are to fail"
    assert "[1, 2, 3, 4, 5, 6, 7, 8, 9]" in ran.stdout.splitlines(), ran.stdout + ran.stderr
