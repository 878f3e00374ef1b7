"""Readers of a user's own text: JSON lines (plain or gzip), Parquet, and folders of text files.

A row that cannot be read is quarantined with its file, line and reason; reading goes on behind it.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from resources.errors import TampuError
from resources.readers.rows import BadRow, RawFile, Row, Rows, decoded, text_problem

JSON_LINES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
PARQUET = (".parquet",)
TEXT = (".txt", ".md", ".txt.gz", ".md.gz")


def files_under(path: Path, endings: tuple[str, ...]) -> tuple[list[RawFile], list[BadRow]]:
    """The files at `path` (one file, or a folder searched to its bottom), sorted by name, and those of another type.

    Hidden files are passed over. TampuError if nothing is there to read.
    """
    if path.is_file():
        return [RawFile(path.name, path)], []
    if not path.is_dir():
        raise TampuError(f"The source path {path} does not exist: give a file or a folder")
    files, others = [], []
    for found in sorted(found for found in path.rglob("*") if found.is_file()):
        name = found.relative_to(path).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        if name.lower().endswith(endings):
            files.append(RawFile(name, found))
        else:
            others.append(BadRow(name, 0, f"not read: the name ends in none of {', '.join(endings)}"))
    if not files:
        raise TampuError(f"The source folder {path} holds no file that ends in {', '.join(endings)}: add one, or change the reader")
    return files, others


def _data(file: RawFile) -> bytes:
    try:
        data = file.path.read_bytes()
    except OSError as error:
        raise TampuError(f"The source file {file.path} cannot be read: {error.strerror}") from error
    return gzip.decompress(data) if file.name.lower().endswith(".gz") else data


def _lines(file: RawFile) -> Iterator[bytes]:
    opened: Callable[..., Any] = gzip.open if file.name.lower().endswith(".gz") else open
    try:
        with opened(file.path, "rb") as stream:
            yield from stream
    except gzip.BadGzipFile:
        raise
    except OSError as error:
        raise TampuError(f"The source file {file.path} cannot be read: {error.strerror}") from error


class _Collector:
    """Checks fields of records and keeps ids unique within a source."""

    def __init__(self, text_field: str, id_field: str | None, group_field: str | None):
        self.text_field, self.id_field, self.group_field = text_field, id_field, group_field
        self.found = Rows()
        self.seen: set[str] = set()

    def add(self, file: str, line: int, record: dict[str, Any]) -> None:
        problem = self._add(file, line, record)
        if problem:
            self.found.bad.append(BadRow(file, line, problem))

    def _add(self, file: str, line: int, record: dict[str, Any]) -> str | None:
        for field in (self.text_field, self.id_field, self.group_field):
            if field is not None and record.get(field) is None:
                return f"the field {field!r} is missing"
        text = record[self.text_field]
        if problem := text_problem(text):
            return problem
        native = f"{file}:{line}" if self.id_field is None else str(record[self.id_field])
        group = native if self.group_field is None else str(record[self.group_field])
        for label, value in (("id", native), ("group", group)):
            if problem := text_problem(value):
                return problem.replace("the text", f"the {label}")
        if native in self.seen:
            return f"the id {native!r} came before in this source"
        self.seen.add(native)
        self.found.rows.append(Row(native, text, group))
        return None


def json_lines(path: Path, text_field: str, id_field: str | None, group_field: str | None) -> Rows:
    """Texts of JSON-lines files, one object a line. Without `id_field` the id is `<file>:<line>`."""
    files, others = files_under(path, JSON_LINES)
    collector = _Collector(text_field, id_field, group_field)
    for file in files:
        line = 0
        try:
            for line, data in enumerate(_lines(file), start=1):
                record, problem = _record(data)
                if problem is None:
                    collector.add(file.name, line, record)
                elif problem:
                    collector.found.bad.append(BadRow(file.name, line, problem))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            collector.found.bad.append(BadRow(file.name, line + 1, f"damaged gzip from this line on: {error}"))
    return Rows(collector.found.rows, others + collector.found.bad, files)


def _record(data: bytes) -> tuple[dict[str, Any], str | None]:
    """The object of one line and None, or why there is none (an empty reason for a blank line, which holds no row)."""
    text, problem = decoded(data)
    if problem:
        return {}, problem
    if not text.strip():
        return {}, ""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        return {}, f"not JSON: {error}"
    return (record, None) if isinstance(record, dict) else ({}, f"a JSON {type(record).__name__}, not an object")


def parquet(path: Path, text_field: str, id_field: str | None, group_field: str | None) -> Rows:
    """Texts of Parquet files, one row a text. TampuError for a missing column; a damaged file is quarantined whole."""
    files, others = files_under(path, PARQUET)
    collector = _Collector(text_field, id_field, group_field)
    wanted = list(dict.fromkeys(field for field in (text_field, id_field, group_field) if field is not None))
    for file in files:
        try:
            columns = pl.read_parquet_schema(file.path)
            missing = [field for field in wanted if field not in columns]
            frame = pl.read_parquet(file.path, columns=wanted) if not missing else pl.DataFrame()
        except (pl.exceptions.PolarsError, OSError) as error:
            collector.found.bad.append(BadRow(file.name, 0, f"not readable as Parquet: {str(error).splitlines()[0]}"))
            continue
        if missing:
            raise TampuError(f"{file.path} has no column {missing[0]!r}; it has {', '.join(columns)}")
        for line, record in enumerate(frame.iter_rows(named=True), start=1):
            collector.add(file.name, line, _with_text(record, text_field))
    return Rows(collector.found.rows, others + collector.found.bad, files)


def _with_text(record: dict[str, Any], text_field: str) -> dict[str, Any]:
    """A binary text column as a string where it is UTF-8 (else left as bytes, which the collector refuses)."""
    value = record[text_field]
    if isinstance(value, bytes):
        text, problem = decoded(value)
        return record if problem else {**record, text_field: text}
    return record


def text_folder(path: Path) -> Rows:
    """One text a file; the id is the file's path below `path`, the group its id."""
    files, others = files_under(path, TEXT)
    found = Rows(bad=others, files=files)
    for file in files:
        try:
            text, problem = decoded(_data(file))
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            text, problem = "", f"damaged gzip: {error}"
        problem = problem or text_problem(text)
        if problem:
            found.bad.append(BadRow(file.name, 0, problem))
        else:
            found.rows.append(Row(native=file.name, text=text, group=file.name))
    return found


FILE_ENDINGS: dict[str, tuple[str, ...]] = {"jsonl": JSON_LINES, "parquet": PARQUET, "text": TEXT}
