"""Workers that are actors of Ray: on this machine, or on all those of a cluster.

    parent                                                      actor
    channel ── _RayWorker (hub thread) ── call `hear` ───────> hear thread ── run thread: WorkerLoop
                    └── listener thread <── generator `say` ── say thread ───────┘

They say to each other what a process worker and its parent say (`_wire`). A large body is an object of its own in Ray's
store. Between stages on Ray the parent passes on references, and the bodies go from node to node.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache, partial
from math import inf
from time import monotonic, sleep
from types import NoneType
from typing import Any

from pipekit._errors import Failure, OptionError, StartError
from pipekit._frame import Frame
from pipekit._public import public
from pipekit._signals import start_thread
from pipekit._task import Names, Task, worker_names
from pipekit._worker import Outcome
from pipekit.backends._actor import LEAST_APART, PipekitWorker, Stored, own_version
from pipekit.backends._base import Backend, Executor, Inbox, Outbox, Report, Worker
from pipekit.backends._cluster import (
    NO_CLIENT,
    connect,
    import_ray,
    is_own,
    is_to_be_started,
    start_no_ray_in_this_thread,
)
from pipekit.backends._hub import Hub
from pipekit.backends._logs import LogReceiver, log_levels
from pipekit.backends._remote import Prepared, RemoteWorker, fail_all, pickled, pickled_task
from pipekit.backends._wire import Message, Say

#: Seconds of work that a frame holds. Measured: its way to an actor and back takes some 2 ms of processor time.
FRAME_SECONDS = 0.05
#: Objects of a generator that may wait until the listener takes them. A guard: what a worker may say is bounded by what
#: its parent has allowed.
SAID_AHEAD = 64
#: Seconds after which a wait in the main thread looks whether a signal has come.
SIGNAL_SECONDS = 0.3
#: Seconds until an actor that was killed is given up.
EXIT_SECONDS = 2.0


@public
@dataclass(frozen=True, slots=True)
class RayBackend(Backend):
    """Run each worker in an actor of Ray, which places it on a node of the cluster. Items are pickled.

    Args:
        address: of the cluster, as `ray.init` takes it: "auto", "10.0.0.1:6379". None, the default: the Ray that this
            program is connected to, else that of RAY_ADDRESS, else one on this machine that lives as long as the
            program.
        num_cpus: CPUs of a node that a worker takes, default 1; 0: any number of workers on a node.
        num_gpus: GPUs, default 0.
        resources: others, by name, default none.
        scheduling_strategy: as in Ray: "SPREAD", or one of the objects of `ray.util.scheduling_strategies`.
        start_timeout: seconds that Ray gets to place all workers of a run, default 60.

    Raises:
        OptionError: a value cannot work.
    """

    address: str | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    resources: Mapping[str, float] = field(default_factory=dict, hash=False)
    scheduling_strategy: object = field(default=None, hash=False)
    start_timeout: float = 60.0
    name = "ray"
    remote = True
    fuses = True
    store = "ray"
    frame_seconds = FRAME_SECONDS

    def __post_init__(self) -> None:
        _check_address(self.address)
        for what in ("num_cpus", "num_gpus", "start_timeout"):
            _check_amount(what, getattr(self, what))
        if self.start_timeout == 0:
            raise OptionError("start_timeout=0 cannot work: give seconds, more than 0")
        _check_resources(self.resources)
        if isinstance(self.scheduling_strategy, str) and self.scheduling_strategy not in ("DEFAULT", "SPREAD"):
            raise OptionError(
                f"scheduling_strategy={self.scheduling_strategy!r} cannot work: use 'DEFAULT', 'SPREAD', "
                "or an object of ray.util.scheduling_strategies"
            )

    def prepare(self, task: Task) -> Prepared:
        ray = import_ray()
        try:
            _actors(ray, self)
        except (TypeError, ValueError) as error:
            raise OptionError(f"Ray does not take the options of {self!r}: {error}") from error
        if not is_to_be_started(ray, self.address):
            connect(ray, self.address)
        return Prepared([step.stage for step in task.steps], pickled_task(task), task.stored)

    def executor(self) -> Executor:
        ray = import_ray()
        connect(ray, self.address)
        return _RayExecutor(ray, self)

    def cpus(self) -> int | None:
        ray = import_ray()
        if is_to_be_started(ray, self.address):
            return None
        connect(ray, self.address)
        if is_own(ray):
            return None
        return int(ray.cluster_resources().get("CPU", 0) / (self.num_cpus or 1)) or None


def _actors(ray: Any, backend: RayBackend) -> Any:
    """What makes the actors of a backend; raises ValueError or TypeError where Ray does not take its options."""
    return _decorated().options(**_asked(ray, backend), scheduling_strategy=backend.scheduling_strategy)


def _asked(ray: Any, backend: RayBackend) -> dict[str, Any]:
    """What a worker takes of its node. On a Ray of its own, the pipeline says how many workers there are."""
    cpus = 0 if ray.is_initialized() and is_own(ray) else backend.num_cpus
    return {"num_cpus": cpus, "num_gpus": backend.num_gpus, "resources": dict(backend.resources)}


@cache
def _decorated() -> Any:
    """The actor's class, once: a cluster keeps a copy of each that is decorated.

    A restarted actor would begin its task anew, in the middle of the old one's results. With a `max_concurrency` of one
    Ray orders the calls, and a `begin` that was lost and sent again can hold up `run` for 30 s, and then fail it.
    """
    groups = {"say": 1, "hear": 1}
    options = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": 2, "concurrency_groups": groups}
    return import_ray().remote(**options)(PipekitWorker)


def _check_address(address: object) -> None:
    if not isinstance(address, (str, NoneType)):
        raise OptionError(f"address={address!r} cannot work: give text, such as 'auto' or '10.0.0.1:6379'")
    if address is not None and address.startswith("ray://"):
        raise OptionError(f"address={address!r} cannot work: {NO_CLIENT}")


def _check_amount(what: str, amount: object) -> None:
    if isinstance(amount, bool) or not isinstance(amount, (int, float)) or not 0 <= amount < inf:
        raise OptionError(f"{what}={amount!r} cannot work: give a number, 0 or more")


def _check_resources(resources: object) -> None:
    if not isinstance(resources, Mapping):
        raise OptionError(f"resources={resources!r} cannot work: give a dict of names and numbers")
    for what, amount in resources.items():
        _check_amount(f"resources[{what!r}]", amount)
        if what in ("CPU", "GPU"):
            raise OptionError(f"resources[{what!r}] cannot work: use num_{str(what).lower()}s")


# -- a run


class _RayExecutor(Executor):
    def __init__(self, ray: Any, backend: RayBackend) -> None:
        self._ray = ray
        self._asked = _asked(ray, backend)
        self._start_timeout = backend.start_timeout
        self._actor = _actors(ray, backend)
        self._workers: list[_RayWorker] = []
        self._hub = Hub(partial(fail_all, self._workers))
        self._logs = LogReceiver()

    def open(
        self, prepared: Prepared, name: str, inbox: Inbox | None, outboxes: Sequence[Outbox], report: Report
    ) -> Worker:
        names = worker_names(prepared.stages, name)
        worker = _RayWorker(
            self._ray, self._actor.remote(), prepared.stored, self._hub, self._logs, names, inbox, outboxes, report
        )
        self._workers.append(worker)
        worker.greet(prepared.task)
        return worker

    def start(self) -> None:
        try:
            self._wait_until_begun()
            for worker in self._workers:
                worker.listen()
        except self._ray.exceptions.RayError as error:
            raise StartError(f"a worker on Ray could not begin: {error}") from error
        self._hub.start()

    def _wait_until_begun(self) -> None:
        waiting = [worker.begun for worker in self._workers]
        deadline = monotonic() + self._start_timeout
        while waiting:
            if monotonic() >= deadline:
                raise StartError(self._not_placed(len(waiting)))
            seconds = min(SIGNAL_SECONDS, max(0.0, deadline - monotonic()))
            begun, waiting = self._ray.wait(waiting, num_returns=len(waiting), timeout=seconds)
            self._ray.get(begun)  # raises what has hindered one

    def _not_placed(self, workers: int) -> str:
        asked = {"CPU": self._asked["num_cpus"], "GPU": self._asked["num_gpus"], **self._asked["resources"]}
        each = {what: amount for what, amount in asked.items() if amount}
        free = {what: self._ray.available_resources().get(what, 0) for what in each}
        return (
            f"Ray has not placed {workers} of {len(self._workers)} workers within {self._start_timeout:g} s: each "
            f"needs {each}, and free are now {free}. Use fewer workers, ask for less, or give it more time to add "
            "nodes (start_timeout)"
        )

    def close(self) -> None:
        self._hub.close()
        self._logs.close()
        for worker in self._workers:
            worker.close()
        self._workers.clear()


class _RayWorker(RemoteWorker):
    """The parent's side of an actor."""

    def __init__(
        self,
        ray: Any,
        actor: Any,
        stored: Sequence[bool],
        hub: Hub,
        logs: LogReceiver,
        names: Names,
        inbox: Inbox | None,
        outboxes: Sequence[Outbox],
        report: Report,
    ) -> None:
        super().__init__(hub, logs, names, inbox, outboxes, report)
        self._ray = ray
        self._actor = actor
        self._stored = stored
        self._hear = actor.hear.options(concurrency_group="hear")
        # It may be called again, also while it runs: in one thread.
        begin = actor.begin.options(max_task_retries=-1, concurrency_group="hear")
        self.begun = begin.remote(own_version(), sys.path, names, log_levels(), own=is_own(ray))
        self._pid, self._node = 0, ""
        self._is_here = False
        self._unsent: list[Message] = []
        self._calls = 0
        self._killed = False
        self._hindrance: BaseException | None = None  # why a call did not reach the actor
        self._said: Iterator[Any] = iter(())
        self._gone = threading.Event()
        self._listener = threading.Thread(target=self._listen, name=f"pipekit-ray {names[0][1]}", daemon=True)

    # -- from any thread

    def kill(self) -> None:
        self._killed = True
        self._kill()

    def join(self, timeout: float) -> bool:
        if self._listener.ident is None:  # a run that did not come to start it
            return self._has_ended(timeout)
        if self._hub.is_running:
            return self._gone.wait(timeout)
        self._listener.join(timeout)
        return not self._listener.is_alive()

    def close(self) -> None:
        """Release what is left; the hub has ended."""
        if not self._gone.is_set():
            self._kill()
        else:
            self._listener.join(EXIT_SECONDS)  # it has nothing more to do
        self.release()

    # -- messages

    def send(self, message: Message) -> None:
        """Queue a message; what one pass of the hub brings together goes in one call."""
        self._unsent.append(message)
        self._hub.call_afterwards(self._flush)

    def _flush(self) -> None:
        messages, self._unsent = self._unsent, []
        if not messages or self._gone.is_set():
            return
        try:
            self._check_ray()
            self._watch(self._hear.remote(self._calls, messages))
            self._calls += 1
        except Exception as error:  # Ray was shut down, say
            self._give_up(error)

    def _watch(self, call: Any) -> None:
        """See to it that a call which does not reach the actor ends it: it would wait for the messages for ever."""
        call.future().add_done_callback(self._on_called)

    def _on_called(self, call: Future[None]) -> None:
        """Runs in a thread of Ray's, which must not wait for Ray."""
        error = call.exception()
        if error is not None and not isinstance(error, self._ray.exceptions.ActorDiedError):
            self._hub.call(partial(self._give_up, error))

    def _give_up(self, error: BaseException) -> None:
        self._hindrance = error
        self._kill()

    def _send_payload(self, frame: Frame, how: int) -> None:
        payload = frame.payload
        if not isinstance(payload, Stored):
            whole = pickled(frame)
            if len(whole.body) < LEAST_APART:
                super()._send_payload(replace(frame, payload=whole), how)
                return
            try:
                self._check_ray()
                payload = Stored(self._ray.put(whole.body), len(whole.body))
            except Exception as error:  # no room in the store, say
                self._give_up(error)
                return
        self.send(Message(Say.FRAME, frame.count, frame.sequence, outbox=how, elsewhere=payload))

    def listen(self) -> None:
        """Begin to listen. Raises what has hindered the actor to begin."""
        self._pid, self._node = self._ray.get(self.begun)
        self._is_here = self._node == self._ray.util.get_node_ip_address()
        self._watch(self._actor.run.remote())
        said = {"num_returns": "streaming", "_generator_backpressure_num_objects": SAID_AHEAD}
        self._said = self._actor.say.options(concurrency_group="say", **said).remote()
        self._flush()
        start_thread(self._listener)

    def _listen(self) -> None:
        death: BaseException | None = None
        try:
            start_no_ray_in_this_thread()
            while True:
                self._hub.call(partial(self._heard, self._messages()))
        except BaseException as error:  # also as the last item: Ray's generators end so where their actor has died
            death = error
        self._kill()
        self._has_ended(EXIT_SECONDS)
        self._hub.call(partial(self._on_end, death))

    def _messages(self) -> list[Message]:
        """What the actor says next; raises StopIteration at its end."""
        messages: list[Message]
        messages, apart = self._get(self._next())
        for place, size in apart:
            messages[place] = self._whole(messages[place], self._next(), size)
        return messages

    def _next(self) -> Any:
        self._check_ray()
        return next(self._said)

    def _get(self, reference: Any) -> Any:
        self._check_ray()
        return self._ray.get(reference)

    def _check_ray(self) -> None:
        """Raise ConnectionError where Ray was shut down: most of its calls would start another one."""
        if not self._ray.is_initialized():
            raise ConnectionError("Ray was shut down")

    def _whole(self, message: Message, body: Any, size: int) -> Message:
        """A message with its body, or what stands for it."""
        if message.kind is Say.FRAME and self._stored[message.outbox]:
            return replace(message, elsewhere=Stored(body, size))
        return replace(message, body=self._get(body))

    def _heard(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self.handle(message)

    # -- the end

    def _kill(self) -> None:
        with suppress(Exception):  # Ray was shut down
            self._check_ray()
            self._ray.kill(self._actor)

    def _has_ended(self, timeout: float) -> bool:
        """Wait until Ray knows that the actor is dead. It may answer once more before it hears that it was killed."""
        deadline = monotonic() + timeout
        while (left := deadline - monotonic()) > 0:
            try:
                self._check_ray()
                self._ray.get(self._actor.__ray_ready__.remote(), timeout=left)
            except self._ray.exceptions.GetTimeoutError:
                return False
            except Exception:  # also where Ray was shut down
                return _has_exited(self._pid, deadline) if self._is_here else True
        return False

    def _on_end(self, death: BaseException | None) -> None:
        self._gone.set()
        if not self._reported:
            self._report_once(Outcome() if self._killed else Outcome(self._death(self._hindrance or death)))

    def _death(self, error: BaseException | None) -> Failure:
        known = self._ray.exceptions
        if not self._ray.is_initialized():
            how = "Ray was shut down while the pipeline ran"
        elif isinstance(error, known.OutOfMemoryError):
            how = f"Ray has ended its process {self._pid}: its node {self._node} was short of memory; {_MEMORY}"
        elif isinstance(error, known.ActorUnavailableError):  # Ray has not heard within 1 s why the connection broke
            lost = f"its node {self._node}, the connection or its process {self._pid} was lost"
            how = f"it cannot be reached: {lost}; {_ABOVE}"
        elif not isinstance(error, known.RayActorError):
            how = f"the connection with it, on the node {self._node}, has failed: {_ABOVE}"
        elif "node has died" in str(error):
            how = f"its node {self._node} was lost"
        else:
            how = f"its process {self._pid} on the node {self._node} ended before it had finished{_LIKELY}"
        return self._died(how, pid=self._pid, node=self._node, traceback=f"{error}\n")


def _has_exited(pid: int, deadline: float) -> bool:
    """Wait for the end of a process of this machine, which Ray announces some milliseconds before."""
    while monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except OSError:
            return True
        sleep(0.001)
    return False


_ABOVE = "what Ray knows of it is above"
_MEMORY = f"check the memory that its items need, or use fewer workers on a node; {_ABOVE}"
_LIKELY = f", usually by the out-of-memory killer, or with its node: {_MEMORY}"
