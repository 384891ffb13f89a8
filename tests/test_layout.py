"""What the source tree must look like: who imports whom, what is public, what is installed."""

from __future__ import annotations

import ast
import os
import pickle
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import metadata
from itertools import chain
from pathlib import Path

import pytest

import pipekit
import pipekit.backends

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pipekit"

#: A module imports only modules above it: contracts before what keeps them, declaring before compiling before running.
ORDER = [
    "pipekit._public",
    "pipekit._gil",
    "pipekit._signals",
    "pipekit._errors",
    "pipekit._outlet",
    "pipekit._pickling",
    "pipekit._arena",
    "pipekit._shown",
    "pipekit._frame",
    "pipekit._task",
    "pipekit._edge",
    "pipekit._stats",
    "pipekit._live",
    "pipekit._activity",
    "pipekit._output",
    "pipekit._one_reader",
    "pipekit._input",
    "pipekit._steps",
    "pipekit._stack",
    "pipekit._worker",
    "pipekit.backends._base",
    "pipekit._channel",
    "pipekit._fan_out",
    "pipekit.backends",
    "pipekit.backends._registry",
    "pipekit._graph",
    "pipekit._layout",
    "pipekit._picture",
    "pipekit._fusion",
    "pipekit._plan",
    "pipekit._watch",
    "pipekit._run",
    "pipekit._results",
    "pipekit._pipeline",
    "pipekit._stage",
    "pipekit._branches",
    "pipekit._inline",
    "pipekit._names",
    "pipekit.backends._hub",
    "pipekit.backends._wire",
    "pipekit.backends._blocks",
    "pipekit.backends._logs",
    "pipekit.backends._link",
    "pipekit.backends._remote",
    "pipekit.backends._child",
    "pipekit.backends._in_fork_server",
    "pipekit.backends._launch",
    "pipekit.backends.thread",
    "pipekit.backends.free_threaded",
    "pipekit.backends.process",
    "pipekit.backends._cluster",
    "pipekit.backends._actor",
    "pipekit.backends.ray",
    "pipekit",
    "pipekit.testing._around",
    "pipekit.testing._faults",
    "pipekit.testing._recorder",
    "pipekit.testing._checks",
    "pipekit.testing",
    "pipekit._demo",
    "pipekit.__main__",
]
#: What the core may know of backends: the contract, and how to find one by name.
CONTRACT = {"pipekit.backends", "pipekit.backends._base", "pipekit.backends._registry"}

FILES = {
    ".".join(("pipekit", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imported(module: str, *, when_loaded: bool = False) -> set[str]:
    """The pipekit modules that `module` imports, except for type checkers; `when_loaded`: except in functions."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    return set(chain.from_iterable(_targets(node) for node in _statements(tree, when_loaded)))


def _statements(node: ast.AST, when_loaded: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            for statement in child.orelse:
                yield from _statements(ast.Module([statement], []), when_loaded)
        elif not (when_loaded and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)):
            yield from _statements(child, when_loaded)


def _targets(node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    else:
        assert node.level == 0, f"relative import in line {node.lineno}"
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
        if name in FILES:
            yield name
        elif name.rpartition(".")[0] in FILES:
            yield name.rpartition(".")[0]


def test_every_module_has_its_place() -> None:
    assert len(ORDER) == len(set(ORDER))
    assert set(FILES) <= set(ORDER)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_go_from_later_to_earlier(module: str) -> None:
    later = {name for name in imported(module) if ORDER.index(name) >= ORDER.index(module)}
    assert not later


@pytest.mark.parametrize("module", sorted(name for name in FILES if "backends" not in name))
def test_the_core_imports_no_concrete_backend(module: str) -> None:
    concrete = {name for name in FILES if name.startswith("pipekit.backends")} - CONTRACT
    assert not imported(module, when_loaded=True) & concrete


@pytest.mark.parametrize("name", [name for name in pipekit.__all__ if name != "DROP"])  # a constant
def test_public_names_are_documented_and_say_where_they_are(name: str) -> None:
    value = getattr(pipekit, name)
    assert value.__doc__
    assert value.__module__ == "pipekit"


def test_all_is_complete() -> None:
    modules = {name.rpartition(".")[2] for name in FILES}
    public = {name for name in vars(pipekit) if not name.startswith("_")} - modules
    assert public - {"annotations", "TYPE_CHECKING"} <= set(pipekit.__all__)


def test_backends_names_exist() -> None:
    assert all(getattr(pipekit.backends, name).__doc__ for name in pipekit.backends.__all__)


@pytest.mark.parametrize("package", ["pipekit", "pipekit.backends"])
def test_names_that_are_loaded_later_are_those_that_type_checkers_see(package: str) -> None:
    (seen,) = [node for node in ast.parse(FILES[package].read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    imports = [node for node in seen.body if isinstance(node, ast.ImportFrom)]
    module = sys.modules[package]
    assert {node.names[0].asname: node.module for node in imports} == module._LATER
    assert sorted(module.__all__) == sorted(module._LATER)
    assert set(module.__all__) <= set(dir(module))


def test_a_star_import_gives_all_names() -> None:
    names: dict[str, object] = {}
    exec("from pipekit import *", names)
    assert set(pipekit.__all__) <= set(names)


@pytest.mark.parametrize("name", pipekit.__all__)
def test_public_names_pickle_by_name(name: str) -> None:
    value = getattr(pipekit, name)
    assert pickle.loads(pickle.dumps(value)) is value


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'DaskBackend'"):
        pipekit.DaskBackend  # noqa: B018


def modules_loaded_by(program: str) -> set[str]:
    program = f"import sys; before = set(sys.modules)\n{program}\nprint(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    return set(done.stdout.split())


def test_importing_pipekit_imports_nothing_else() -> None:
    loaded = modules_loaded_by("import pipekit")
    assert "pipekit" in loaded
    assert not loaded & {*FILES, "typing", "dataclasses", "inspect"} - {"pipekit"}


#: What a program imports that declares a pipeline.
DECLARING = {
    *("pipekit", "pipekit._public", "pipekit._errors", "pipekit._pickling", "pipekit._task", "pipekit._graph"),
    *("pipekit._pipeline", "pipekit._stage", "pipekit._branches"),
    *CONTRACT,
}
NEVER_WITHOUT_NEED = {"multiprocessing", "cloudpickle", "numpy", "asyncio", "logging"}


def test_declaring_a_pipeline_imports_nothing_that_runs_it() -> None:
    declared = (
        "import pipekit as p\np.merge([1] | p.map_stage(abs)) | p.tee(p.stage(workers=2)(list), p.map_stage(abs))"
    )
    loaded = modules_loaded_by(declared)
    assert loaded & set(FILES) == DECLARING
    assert not {name.partition(".")[0] for name in loaded} & NEVER_WITHOUT_NEED


def test_a_run_imports_no_backend_that_it_does_not_use() -> None:
    loaded = modules_loaded_by("import pipekit as p\n([1] | p.map_stage(backend='thread')(abs)).execute()")
    assert {name for name in loaded & set(FILES) - CONTRACT if "backends" in name} == {"pipekit.backends.thread"}
    assert not {name.partition(".")[0] for name in loaded} & NEVER_WITHOUT_NEED


def test_functions_of_modules_need_no_cloudpickle_at_the_start() -> None:
    program = "from pipekit import map_stage\nimport textwrap\n(['text'] | map_stage(textwrap.dedent)).execute()"
    loaded = modules_loaded_by(program)
    assert "multiprocessing" in loaded
    assert "cloudpickle" not in loaded


def test_runtime_dependencies() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = [requirement.partition(">=")[0] for requirement in project["dependencies"]]
    assert names == ["typing-extensions", "cloudpickle"]


@pytest.mark.skipif("PIPEKIT_TEST_WHEEL" not in os.environ, reason="only tox tests the built wheel")
def test_the_wheel_is_what_is_tested() -> None:
    here = Path(pipekit.__file__)
    assert "site-packages" in here.parts
    assert (here.parent / "py.typed").exists()
    in_workers = pipekit.Stage(lambda: [pipekit.__file__]).execute()
    assert in_workers == pipekit.__file__


@pytest.mark.skipif("PIPEKIT_TEST_WHEEL" not in os.environ, reason="only tox tests the built wheel")
def test_the_wheel_names_every_python_that_it_is_for() -> None:
    python = "Programming Language :: Python"
    expected = {f"{python} :: {version}" for version in ("3.11", "3.12", "3.13", "3.14", "Free Threading :: 2 - Beta")}
    assert expected <= {*metadata("pipekit-parallel").get_all("Classifier", [])}
