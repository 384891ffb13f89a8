"""What of the Ray backend needs no Ray: its options, the order of what an actor hears, and what is said without Ray."""

from __future__ import annotations

import sysconfig
from typing import Any

import pytest
from conftest import run_program

from pipekit import OptionError, RayBackend
from pipekit._frame import Frame, Pickled
from pipekit.backends._actor import ActorLink
from pipekit.backends._wire import Message, Say


def frame_message(number: int, items: list[int]) -> Message:
    return Message(Say.FRAME, len(items), number, Pickled.pack(list[object](items), plain=True).body)


def nothing() -> None:
    pass


def items_of(frame: Frame | None) -> list[int]:
    assert frame is not None
    return list(frame.open()[0])


def test_an_end_that_overtakes_frames_waits_for_them() -> None:
    link = ActorLink((("work", "work-0"),), None, "here")
    link.hear(2, [Message(Say.END)])
    link.hear(1, [frame_message(1, [3])])
    link.hear(0, [frame_message(0, [1, 2])])
    assert items_of(link.reader.get(nothing)) == [1, 2]
    link.reader.finished(2, 0.0, 0.0)
    assert items_of(link.reader.get(nothing)) == [3]
    link.reader.finished(1, 0.0, 0.0)
    assert link.reader.get(nothing) is None


def test_a_stop_waits_for_nothing() -> None:
    link = ActorLink((("work", "work-0"),), None, "here")
    link.hear(1, [Message(Say.STOP)])  # the call before it is still on its way
    assert link.stopped


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"address": 6379}, "address=6379 cannot work"),
        ({"address": "ray://10.0.0.1:10001"}, "Ray Client"),
        ({"num_cpus": -1}, "num_cpus=-1 cannot work"),
        ({"num_gpus": "one"}, "num_gpus='one' cannot work"),
        ({"resources": ["disk"]}, "resources=.* cannot work"),
        ({"resources": {"disk": -1}}, r"resources\['disk'\]=-1 cannot work"),
        ({"scheduling_strategy": "PACKED"}, "scheduling_strategy='PACKED' cannot work"),
        ({"start_timeout": "long"}, "start_timeout='long' cannot work"),
        ({"start_timeout": 0}, "start_timeout=0 cannot work"),
        ({"num_cpus": float("inf")}, "num_cpus=inf cannot work"),
        ({"resources": {"GPU": 1}}, "use num_gpus"),
    ],
)
def test_options_that_cannot_work_are_errors_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        RayBackend(**options)


def test_equal_backends_are_one_and_what_differs_in_them_is_not() -> None:
    assert RayBackend(resources={"disk": 1}) == RayBackend(resources={"disk": 1})
    assert len({RayBackend(), RayBackend(), RayBackend(resources={"disk": 1}), RayBackend(num_gpus=1)}) == 3


def test_ray_is_imported_when_a_pipeline_is_compiled_and_not_before() -> None:
    code = """
        import sys
        from pipekit import RayBackend, map_stage
        [1] | map_stage(backend=RayBackend(num_gpus=1))(abs) | map_stage(backend="ray")(abs)
        print("ray" in sys.modules)
        """
    ran = run_program(code)
    assert ran.stdout == "False\n", ran.stderr


FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
WITHOUT_RAY = """
    import sys
    sys.modules["ray"] = None  # as where it is not installed
    from pipekit import BackendUnavailable, map_stage
    try:
        ([1] | map_stage(backend="ray")(abs)).{}()
    except BackendUnavailable as error:
        print(error)
"""


@pytest.mark.parametrize("call", ["plan", "explain", "results"])
def test_without_ray_it_is_said_what_to_install_when_the_pipeline_is_compiled(call: str) -> None:
    ran = run_program(WITHOUT_RAY.format(call))
    assert 'the backend "ray" needs Ray' in ran.stdout, ran.stderr
    what_to_do = (
        'pip install "pipekit-parallel[ray]"' if not FREE_THREADED else "there is none for free-threaded Python"
    )
    assert what_to_do in ran.stdout
