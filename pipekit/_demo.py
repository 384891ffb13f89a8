"""The demo: the most common word in the titles of some web pages, by a pipeline and one by one.

    page numbers ──> fetch (threads) ──> parse_title (processes) ──> most_common (one thread)

The pages come over real sockets, from a server in a process of its own: this module, run as a program.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle, islice
from time import perf_counter, sleep

from pipekit._pipeline import NoInput, Pipeline
from pipekit._results import Results
from pipekit._signals import start_thread
from pipekit._stage import map_stage, stage

HOST = "127.0.0.1"
#: Seconds that the server waits before it answers: what makes fetching bound by input and output.
LATENCY = 0.02
#: Paragraphs of a page: about 30 kB, which html.parser reads in 3 to 4 ms.
PARAGRAPHS = 180
#: Seconds without an answer after which a request fails.
TIMEOUT = 30
#: Seconds between two lines of progress.
INTERVAL = 0.5

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "kelp", "lagoon", "meadow"]


class DemoError(Exception):
    """The demo could not do its work."""


# -- the pages and their server


def make_page(number: int) -> bytes:
    """A page; always the same for the same number."""
    chosen = random.Random(number)
    # The first words are the likeliest, so that one wins also among many pages.
    title = " ".join(chosen.choices(WORDS, weights=range(len(WORDS), 0, -1), k=3))
    words = chosen.sample(WORDS, k=len(WORDS))
    paragraphs = "\n".join(
        f'<p class="text">About <a href="/page/{index}">{word}</a> and <em>its kind</em>: {" ".join(words)}.</p>'
        for index, word in enumerate(islice(cycle(words), PARAGRAPHS))
    )
    return f"<!doctype html><html><head><title>{title}</title></head><body>\n{paragraphs}\n</body></html>".encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # a fetcher keeps its connection
    disable_nagle_algorithm = True  # else the end of a page waits 40 ms for the acknowledgement of its beginning

    def do_GET(self) -> None:
        page = make_page(int(self.path.rpartition("/")[2]))
        sleep(LATENCY)
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 512  # all fetchers may connect at the same moment

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has left is no error."""


def serve() -> None:
    """Serve pages until standard input ends: it is a pipe from the demo, so it ends however the demo does."""
    server = _Server((HOST, 0), _Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.server_port, flush=True)
    sys.stdin.buffer.read()


@contextmanager
def serving() -> Iterator[int]:
    """A server in a process of its own; gives its port."""
    command = [sys.executable, "-m", "pipekit._demo"]
    # In a session of its own Ctrl-C does not reach it. Leaving the block closes its standard input and waits for it.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            raise DemoError(f"the server did not start: exit status {server.wait()}")
        yield int(line)


# -- the stages


@stage(backend="thread")
def fetch(numbers: Iterable[int], port: int) -> Iterator[bytes]:
    """Pages by their numbers; each worker has a connection of its own."""
    yield from fetched(numbers, port)


@map_stage(backend="process")
def parse_title(page: bytes) -> str:
    """The title of a page."""
    return title_of(page)


@stage(backend="thread")
def most_common(titles: Iterable[str]) -> Iterator[tuple[str, int]]:
    """The word that is in most titles, and in how many."""
    yield most_common_word(titles)


def fetched(numbers: Iterable[int], port: int) -> Iterator[bytes]:
    connection = HTTPConnection(HOST, port, timeout=TIMEOUT)
    try:
        for number in numbers:
            connection.request("GET", f"/page/{number}")
            yield connection.getresponse().read()
    finally:
        connection.close()


class _TitleParser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.title = ""
        self._open = False

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self._open = tag == "title"

    def handle_endtag(self, tag: str) -> None:
        self._open = False

    def handle_data(self, data: str) -> None:
        if self._open:
            self.title += data


def title_of(page: bytes) -> str:
    parser = _TitleParser()
    parser.feed(page.decode())
    parser.close()
    return parser.title


def most_common_word(titles: Iterable[str]) -> tuple[str, int]:
    counts = Counter(word for title in titles for word in set(title.split()))
    # Of words that are equally common the last in the alphabet: the order in which titles arrive must not matter.
    count, word = max((count, word) for word, count in counts.items())
    return word, count


# -- running


def demo(pages: int, fetchers: int, parsers: int) -> int:
    """Run the pipeline, then the same one by one; returns the exit status."""
    with serving() as port:
        pipe = pipeline(pages, fetchers, parsers, port)
        pipe.plan()  # imports what the run needs: in the middle of an import Python may lose a Ctrl-C
        _say(f"{pages} pages at http://{HOST}:{port}/page/0 ..., each {LATENCY * 1000:.0f} ms away")
        started = perf_counter()
        result = run(pipe, pages)
        took = perf_counter() - started
        _say("the same one by one ...")
        started = perf_counter()
        expected = run_one_by_one(pages, port)
        took_one_by_one = perf_counter() - started
    if result != expected:
        raise DemoError(f"the pipeline found {result}, one by one it is {expected}")
    word, count = result
    print(f'most common word: "{word}", in {count} of {pages} titles')
    print(f"pipeline:   {took:.2f} s (threads that fetch: {fetchers}, processes that parse: {parsers})")
    print(f"one by one: {took_one_by_one:.2f} s, {took_one_by_one / took:.1f} times as long, with the same result")
    return 0


def pipeline(pages: int, fetchers: int, parsers: int, port: int) -> Pipeline[NoInput, tuple[str, int]]:
    titles = fetch(port).setup(workers=fetchers) | parse_title.setup(workers=parsers)
    return range(pages) | titles | most_common


def run(pipe: Pipeline[NoInput, tuple[str, int]], pages: int) -> tuple[str, int]:
    with pipe.results() as results, _progress(results, pages):
        return next(results)


def run_one_by_one(pages: int, port: int) -> tuple[str, int]:
    try:
        return most_common_word(map(title_of, fetched(range(pages), port)))
    except (OSError, HTTPException) as error:
        raise DemoError(f"the server gave no page: {error!r}") from error


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _progress(results: Results[tuple[str, int]], pages: int) -> Iterator[None]:
    """Show how far a run is while the block runs."""
    done = threading.Event()
    on_terminal = sys.stderr.isatty()

    def show() -> None:
        finished = False
        while True:
            _, fetching, parsing, _ = results.stats().stages
            line = f"fetched {fetching.results}, parsed {parsing.results} of {pages}"
            print(line, end="\r" if on_terminal else "\n", file=sys.stderr, flush=True)
            if finished:
                return
            finished = done.wait(INTERVAL)

    reporter = threading.Thread(target=show, name="progress", daemon=True)
    start_thread(reporter)
    try:
        yield
    finally:
        done.set()
        reporter.join()
        if on_terminal:
            print(file=sys.stderr)


if __name__ == "__main__":
    serve()
