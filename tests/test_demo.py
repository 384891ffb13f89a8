"""`python -m pipekit demo`, run as users run it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pipekit._demo import HOST, most_common_word

COMMAND = [sys.executable, "-m", "pipekit"]
ADDRESS = re.compile(rf"http://{re.escape(HOST)}:(\d+)/")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], check=False, capture_output=True, text=True, timeout=50)


@contextmanager
def running(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The demo in a session of its own, with its messages in `stderr`; nothing of it is left behind."""
    pipe, environ = subprocess.PIPE, {**os.environ, **environment}
    with subprocess.Popen(
        [*COMMAND, "demo", *arguments], stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=environ
    ) as demo:
        try:
            yield demo
        finally:
            if demo.poll() is None:
                os.killpg(demo.pid, signal.SIGKILL)


def wait_for(demo: subprocess.Popen[str], text: str) -> str:
    """Read messages until one contains `text`; gives all of them."""
    assert demo.stderr is not None
    read = ""
    for line in demo.stderr:
        read += line
        if text in line:
            return read
    raise AssertionError(f"the demo ended without saying {text!r}: {read}")


def port_in(messages: str) -> int:
    found = ADDRESS.search(messages)
    assert found is not None, messages
    return int(found[1])


def is_served(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def wait_until_gone(port: int) -> None:
    deadline = time.monotonic() + 5
    while is_served(port):
        assert time.monotonic() < deadline, "the server outlives the demo"
        time.sleep(0.02)


def wait_until_all_are_gone(demo: subprocess.Popen[str]) -> tuple[str, str]:
    """What is left to read of the output; it ends when no process of the demo is left that could write."""
    try:
        return demo.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(demo.pid, signal.SIGKILL)
        raise AssertionError(f"the demo goes on: {demo.communicate(timeout=20)}") from None


def test_it_shows_result_and_times() -> None:
    done = run("demo", "--pages", "12", "--fetchers", "3", "--parsers", "1")
    assert done.returncode == 0, done.stderr
    common, pipeline, one_by_one = done.stdout.splitlines()
    assert re.fullmatch(r'most common word: "[a-z]+", in \d+ of 12 titles', common)
    assert re.fullmatch(r"pipeline: +\d+\.\d\d s \(threads that fetch: 3, processes that parse: 1\)", pipeline)
    assert re.fullmatch(r"one by one: +\d+\.\d\d s, \d+\.\d times as long, with the same result", one_by_one)


def test_it_shows_progress_in_lines_when_there_is_no_terminal() -> None:
    done = run("demo", "--pages", "5")
    assert re.search(r"^fetched \d, parsed \d of 5$", done.stderr, re.MULTILINE)
    assert "fetched 5, parsed 5 of 5\n" in done.stderr
    assert "\r" not in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_is_left_when_it_is_done() -> None:
    with running("--pages", "3") as demo:
        messages = wait_for(demo, "one by one")
        wait_until_all_are_gone(demo)
        assert demo.returncode == 0
    wait_until_gone(port_in(messages))


@pytest.mark.parametrize(
    ("option", "value"),
    [("--pages", "0"), ("--pages", "many"), ("--fetchers", "x"), ("--fetchers", "-1"), ("--parsers", "100000")],
)
def test_a_bad_value_is_named(option: str, value: str) -> None:
    done = run("demo", option, value)
    assert done.returncode == 2
    assert f"argument {option}: {value!r} cannot work: it must be a whole number from 1 to" in done.stderr
    assert done.stdout == ""


def test_without_a_command_it_prints_help() -> None:
    done = run()
    assert done.returncode == 2
    assert "demo" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "moment"),
    [
        (["--pages", "2000", "--fetchers", "2"], "http://"),
        (["--pages", "2000", "--fetchers", "2"], "fetched"),
        (["--pages", "300"], "one by one"),
    ],
    ids=["while it starts", "while the pipeline runs", "while it works one by one"],
)
def test_ctrl_c_ends_it_at_once(arguments: list[str], moment: str) -> None:
    # The development mode would name the socket that a Ctrl-C in the middle of http.client has left to the collector.
    with running(*arguments, PYTHONWARNINGS="ignore::ResourceWarning") as demo:
        messages = wait_for(demo, moment)
        pressed = time.monotonic()
        os.killpg(demo.pid, signal.SIGINT)
        output, rest = wait_until_all_are_gone(demo)
        assert time.monotonic() - pressed < 4  # two seconds are promised to the user; the test machine may be busy
        # Python itself ends by the signal if it interrupted code that was made by exec(), as in a dataclass' decorator.
        assert demo.returncode in (130, -signal.SIGINT)  # a shell reports 130 for both
        assert output == ""
        assert "Traceback" not in messages + rest
        assert rest.endswith("interrupted\n")
    wait_until_gone(port_in(messages))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_the_server_dies_with_a_killed_demo() -> None:
    with running("--pages", "2000", "--fetchers", "2") as demo:
        messages = wait_for(demo, "fetched")
        demo.kill()
        wait_until_all_are_gone(demo)
        wait_until_gone(port_in(messages))


def test_the_order_of_titles_does_not_matter() -> None:
    assert most_common_word(["b a", "a b"]) == most_common_word(["a b", "b a"]) == ("b", 2)
