"""`python -m pipekit`: see what pipekit does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

MOST_PAGES = 10_000
MOST_FETCHERS = 500
MOST_PARSERS = 64


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help(sys.stderr)
        return 2
    from pipekit import PipekitError
    from pipekit._demo import DemoError, demo

    try:
        return demo(given.pages, given.fetchers, given.parsers)
    except (PipekitError, DemoError) as error:
        print(f"pipekit demo: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pipekit", description="Pipelines on threads and processes.")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    about = "fetch and parse web pages of a local server in a pipeline, then one by one"
    demo = commands.add_parser("demo", help=about, description=about.capitalize() + ".")
    demo.add_argument(
        "--pages", type=_count(MOST_PAGES), default=300, metavar="N", help="pages to fetch, default %(default)s"
    )
    demo.add_argument(
        "--fetchers",
        type=_count(MOST_FETCHERS),
        default=20,
        metavar="N",
        help="threads that fetch, default %(default)s",
    )
    demo.add_argument(
        "--parsers",
        type=_count(MOST_PARSERS),
        default=2,
        metavar="N",
        help="processes that parse, default %(default)s",
    )
    return parser


def _count(most: int) -> Callable[[str], int]:
    """A whole number from 1 to `most`."""

    def count(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = 0
        if not 1 <= number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} cannot work: it must be a whole number from 1 to {most}")
        return number

    return count


if __name__ == "__main__":
    try:
        status = main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        status = 130  # what shells report for SIGINT
    sys.exit(status)
