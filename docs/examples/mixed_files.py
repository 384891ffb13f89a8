"""A folder of mixed files: each kind goes its own way, then all rows go into a database and into statistics."""

import csv
import json
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from pipekit import NoInput, Pipeline, TaskException, map_stage, route, stage, tee

FILES = 2000


class Row(NamedTuple):
    """What any of the files is read into."""

    kind: str
    file: str
    value: int


@stage(backend="thread")
def walk(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.iterdir())


def kind(path: Path) -> str:
    return path.suffix


@stage(workers=2, backend="process")  # computes
def read_csv(paths: Iterable[Path]) -> Iterator[Row]:
    for path in paths:
        yield from csv_rows(path)


@stage(workers=4, backend="thread")  # waits for the disk
def read_json(paths: Iterable[Path]) -> Iterator[Row]:
    for path in paths:
        yield from json_rows(path)


@map_stage(backend="thread")
def count(path: Path) -> Row:
    return Row("other", path.name, 1)


def csv_rows(path: Path) -> Iterator[Row]:
    with path.open(newline="") as lines:
        for name, value in csv.reader(lines):
            yield Row("csv", name, int(value))


def json_rows(path: Path) -> Iterator[Row]:
    for line in path.read_text().splitlines():
        yield Row("json", **json.loads(line))


@stage(backend="thread")  # one worker: one connection, one transaction, which a failure undoes
def save(rows: Iterable[Row], database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.executemany("INSERT INTO rows VALUES (?, ?, ?)", rows)


@stage(backend="thread")  # one worker: it sees all rows
def statistics(rows: Iterable[Row]) -> Iterator[Counter[str]]:
    sums: Counter[str] = Counter()
    for seen, row in enumerate(rows, start=1):
        sums[row.kind] += row.value
        if seen % 1000 == 0:
            yield sums.copy()  # as it stands
    yield sums


def graph(folder: Path, database: Path) -> Pipeline[NoInput, Counter[str]]:
    read = route(kind, {".csv": read_csv, ".jsonl": read_json}, default=count)
    return walk(folder) | read | tee(save(database), statistics)


# -- the same in plain Python, files to try it on


def plain_rows(folder: Path) -> Iterator[Row]:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".csv":
            yield from csv_rows(path)
        elif path.suffix == ".jsonl":
            yield from json_rows(path)
        else:
            yield Row("other", path.name, 1)


def plain_sums(rows: Iterable[Row]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for row in rows:
        sums[row.kind] += row.value
    return sums


def make_files(folder: Path) -> None:
    folder.mkdir()
    for number in range(FILES):
        name, value = f"file-{number:04}", number % 7
        if number % 3 == 0:
            (folder / f"{name}.csv").write_text(f"{name},{value}\n" * 3)
        elif number % 3 == 1:
            (folder / f"{name}.jsonl").write_text(json.dumps({"file": name, "value": value}) + "\n")
        else:
            (folder / f"{name}.png").touch()


def saved_rows(database: Path) -> list[Row]:
    with closing(sqlite3.connect(database)) as connection:
        return [Row(*row) for row in connection.execute("SELECT * FROM rows")]


def make_database(database: Path) -> Path:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE rows (kind TEXT, file TEXT, value INTEGER)")
    return database


with tempfile.TemporaryDirectory() as name:
    files = Path(name) / "files"
    make_files(files)
    rows = list(plain_rows(files))

    database = make_database(Path(name) / "rows.db")
    pipe = graph(files, database)
    print(pipe)
    *running, sums = pipe.results()
    print(f"{len(rows)} rows, {len(running)} intermediate results, {dict(sorted(sums.items()))}")
    print("saved as in plain Python:", sorted(saved_rows(database)) == sorted(rows))
    print("sums as in plain Python:", sums == plain_sums(rows))

    (files / "file-1500.csv").write_text("file-1500,many\n")
    database = make_database(Path(name) / "failed.db")
    try:
        graph(files, database).execute()
    except TaskException as error:
        print(f"{error.stage} failed: {error.__cause__}; {error.__notes__[-1]}")
    print("saved after the failure:", len(saved_rows(database)))

# Output:
# <Pipeline walk | route(kind) | tee(save, statistics)>
# 3334 rows, 3 intermediate results, {'csv': 5994, 'json': 2000, 'other': 666}
# saved as in plain Python: True
# sums as in plain Python: True
# read_csv failed: invalid literal for int() with base 10: 'many'; stage "read_csv" is in branch '.csv' of route(kind)
# saved after the failure: 0
