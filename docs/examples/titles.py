"""The most common title of many pages: fetched by four workers, searched by two, counted by one."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from pipekit import stage

TITLE = re.compile("<title>(.*?)</title>")
URLS = [f"page/{number}" for number in range(1000)]


def download(url: str) -> str:
    """Stands for the network: every third page is called "Home", every tenth has no title."""
    number = int(url.removeprefix("page/"))
    if number % 10 == 0:
        return "<p>no title</p>"
    title = "Home" if number % 3 == 0 else f"Page {number}"
    return f"<html><title>{title}</title></html>"


@stage(workers=4)
def fetch_urls(urls: Iterable[str]) -> Iterator[str]:
    for url in urls:
        yield download(url)


@stage(workers=2)
def get_titles(pages: Iterable[str]) -> Iterator[str]:
    for page in pages:
        match = TITLE.search(page)
        if match is not None:  # fewer results than items is fine
            yield match.group(1)


@stage
def most_common(titles: Iterable[str]) -> Iterator[tuple[str, int]]:
    yield from Counter(titles).most_common(1)


pipe = URLS | fetch_urls | get_titles

for title in pipe.results():  # each as soon as it is there
    if title == "Page 1":
        print("found page 1")

print((pipe | most_common).execute())

# Output:
# found page 1
# ('Home', 300)
