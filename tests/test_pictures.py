"""What a graph looks like before it runs: names, the plan as text, pictures."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Iterable, Iterator
from typing import Any
from xml.etree import ElementTree

import pytest

from pipekit import (
    DROP,
    OptionError,
    Stage,
    TaskException,
    WorkerNames,
    map_stage,
    merge,
    route,
    run_inline,
    stage,
    tee,
)

SVG = "{http://www.w3.org/2000/svg}"


@map_stage(backend="thread")
def parse(number: int) -> int:
    return number + 1


@stage(workers=3, qsize=4)
def load(numbers: Iterable[int]) -> Iterator[int]:
    yield from numbers


def parity(number: int) -> str:
    return "even" if number % 2 == 0 else "odd"


def names(graph: Any) -> list[str]:
    return [line.partition(":")[0] for line in graph.explain().splitlines()]


# -- names


def test_stages_of_one_function_get_names_in_the_order_in_which_they_are_written() -> None:
    graph = [1] | parse | tee(parse | load, parse) | load
    assert names(graph) == ["source", "parse", "parse#2", "load", "parse#3", "load#2"]


def test_a_name_that_is_given_is_used_and_told_apart_like_any_other() -> None:
    named = map_stage(name="parse#2")(parity)
    assert named.name == "parse#2"
    assert names([1] | parse | parse | load().setup(name="parse")) == ["source", "parse", "parse#2", "parse#3"]
    assert names([1] | parse | named.setup(name="parse#2", backend="thread")) == ["source", "parse", "parse#2"]
    assert load().setup(name="other").setup(name=None).name == "load"


@pytest.mark.parametrize("name", ["", "  ", "two\nlines", 3, b"bytes"])
def test_what_cannot_be_a_name_is_refused(name: Any) -> None:
    with pytest.raises(OptionError, match="name="):
        parse().setup(name=name)
    with pytest.raises(OptionError, match="name="):
        tee(parse, load).setup(name=name)


def test_errors_statistics_and_logs_use_the_names(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.handler.addFilter(WorkerNames())

    @map_stage(backend=backend)
    def work(number: float) -> float:
        logging.getLogger("test").warning("working")
        return 1 / (number - 1)

    graph = [3] | work | tee(work, map_stage(name="other", backend="thread")(half))
    with graph.results() as results:
        assert sorted(results) == [-2.0, 0.25]
        assert [one.name for one in results.stats().stages] == ["source", "work", "work#2", "other"]
    assert sorted(record.worker for record in caplog.records) == ["work#2-0", "work-0"]  # type: ignore[attr-defined]
    with pytest.raises(TaskException, match='The task "work#2-0" raised ZeroDivisionError') as caught:
        list(([2] | work | work).results())
    assert caught.value.stage == "work#2"


def half(number: float) -> float:
    return number / 2


def test_run_inline_uses_the_same_names() -> None:
    with pytest.raises(TaskException, match='"inverse#2-0"'):
        list(run_inline([0.5] | map_stage(inverse) | map_stage(lambda number: number - 2) | map_stage(inverse)))


def inverse(number: float) -> float:
    return 1 / number


def test_a_name_of_its_own_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(tee(parse, load).setup(name="both")))
    assert copy.name == "both"


# -- the plan as text


def test_explain_says_workers_backend_readers_and_queue_of_each_stage() -> None:
    keyed = load().setup(key=parity)
    graph = merge([1] | load(), [2]) | route(parity, {0: keyed, "odd": tee(parse, load())}, default=DROP)
    readers = "route(parity)(0: load#2 by key, odd: tee(parse, load#3), others: dropped)"
    assert graph.explain().splitlines() == [
        "source: 1 x thread -> load, queue of 4 items",
        f"load: 3 x process -> {readers}, queue of 4 items each",
        f"source#2: 1 x thread -> {readers}, queue of 4 items each",
        "load#2: 3 x process -> results, queue of 4 items",
        "parse: 1 x thread -> results, queue of 4 items",
        "load#3: 3 x process -> results, queue of 4 items",
    ]


def test_where_stages_meet_the_queue_has_the_smallest_size_that_one_asks_for() -> None:
    def sized(qsize: int | None) -> Any:
        return Stage(range, 3).setup(qsize=qsize)

    def met(*sizes: int | None) -> str:
        return merge(*map(sized, sizes)).explain().partition("results, ")[2].partition("\n")[0]

    assert met(5, 2, 9) == "queue of 2 items"
    assert met(None, 0, 7) == "queue of 7 items"
    assert met(0, 0) == "queue without limit"
    assert "at most 262144 items" in met(None, 0)


# -- pictures


def graph() -> Any:
    return [1] | parse | route(parity, even=parse | load, odd=tee(parse, load)) | load


def test_the_svg_has_a_box_for_each_stage_and_an_arrow_for_each_way() -> None:
    root = ElementTree.fromstring(graph().to_svg())
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert [text for text in texts if text in {"parse", "parse#2", "load#2", "load#3", "results"}] == [
        "parse",
        "parse#2",
        "load#2",
        "load#3",
        "results",
    ]
    assert len(list(root.iter(f"{SVG}rect"))) == 8
    assert len(root.findall(f"{SVG}path")) == 9
    assert sorted(text for text in texts if text in {"even", "odd"}) == ["even", "odd", "odd"]
    assert "3 x process" in texts


def test_no_box_lies_on_another() -> None:
    root = ElementTree.fromstring(graph().to_svg())
    corners = {(box.get("x"), box.get("y")) for box in root.iter(f"{SVG}rect")}
    assert len(corners) == 8


@pytest.mark.parametrize("shown", [graph(), [1] | parse, parse | load, parse, tee(parse, load)], ids=repr)
def test_a_notebook_shows_the_picture_with_or_without_a_source(shown: Any) -> None:
    assert shown._repr_svg_() == shown.to_svg()
    titles = [text.text for text in ElementTree.fromstring(shown.to_svg()).iter(f"{SVG}text")]
    assert ("items" in titles) == ("source" not in titles)


def test_mermaid_and_dot_name_boxes_and_arrows() -> None:
    fanned = [1] | route(lambda number: '"<', {'"<': parse}, default=load)
    assert fanned.to_mermaid() == (
        "flowchart LR\n"
        '    s0["source"]\n'
        '    s1["parse<br>1 x thread"]\n'
        '    s2["load<br>3 x process"]\n'
        '    s3["results"]\n'
        '    s0 -->|"#quot;#lt;"| s1\n'
        '    s0 -->|"default"| s2\n'
        "    s1 --> s3\n"
        "    s2 --> s3\n"
    )
    assert '    s0 -> s1 [label="\\"<"]\n' in fanned.to_dot()
    assert '    s1 [label="parse\\n1 x thread"]\n' in fanned.to_dot()
