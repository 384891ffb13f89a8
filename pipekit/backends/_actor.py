"""The worker's side of the Ray backend: what runs in an actor.

The stage runs in one thread of the actor (`run`), what it says leaves in another (`say`), what it hears comes in a
third (`hear`). Ray runs none of them in the main thread.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

from pipekit._frame import Pickled
from pipekit._live import stop_all
from pipekit._output import Flusher
from pipekit._task import Names
from pipekit._worker import Outcome, describe
from pipekit.backends._cluster import be_of_own_ray
from pipekit.backends._link import Link, run_task
from pipekit.backends._logs import Levels, forward_logs
from pipekit.backends._wire import Message, Say

#: Bytes of a body that travels as an object of its own, by way of the stores of the nodes. Smaller ones Ray would send
#: along with the call all the same: up to 100 KiB (`max_direct_call_object_size`).
LEAST_APART = 1 << 17
#: Seconds of work that a worker likes to have ahead: two frames.
AHEAD_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Stored:
    """Items whose body is in Ray's store; a `pipekit._frame.Payload` that is fetched where it is opened.

    Opening it raises RuntimeError where the body is lost.

    reference: the ObjectRef of the body of a `Pickled`.
    size: of the body, in bytes.
    skipped: items at its beginning that somebody has read.
    """

    reference: Any
    size: int
    skipped: int = 0

    def open(self) -> Any:
        import ray

        try:
            payload = Pickled(ray.get(self.reference))
        except ray.exceptions.RayError as error:
            raise RuntimeError(
                "items that it was to read are lost, with the node that had them in its store"
            ) from error
        return (payload.rest(self.skipped) if self.skipped else payload).open()

    def rest(self, consumed: int) -> Stored:
        return replace(self, skipped=self.skipped + consumed)

    def fetch(self) -> None:
        """Have it brought to this node, without waiting for it."""
        import ray

        ray.wait([self.reference], timeout=0, fetch_local=True)


def own_version() -> str:
    """The version of pipekit in this process; the package is there before its modules."""
    return str(sys.modules["pipekit"].__version__)


class PipekitWorker:
    """The actor; Ray shows its name where it lists processes and what they print."""

    def __init__(self) -> None:
        self._link: ActorLink | None = None

    def begin(
        self, version: str, path: Sequence[str], names: Names, levels: Levels | None, *, own: bool
    ) -> tuple[int, str]:
        """Be the worker of these names; the process and the node that it is on. Called again where the answer is lost.

        own: the driver has started this Ray.
        path: where the driver finds modules; those of stages may be found there, where the node has the same files.

        Raises:
            RuntimeError: the node has another version of pipekit.
        """
        if version != own_version():
            raise RuntimeError(f"pipekit {own_version()} is on this node, {version} on the driver's: use the same")
        import ray.util

        if own:
            be_of_own_ray(ray)
        sys.path += [place for place in path if place not in sys.path]
        multiprocessing.current_process().name = names[0][1]  # for log records, as in the process backend
        node = ray.util.get_node_ip_address()
        self._link = self._link or ActorLink(names, levels, node)
        return os.getpid(), node

    def run(self) -> None:
        """Run the task that is heard of first, to its end."""
        assert self._link is not None
        self._link.run()

    def say(self) -> Iterator[Any]:
        """What the worker says, until its end: messages, and which bodies follow as objects, with their sizes."""
        assert self._link is not None
        while messages := self._link.said():
            bodies = {place: message.body for place, message in enumerate(messages) if len(message.body) >= LEAST_APART}
            for place in bodies:
                messages[place] = replace(messages[place], body=b"")
            yield messages, [(place, len(body)) for place, body in bodies.items()]
            for body in bodies.values():
                yield bytes(body)

    def hear(self, number: int, messages: Sequence[Message]) -> None:
        """Take the parent's messages; number: of the call."""
        assert self._link is not None
        self._link.hear(number, messages)


class ActorLink(Link):
    """The connection by calls to the actor and a generator of it."""

    def __init__(self, names: Names, levels: Levels | None, node: str) -> None:
        super().__init__(names, ahead_seconds=AHEAD_SECONDS, node=node)
        self._levels = levels
        self._tasks: SimpleQueue[Message] = SimpleQueue()
        self._unsaid: SimpleQueue[Message | None] = SimpleQueue()
        self._heard: dict[int, Sequence[Message]] = {}  # calls that have overtaken others
        self._calls = 0  # that were handled
        self._ended = False

    def send(self, message: Message) -> None:
        self._unsaid.put(message)

    def said(self) -> list[Message]:
        """What is to be said now; waits for it. Empty at the end."""
        messages = [self._unsaid.get()]
        with suppress(Empty):
            while messages[-1] is not None:
                messages.append(self._unsaid.get_nowait())
        if messages[-1] is None:
            messages.pop()
            self._unsaid.put(None)  # the next time nothing is left
        return [message for message in messages if message is not None]

    def hear(self, number: int, messages: Sequence[Message]) -> None:
        """Handle messages in the order of the calls, which Ray does not promise; only a stop does not wait for it."""
        if any(message.kind is Say.STOP for message in messages):
            self.stop()
        self.hears_in_this_thread()
        self._heard[number] = messages
        try:
            while self._calls in self._heard:
                for message in self._heard.pop(self._calls):
                    self.handle(message)
                self._calls += 1
        except BaseException as error:  # no memory for an item, say: the stage would wait for ever
            self._end(Outcome(describe(error, *self.names(), None, did="could not receive an item:")))
            self.stop()

    def handle(self, message: Message) -> None:
        if message.kind is Say.TASK:
            self.open_writers(message)
            self._tasks.put(message)
            return
        if isinstance(message.elsewhere, Stored):
            message.elsewhere.fetch()
        super().handle(message)

    def run(self) -> None:
        forward_logs(self._levels, self.names, self.log)
        flusher = Flusher()
        outcome = run_task(self, self._tasks.get(), self._names, self._levels, flusher)
        flusher.stop()
        stop_all()  # pipelines that the stage has left running
        self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        if not self._ended:
            self._ended = True
            self.finish(outcome)
            self._unsaid.put(None)
