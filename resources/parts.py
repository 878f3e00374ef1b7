"""Frames too large for memory: a folder of Parquet parts, cut where the rows say so, never where a batch happened to end."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import polars as pl

from resources.disk import parquet_bytes

PART_BYTES, PART_ROWS = 32 << 20, 1 << 17
BATCH_BYTES = 2 << 20

Item = TypeVar("Item")
Result = TypeVar("Result")
Schema = Mapping[str, pl.DataType | type[pl.DataType]]


class PartWriter:
    """Writes rows in the order given to `<folder>/00000.parquet`, `00001.parquet`, …

    A part ends behind the row with which the bytes of its column `size` reach PART_BYTES, or at PART_ROWS rows. So the
    same rows give the same files, however they are divided into calls. With no row at all there is one empty part.
    """

    def __init__(self, folder: Path, schema: Schema, size: str = "text"):
        self.folder, self.schema, self.size = folder, dict(schema), size
        self.parts = self.rows = 0
        self._held: list[pl.DataFrame] = []
        self._bytes = self._held_rows = 0
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, frame: pl.DataFrame) -> None:
        """Adds rows; the columns must be those of the schema."""
        frame = frame.select(pl.col(name).cast(dtype) for name, dtype in self.schema.items())
        self.rows += frame.height
        while frame.height:
            lengths = frame[self.size].str.len_bytes().fill_null(0).to_numpy()
            until = self._bytes + np.cumsum(lengths, dtype=np.int64)
            end = min(int(np.searchsorted(until, PART_BYTES)) + 1, PART_ROWS - self._held_rows)
            taken = frame.head(end)
            self._held.append(_copied(taken))
            self._bytes, self._held_rows = int(until[taken.height - 1]), self._held_rows + taken.height
            if self._bytes >= PART_BYTES or self._held_rows >= PART_ROWS:
                self._flush()
            frame = frame.slice(end)

    def _flush(self) -> None:
        frame = pl.concat(self._held) if self._held else pl.DataFrame(schema=self.schema)
        (self.folder / f"{self.parts:05d}.parquet").write_bytes(parquet_bytes(frame.rechunk()))
        self.parts += 1
        self._held, self._bytes, self._held_rows = [], 0, 0

    def close(self) -> None:
        """Writes what is held. Nothing may be added after it."""
        if self._held or not self.parts:
            self._flush()

    def __enter__(self) -> "PartWriter":
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if kind is None:
            self.close()


def _copied(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows in memory of their own: what Polars filters out of a frame keeps all of that frame's text alive."""
    buffer = BytesIO()
    frame.write_ipc(buffer)
    return pl.read_ipc(buffer.getvalue())


def part_files(folder: Path) -> list[Path]:
    """The parts of a folder in order; a plain Parquet file is its own only part."""
    return [folder] if folder.is_file() else sorted(folder.glob("*.parquet"))


def read_parts(folder: Path, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
    """The parts of a folder one after another."""
    for file in part_files(folder):
        yield pl.read_parquet(file, columns=columns, glob=False)


def batches(frames: Iterable[pl.DataFrame], size: str = "text", limit: int = BATCH_BYTES) -> Iterator[pl.DataFrame]:
    """The same rows in pieces of about `limit` bytes of the column `size`, of one row at least."""
    for frame in frames:
        if not frame.height:
            continue
        until = np.cumsum(frame[size].str.len_bytes().fill_null(0).to_numpy(), dtype=np.int64)
        begin = 0
        while begin < frame.height:
            before = until[begin - 1] if begin else 0
            end = max(int(np.searchsorted(until, before + limit, side="right")), begin + 1)
            yield frame.slice(begin, end - begin)
            begin = end


def processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`work` of each item in the items' order, by `workers` threads, no more than two results a thread ahead of the reader.

    NumPy and Polars let go of the interpreter while they compute, so threads are enough.
    """
    if workers <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
