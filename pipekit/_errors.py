"""Every error that pipekit raises, and who caused it.

    PipekitError
    ├── PipelineError            the caller: the declaration is wrong, nothing was started
    │   ├── OptionError          ... an option's value (also a ValueError)
    │   ├── SignatureError       ... a function, its arguments or its place (also a TypeError)
    │   └── NotPicklable         ... a function or argument that cannot go to a worker process
    ├── BackendUnavailable       the machine: a backend that cannot run here
    ├── StartError               the machine: a worker that could not be started
    ├── Stalled                  nobody knows: nothing has moved for longer than the caller allowed
    └── TaskException            the stage: its code raised while the pipeline ran
        ├── ItemNotPicklable     ... an item or result that cannot travel between processes
        └── WorkerDied           the outside: a worker process ended without having finished

`Cancelled` is a BaseException: pipekit raises it *inside* stage code whose work nobody wants any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipekit._public import public

if TYPE_CHECKING:
    from pipekit._stats import WorkerState

#: Characters of an item's repr in messages.
REPR_LENGTH = 200


@public
class PipekitError(Exception):
    """Base of all errors that pipekit raises to its caller."""


@public
class PipelineError(PipekitError):
    """The pipeline is declared wrongly; raised before anything is started."""


@public
class OptionError(PipelineError, ValueError):
    """An option has a value that cannot work."""


@public
class SignatureError(PipelineError, TypeError):
    """A function cannot be called in the place that it was given in a pipeline."""


@public
class NotPicklable(PipelineError):
    """A stage's function or argument cannot be sent to a worker process."""


@public
class BackendUnavailable(PipekitError):
    """The backend that a stage asks for cannot run on this machine or interpreter."""


@public
class StartError(PipekitError):
    """A worker could not be started; those already started were stopped."""


@public
class Stalled(PipekitError):
    """Nothing moved for `stall_timeout` seconds although the results were waited for; the run is stopped.

    Attributes:
        workers: what each worker was doing (`WorkerState`), in the order of the stages.
    """

    def __init__(self, message: str, workers: Sequence[WorkerState] = ()) -> None:
        super().__init__(message)
        self.workers = tuple(workers)

    def __reduce__(self) -> tuple[type[Stalled], tuple[str, tuple[WorkerState, ...]]]:
        return type(self), (str(self), self.workers)


@public
class Cancelled(BaseException):  # not an error, like asyncio.CancelledError
    """Raised in a stage's function, where it reads its input, when its work is not wanted any more.

    Let it pass: `finally` blocks run, the results of the worker are dropped. Not an `Exception`, so that a stage that
    survives bad items with `except Exception` still stops.
    """


class Released(Cancelled):
    """What pipekit itself raises as `Cancelled`; a `Cancelled` that stage code makes up is a failure like any other."""


class Misdirected(Exception):
    """For a result, no way could be found; the reason is its `__cause__`."""

    def __init__(self, what: str, result: object, error: BaseException) -> None:
        super().__init__(what)
        self.what = what
        self.result = result
        self.error = error


@public
class RemoteTraceback(Exception):  # the name that concurrent.futures gave this idea
    """The traceback of an exception that was raised in another process, as text."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


@public
@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in a worker; a record that any worker can send.

    `exception` is the exception itself where it can travel, else None: the text fields always arrive. `node` is the
    machine, where workers may be on others than this one.
    """

    stage: str
    worker: str
    kind: type[TaskException]
    type_name: str
    message: str
    traceback: str
    item: str | None
    pid: int
    exception: BaseException | None
    remote: bool = False
    node: str | None = None

    def without_exception(self) -> Failure:
        """The same failure, for when the exception cannot be pickled."""
        return replace(self, exception=None)

    def to_exception(self, others: Sequence[Failure] = ()) -> TaskException:
        """The exception to raise to the caller, its `__cause__` set.

        others: failures of the same run that came later.
        """
        error = self.kind(self, others)
        cause = self.exception
        if cause is None:
            error.__cause__ = RemoteTraceback(self.traceback) if self.traceback else None
            return error
        if self.remote:
            # Past its own `__setattr__`: that of a frozen dataclass refuses.
            BaseException.__setattr__(cause, "__cause__", RemoteTraceback(self.traceback))
        error.__cause__ = cause
        return error


@public
class TaskException(PipekitError):  # the seed library's name
    """A stage raised; the original exception is the `__cause__`.

    Attributes:
        stage: name of the stage.
        worker: name of the worker, `<stage>-<index>`.
        item: shortened `repr` of the item that the worker had read last, or could find no branch for, or None.
        failure: the whole record of the first failure.
        others: records of the failures that came after it.
    """

    _advice = (
        "to look into it: run_inline(pipeline) runs the same code in your thread, where a debugger works; "
        "to go on after bad items: `except` in the function, or map_stage(filter_errors=True)"
    )

    def __init__(self, failure: Failure, others: Sequence[Failure] = ()) -> None:
        super().__init__(self._summary(failure, others))
        self.failure = failure
        self.others = tuple(others)
        node = "" if failure.node is None else f" on {failure.node}"
        where = f'worker "{failure.worker}" (pid {failure.pid}{node})'
        if issubclass(failure.kind, WorkerDied):
            pass  # its message has node and items
        elif failure.item is not None:
            self.add_note(f"{where} was at the item {failure.item}")
        elif failure.node is not None:
            self.add_note(f"{where} raised it")
        self.add_note(self._advice)

    @staticmethod
    def _summary(failure: Failure, others: Sequence[Failure]) -> str:
        if not others:
            return failure.message
        return f"{len(others) + 1} tasks raised an exception. The first: {failure.message}"

    @property
    def stage(self) -> str:
        return self.failure.stage

    @property
    def worker(self) -> str:
        return self.failure.worker

    @property
    def item(self) -> str | None:
        return self.failure.item

    def __reduce__(self) -> tuple[type[TaskException], tuple[Failure, tuple[Failure, ...]]]:
        return type(self), (self.failure.without_exception(), self.others)


@public
class ItemNotPicklable(TaskException):
    """An item or result cannot be pickled, or not unpickled on the other side."""

    _advice = (
        "what goes to or from a process must pickle: hand on a path, a key or plain data instead, give its class a "
        '__reduce__, or run the stages on both sides with backend="thread"'
    )


@public
class WorkerDied(TaskException):
    """A worker process ended before it had reported its end: killed, crashed, or left by `os._exit`.

    `item` names the items that it had in hand: they may or may not have had their effect.
    """

    _advice = (
        "the items in hand may have had their effect or not: make it repeatable, or look before you run them again"
    )


def short_repr(value: object, length: int = REPR_LENGTH) -> str:
    """`repr(value)`, cut to `length` characters; never raises."""
    try:
        text = repr(value)
    except BaseException as error:
        return f"<{type(value).__qualname__} whose repr raised {type(error).__qualname__}>"
    return text if len(text) <= length else f"{text[: length - 3]}..."
