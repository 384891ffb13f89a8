"""Every example of the seed library's documentation, on every backend."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from pipekit import Stage, TaskException, map_stage, stage

TITLE = re.compile("<title>(.*?)</title>", re.M)
PAGES = {
    "http://a": "<title>spam</title>",
    "http://b": "<title>eggs</title>",
    "http://c": "no title",
    "http://d": "<title>spam</title>",
}
URLS = list(PAGES)


def add_n(input: Iterable[int], n: int) -> Iterator[int]:
    for number in input:
        yield number + n


def add_one_to_all(numbers: Iterable[int]) -> Iterator[int]:
    for number in numbers:
        yield number + 1


class Multiplier:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    def multiply(self, numbers: Iterable[int]) -> Iterator[int]:
        for number in numbers:
            yield number * self.factor


@stage(workers=4)
def fetch_urls(urls: Iterable[str]) -> Iterator[str]:
    for url in urls:
        yield PAGES[url]


@stage(workers=2)
def get_titles(contents: Iterable[str]) -> Iterator[str]:
    for content in contents:
        match = TITLE.search(content)
        if match is not None:
            yield match.group(1)


@stage()
def most_common(titles: Iterable[str]) -> Iterator[str]:
    commons = Counter(titles).most_common(1)
    yield commons[0][0]


def test_results_of_one_stage(backend: str) -> None:
    pipe = URLS | fetch_urls.setup(backend=backend)
    assert sorted(len(content) for content in pipe.results()) == sorted(map(len, PAGES.values()))


def test_fewer_results_than_items_are_fine(backend: str) -> None:
    pipe = URLS | fetch_urls.setup(backend=backend) | get_titles.setup(backend=backend)
    assert sorted(pipe.results()) == ["eggs", "spam", "spam"]


def test_an_aggregate_is_the_result_of_execute(backend: str) -> None:
    on = [one.setup(backend=backend) for one in (fetch_urls, get_titles, most_common)]
    assert (URLS | on[0] | on[1] | on[2]).execute() == "spam"


def test_a_parametrical_stage_gets_its_parameters_by_a_call(backend: str) -> None:
    add = stage(workers=4, backend=backend)(add_n)
    assert sorted((range(100) | add(7)).results()) == list(range(7, 107))


def test_a_map_stage_gives_one_result_for_each_item(backend: str) -> None:
    @map_stage(workers=4, backend=backend)
    def add(number: int, n: int) -> int:
        return number + n

    assert sorted((range(100) | add(7)).results()) == list(range(7, 107))


def test_filter_errors_leaves_out_items_whose_call_raises(backend: str) -> None:
    @map_stage(workers=2, backend=backend, filter_errors=True)
    def add_one(number: int) -> int:
        return number + 1

    items: list[int] = [2, 3, "ops", 7]  # type: ignore[list-item]
    assert sorted((items | add_one).results()) == [3, 4, 8]


@pytest.mark.parametrize("qsize", [0, 1, 30, None])
def test_every_queue_size_gives_the_same_results(backend: str, qsize: int | None) -> None:
    add = stage(workers=4, qsize=qsize, backend=backend)(add_n)
    assert sorted((range(300) | add(1) | add(1)).results()) == list(range(2, 302))


def test_setup_after_definition_and_in_the_expression(backend: str) -> None:
    add = stage(workers=4)(add_n)
    add.setup(workers=2, qsize=0, backend=backend)
    assert sorted((range(10) | add(1) | add(1).setup(workers=1)).results()) == list(range(2, 12))


def test_a_producer_comes_first_and_is_called_without_items(backend: str) -> None:
    pipe = Stage(range, 10).setup(qsize=5, backend=backend) | Stage(add_n, 5).setup(workers=2, backend=backend)
    assert sorted(pipe.results()) == list(range(5, 15))


def test_several_workers_of_a_producer_are_several_copies(backend: str) -> None:
    pipe = Stage(range, 10).setup(workers=4, backend=backend)
    assert sorted(pipe.results()) == sorted([*range(10)] * 4)


def test_a_bound_method_is_a_stage(backend: str) -> None:
    times_three = Stage(Multiplier(3).multiply).setup(workers=2, backend=backend)
    assert times_three.name == "Multiplier.multiply"
    assert sorted((range(5) | times_three).results()) == [0, 3, 6, 9, 12]


def test_a_pipeline_runs_again(backend: str) -> None:
    pipe = range(10) | stage(backend=backend)(add_n)(1)
    assert sorted(pipe.results()) == sorted(pipe.results()) == list(range(1, 11))


def test_a_single_stage_runs(backend: str) -> None:
    numbers = Stage(range, 5).setup(backend=backend)
    assert list(numbers.results()) == [0, 1, 2, 3, 4]
    assert numbers.execute() == 4


def test_execute_without_results_gives_none(backend: str) -> None:
    assert Stage(range, 0).setup(backend=backend).execute() is None


def test_an_exception_is_raised_with_the_seeds_message(backend: str) -> None:
    add_one = stage(backend=backend)(add_one_to_all)
    items: list[int] = [2, 3, "ops", 7]  # type: ignore[list-item]
    with pytest.raises(TaskException) as caught:
        sum((items | add_one).results())
    assert str(caught.value).startswith('The task "add_one_to_all-0" raised TypeError(')


def test_a_worker_of_a_method_is_named_after_class_and_method(backend: str) -> None:
    stage_of_method = Stage(Multiplier(3).multiply).setup(backend=backend)
    with pytest.raises(TaskException, match='"Multiplier.multiply-0" raised TypeError'):
        ([None] | stage_of_method).execute()  # type: ignore[operator]
