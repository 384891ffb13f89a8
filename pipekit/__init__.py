"""pipekit: jobs of several steps, run in parallel by threads and processes, that never hang and lose nothing."""

from __future__ import annotations

TYPE_CHECKING = False  # a name that type checkers know; importing `typing` for it would take longer than all the rest
if TYPE_CHECKING:
    from pipekit._branches import merge as merge
    from pipekit._branches import route as route
    from pipekit._branches import tee as tee
    from pipekit._errors import BackendUnavailable as BackendUnavailable
    from pipekit._errors import Cancelled as Cancelled
    from pipekit._errors import Failure as Failure
    from pipekit._errors import ItemNotPicklable as ItemNotPicklable
    from pipekit._errors import NotPicklable as NotPicklable
    from pipekit._errors import OptionError as OptionError
    from pipekit._errors import PipekitError as PipekitError
    from pipekit._errors import PipelineError as PipelineError
    from pipekit._errors import RemoteTraceback as RemoteTraceback
    from pipekit._errors import SignatureError as SignatureError
    from pipekit._errors import Stalled as Stalled
    from pipekit._errors import StartError as StartError
    from pipekit._errors import TaskException as TaskException
    from pipekit._errors import WorkerDied as WorkerDied
    from pipekit._graph import DROP as DROP
    from pipekit._graph import Options as Options
    from pipekit._inline import run_inline as run_inline
    from pipekit._names import WorkerNames as WorkerNames
    from pipekit._pipeline import NoInput as NoInput
    from pipekit._pipeline import Pipeline as Pipeline
    from pipekit._plan import Plan as Plan
    from pipekit._results import Results as Results
    from pipekit._stage import Stage as Stage
    from pipekit._stage import map_stage as map_stage
    from pipekit._stage import stage as stage
    from pipekit._stats import Doing as Doing
    from pipekit._stats import RunStats as RunStats
    from pipekit._stats import StageStats as StageStats
    from pipekit._stats import WorkerState as WorkerState
    from pipekit.backends.free_threaded import FreeThreadedBackend as FreeThreadedBackend
    from pipekit.backends.process import ProcessBackend as ProcessBackend
    from pipekit.backends.ray import RayBackend as RayBackend
    from pipekit.backends.thread import ThreadBackend as ThreadBackend

__version__ = "0.1.0"

__all__ = [
    "DROP",
    "BackendUnavailable",
    "Cancelled",
    "Doing",
    "Failure",
    "FreeThreadedBackend",
    "ItemNotPicklable",
    "NoInput",
    "NotPicklable",
    "OptionError",
    "Options",
    "PipekitError",
    "Pipeline",
    "PipelineError",
    "Plan",
    "ProcessBackend",
    "RayBackend",
    "RemoteTraceback",
    "Results",
    "RunStats",
    "SignatureError",
    "Stage",
    "StageStats",
    "Stalled",
    "StartError",
    "TaskException",
    "ThreadBackend",
    "WorkerDied",
    "WorkerNames",
    "WorkerState",
    "map_stage",
    "merge",
    "route",
    "run_inline",
    "stage",
    "tee",
]

# Each public name, by the module that has it: loaded when first asked for. A program that declares a pipeline does not
# import what runs one, and one on threads never imports multiprocessing.
_LATER = {
    "BackendUnavailable": "pipekit._errors",
    "Cancelled": "pipekit._errors",
    "DROP": "pipekit._graph",
    "Doing": "pipekit._stats",
    "Failure": "pipekit._errors",
    "FreeThreadedBackend": "pipekit.backends.free_threaded",
    "ItemNotPicklable": "pipekit._errors",
    "NoInput": "pipekit._pipeline",
    "NotPicklable": "pipekit._errors",
    "OptionError": "pipekit._errors",
    "Options": "pipekit._graph",
    "PipekitError": "pipekit._errors",
    "Pipeline": "pipekit._pipeline",
    "PipelineError": "pipekit._errors",
    "Plan": "pipekit._plan",
    "ProcessBackend": "pipekit.backends.process",
    "RayBackend": "pipekit.backends.ray",
    "RemoteTraceback": "pipekit._errors",
    "Results": "pipekit._results",
    "RunStats": "pipekit._stats",
    "SignatureError": "pipekit._errors",
    "Stage": "pipekit._stage",
    "StageStats": "pipekit._stats",
    "Stalled": "pipekit._errors",
    "StartError": "pipekit._errors",
    "TaskException": "pipekit._errors",
    "ThreadBackend": "pipekit.backends.thread",
    "WorkerDied": "pipekit._errors",
    "WorkerNames": "pipekit._names",
    "WorkerState": "pipekit._stats",
    "map_stage": "pipekit._stage",
    "merge": "pipekit._branches",
    "route": "pipekit._branches",
    "run_inline": "pipekit._inline",
    "stage": "pipekit._stage",
    "tee": "pipekit._branches",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_LATER[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
