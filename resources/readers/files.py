"""Readers of a user's own text: JSON lines and text files (plain, gzip or zstd) and Parquet, a row at a time.

A row that cannot be read is quarantined with its file, line and reason; reading goes on behind it. Nothing is read whole
but a single row, a row group of Parquet, or a text file, and none of these may be larger than ROW_BYTES.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import polars as pl
import zstandard

from resources.errors import TampuError
from resources.readers.rows import BadRow, RawFile, Read, Row, decoded, text_problem

PACKED = ("", ".gz", ".zst")
JSON_LINES = tuple(f".{name}{packed}" for name in ("jsonl", "ndjson") for packed in PACKED)
PARQUET = (".parquet",)
TEXT = tuple(f".{name}{packed}" for name in ("txt", "md") for packed in PACKED)

# The longest line or text file; a longer one is most likely no text at all, and would take twenty times its size to look at.
ROW_BYTES = 16 << 20

DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError)


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


def _opened(file: RawFile) -> IO[bytes]:
    """The file's bytes as a stream, unpacked."""
    name = file.name.lower()
    try:
        raw = file.path.open("rb")
    except OSError as error:
        raise TampuError(f"The source file {file.path} cannot be read: {error.strerror}") from error
    if name.endswith(".gz"):
        return gzip.open(raw)  # type: ignore[return-value]
    if name.endswith(".zst"):
        return io.BufferedReader(_Unpacked(raw), 1 << 20)
    return raw


class _Unpacked(io.RawIOBase):
    """The bytes of a zstd file of one or more frames. Unlike the package's own stream it tells a file that ends too early."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed = packed
        self._frame: Any = None
        self._rest = self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            # Little at a time: of text that repeats, a kilobyte may hold megabytes.
            data = self._rest or self._packed.read(1 << 12)
            if not data:
                if self._frame is not None:
                    raise zstandard.ZstdError("the file ends inside a frame")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._ready, self._rest = self._frame.decompress(data), b""
            if self._frame.eof:
                self._rest, self._frame = self._frame.unused_data, None
        size = min(len(buffer), len(self._ready))
        buffer[:size], self._ready = self._ready[:size], self._ready[size:]
        return size

    def close(self) -> None:
        self._packed.close()
        super().close()


def _lines(file: RawFile) -> Iterator[bytes | int]:
    """Each line with its break; of one longer than ROW_BYTES only its number of bytes."""
    try:
        with _opened(file) as stream:
            while line := stream.readline(ROW_BYTES + 1):
                if len(line) <= ROW_BYTES:
                    yield line
                    continue
                size = len(line)
                while not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
                    size += len(line)
                yield size
    except DAMAGED:
        raise
    except OSError as error:
        raise TampuError(f"The source file {file.path} cannot be read: {error.strerror}") from error


def _too_long(size: int) -> str:
    return f"{size:,} bytes, above the {ROW_BYTES:,} that a row may have: cut it into documents"


class Fields:
    """Which fields of a record hold what; makes rows of records."""

    def __init__(self, text: str, id: str | None = None, group: str | None = None, url: str | None = None):
        self.text, self.id, self.group, self.url = text, id, group, url

    @property
    def names(self) -> list[str]:
        """The fields without repeats."""
        return list(dict.fromkeys(name for name in (self.text, self.id, self.group, self.url) if name is not None))

    def row(self, file: str, line: int, record: dict[str, Any]) -> Read:
        """The row of a record. The address may be missing, all other fields must be there."""
        for field in (self.text, self.id, self.group):
            if field is not None and record.get(field) is None:
                return BadRow(file, line, f"the field {field!r} is missing")
        text = record[self.text]
        if isinstance(text, bytes):
            text, problem = decoded(text)
            if problem:
                return BadRow(file, line, problem)
        if problem := text_problem(text):
            return BadRow(file, line, problem)
        if len(text) > ROW_BYTES // 4 and (size := len(text.encode())) > ROW_BYTES:
            return BadRow(file, line, _too_long(size))
        native = f"{file}:{line}" if self.id is None else str(record[self.id])
        group = native if self.group is None else str(record[self.group])
        url = None if self.url is None or record.get(self.url) is None else str(record[self.url])
        for label, value in (("id", native), ("group", group), ("url", url)):
            if value is not None and (problem := text_problem(value)):
                return BadRow(file, line, problem.replace("the text", f"the {label}"))
        return Row(native, text, group, file, line, url, given=self.id is not None)


def json_lines(files: list[RawFile], fields: Fields) -> Iterator[Read]:
    """Texts of JSON-lines files, one object a line. Without an id field the id is `<file>:<line>`."""
    for file in files:
        line = 0
        try:
            for line, data in enumerate(_lines(file), start=1):
                record, problem = ({}, _too_long(data)) if isinstance(data, int) else _record(data)
                if problem is None:
                    yield fields.row(file.name, line, record)
                elif problem:
                    yield BadRow(file.name, line, problem)
        except DAMAGED as error:
            yield BadRow(file.name, line + 1, f"damaged {_packing(file)} from this line on: {error}")


def _packing(file: RawFile) -> str:
    return "zstd" if file.name.lower().endswith(".zst") else "gzip"


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


def parquet(files: list[RawFile], fields: Fields) -> Iterator[Read]:
    """Texts of Parquet files, one row a text. TampuError for a missing column; a damaged file is quarantined whole."""
    for file in files:
        line = 0
        try:
            columns = pl.read_parquet_schema(file.path)
            if missing := [field for field in fields.names if field not in columns]:
                raise TampuError(f"{file.path} has no column {missing[0]!r}; it has {', '.join(columns)}")
            rows = pl.scan_parquet(file.path, glob=False).select(fields.names)
            for frame in rows.collect_batches(chunk_size=1024, maintain_order=True, engine="streaming"):
                for record in frame.iter_rows(named=True):
                    line += 1
                    yield fields.row(file.name, line, record)
        except (pl.exceptions.PolarsError, OSError) as error:
            yield BadRow(file.name, line and line + 1, f"not readable as Parquet: {str(error).splitlines()[0]}")


def text_folder(files: list[RawFile], fields: Fields) -> Iterator[Read]:
    """One text a file; the id is the file's path below the source's, the group its id."""
    for file in files:
        try:
            with _opened(file) as stream:
                data = stream.read(ROW_BYTES + 1)
            text, problem = decoded(data) if len(data) <= ROW_BYTES else ("", _too_long(max(len(data), file.path.stat().st_size)))
        except DAMAGED as error:
            text, problem = "", f"damaged {_packing(file)}: {error}"
        problem = problem or text_problem(text)
        yield BadRow(file.name, 0, problem) if problem else Row(file.name, text, file.name, file.name)


FILE_ENDINGS: dict[str, tuple[str, ...]] = {"jsonl": JSON_LINES, "parquet": PARQUET, "text": TEXT}
FILE_READERS: dict[str, Callable[[list[RawFile], Fields], Iterator[Read]]] = {"jsonl": json_lines, "parquet": parquet, "text": text_folder}
