"""Seeing that a run stands still, and saying what each of its workers is doing."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, groupby
from queue import Empty, SimpleQueue
from time import monotonic

from pipekit._channel import BlockingReader, Channel, Sleeper
from pipekit._edge import Signal
from pipekit._errors import OptionError, Stalled, short_repr
from pipekit._frame import Frame
from pipekit._signals import start_thread
from pipekit._stats import Doing, WorkerState
from pipekit._task import Names
from pipekit.backends._base import Worker

#: A run has stalled when it looks the same this many times in a row, in looks spread over the time that it is given.
LOOKS = 4
#: Seconds that workers get to say what they are doing.
ANSWER_SECONDS = 0.5
#: Workers of a stage that a message shows one by one.
WORKERS_SHOWN = 3


def check_stall_timeout(seconds: object) -> None:
    """Raise OptionError unless it is None or a number of seconds above 0."""
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    most = threading.TIMEOUT_MAX
    if seconds is not None and not (is_number and 0 < seconds <= most):  # type: ignore[operator]  # a number
        raise OptionError(
            f"stall_timeout={short_repr(seconds)} cannot work: it must be a number of seconds above 0, or None"
        )


class Watch:
    """The workers and channels of a run, to be looked at.

    names: of each worker, in each of the stages that it runs.
    """

    def __init__(self, names: Sequence[Names], workers: Sequence[Worker], channels: Sequence[Channel]) -> None:
        self._names = names
        self._workers = workers
        self._channels = channels

    def positions(self, seconds: float) -> list[object]:
        """Numbers and states of which one changes whenever something moves; workers get `seconds` to answer."""
        workers = [(state.doing, state.read, state.results) for state in self.states(detail=False, seconds=seconds)]
        return [*(channel.counts() for channel in self._channels), *workers]

    def states(self, *, detail: bool, seconds: float = ANSWER_SECONDS) -> list[WorkerState]:
        """What each worker is doing for each of its stages, in the order of the stages; those who do not answer in so
        many seconds are `Doing.UNKNOWN`."""
        stages = list(dict.fromkeys(stage for names in self._names for stage, _ in names))
        states = chain.from_iterable(self._states_by_worker(detail=detail, seconds=seconds))
        return sorted(states, key=lambda state: stages.index(state.stage))

    def _unknown(self) -> list[Sequence[WorkerState]]:
        return [[WorkerState(stage, worker, Doing.UNKNOWN) for stage, worker in names] for names in self._names]

    def _states_by_worker(self, *, detail: bool, seconds: float) -> list[Sequence[WorkerState]]:
        answers: SimpleQueue[tuple[int, Sequence[WorkerState]]] = SimpleQueue()

        def ask() -> None:
            for index, worker in enumerate(self._workers):
                worker.inquire(partial(_put, answers, index), detail=detail)

        if detail:  # calls the `repr` of items: code of the user, which may not return
            start_thread(threading.Thread(target=ask, name="pipekit-inquiry", daemon=True))
        else:
            ask()
        # What a worker says without detail holds until it has said it with detail: a `repr` may not return.
        states = self._states_by_worker(detail=False, seconds=seconds) if detail else self._unknown()
        deadline = monotonic() + seconds
        for _ in self._workers:
            try:
                index, answered = answers.get(timeout=max(0.0, deadline - monotonic()))
            except Empty:
                break
            states[index] = answered or states[index]
        return states


def _put(answers: SimpleQueue[tuple[int, Sequence[WorkerState]]], index: int, states: Sequence[WorkerState]) -> None:
    answers.put((index, states))


class PatientReader(BlockingReader):
    """The consumer's reading end; raises Stalled when nothing has moved for `seconds` while it waited."""

    def __init__(self, channel: Channel, watch: Watch, seconds: float) -> None:
        super().__init__(channel)
        self._watch = watch
        self._seconds = seconds

    def _wait(self, sleeper: Sleeper) -> Frame | Signal:
        # Looks are counted, not seconds: a program that was stopped for an hour has not stalled for one.
        positions: list[object] = []
        same, pause = 0, self._seconds / LOOKS
        spent = 0.0  # in the last look
        while (answer := sleeper.nap(max(0.0, pause - spent))) is None:
            if same == LOOKS:
                self._give_up()
            began = monotonic()
            before, positions = positions, self._watch.positions(min(ANSWER_SECONDS, pause))
            same = same + 1 if positions == before else 0
            spent = pause if same == LOOKS else monotonic() - began  # then only to see whether an answer has come
        return answer

    def _give_up(self) -> None:
        states = self._watch.states(detail=True)
        raise Stalled(_message(self._seconds, states), states)


def _message(seconds: float, states: Sequence[WorkerState]) -> str:
    stages = [_stage_lines(stage, list(group)) for stage, group in groupby(states, _stage)]
    return "\n".join([_STALLED.format(seconds), *chain.from_iterable(stages), _ADVICE])


def _stage(state: WorkerState) -> str:
    return state.stage


def _stage_lines(stage: str, states: Sequence[WorkerState]) -> Iterator[str]:
    counts = Counter(state.doing for state in states)
    yield f"  {stage}: " + ", ".join(f"{count} {_IN_WORDS[doing]}" for doing, count in counts.items())
    for state in [state for state in states if state.doing is Doing.WORKING][:WORKERS_SHOWN]:
        item = "" if state.item is None else f" on the item {state.item}"
        yield f"    {state.worker}: for {state.seconds:.1f} s{item}{_innermost(state.traceback)}"


def _is_of_a_library(call: str) -> bool:
    installed = "site-packages" in call  # lies in the directory of Python's library, and is the user's choice
    return call.startswith(_PIPEKIT) or (call.startswith(_PYTHON) and not installed)


def _innermost(traceback: str) -> str:
    """The innermost call that is neither Python's library nor pipekit: there is what the user can change."""
    calls = [line.strip() for line in traceback.splitlines() if line.startswith('  File "')]
    own = [call for call in calls if not _is_of_a_library(call)]
    return f", {(own or calls)[-1]}" if calls else ""


_PYTHON = f'File "{os.path.dirname(os.__file__)}{os.sep}'
_PIPEKIT = f'File "{os.path.dirname(__file__)}{os.sep}'
_STALLED = (
    "nothing has moved for {:g} s although the results were waited for; the run is stopped. "
    "What its workers were doing:"
)
_ADVICE = (
    "Usually a call without a timeout: to the network, for a lock, of a program. "
    "If an item may take that long, allow more: results(stall_timeout=...)"
)
_IN_WORDS = {
    **{doing: doing.value for doing in Doing},
    Doing.UNKNOWN: "not answering (stopped by a signal, in native code that keeps the GIL, or its backend cannot tell)",
}
