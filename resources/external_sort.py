"""Rows sorted by one text column, however many there are: sorted runs on the disk, merged a range of keys at a time."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

RUN_BYTES, RANGE_BYTES, GROUP_BYTES = 64 << 20, 32 << 20, 1 << 20


class ExternalSort:
    """Sorts frames of one schema by `key`, holding about RUN_BYTES of the column `size` in memory.

    Rows of one key come out next to one another, in no particular order. `folder` is empty and the caller's to delete.
    """

    def __init__(self, folder: Path, key: str = "document_id", size: str = "text", run_bytes: int = RUN_BYTES):
        self.folder, self.key, self.size, self.run_bytes = folder, key, size, run_bytes
        self.runs: list[Path] = []
        self._held: list[pl.DataFrame] = []
        self._bytes = 0
        # Keys at about every GROUP_BYTES of each run: between two of them are that many bytes.
        self._sample: list[str] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, frame: pl.DataFrame) -> None:
        """Adds rows."""
        if not frame.height:
            return
        self._held.append(frame)
        self._bytes += int(frame[self.size].str.len_bytes().sum())
        if self._bytes >= self.run_bytes:
            self._spill()

    def _spill(self) -> None:
        frame = pl.concat(self._held).sort(self.key)
        self._held = []
        until = np.cumsum(frame[self.size].str.len_bytes().to_numpy(), dtype=np.int64)
        self._sample += (
            frame[self.key].gather(np.unique(np.searchsorted(until, np.arange(GROUP_BYTES, int(until[-1]) + 1, GROUP_BYTES)))).to_list()
        )
        path = self.folder / f"run-{len(self.runs):05d}.parquet"
        rows = max(int(frame.height * GROUP_BYTES / max(self._bytes, 1)), 1)
        frame.write_parquet(path, compression="lz4", row_group_size=rows, statistics=True)
        self.runs.append(path)
        self._bytes = 0

    def unsorted(self, columns: list[str]) -> Iterator[pl.DataFrame]:
        """Some columns of all rows, run by run."""
        for frame in self._held:
            yield frame.select(columns)
        for run in self.runs:
            yield pl.read_parquet(run, columns=columns, glob=False)

    def sorted(self) -> Iterator[pl.DataFrame]:
        """All rows in order of `key`; nothing may be added after it."""
        if not self.runs:
            if self._held:
                yield pl.concat(self._held).sort(self.key)
            return
        if self._held:
            self._spill()
        keys = sorted(self._sample)[:: RANGE_BYTES // GROUP_BYTES]
        borders: list[str | None] = [None, *dict.fromkeys(keys), None]
        rows = pl.scan_parquet(self.runs, glob=False)
        key = pl.col(self.key)
        for low, high in itertools.pairwise(borders):
            inside = [] if low is None else [key >= low]
            inside += [] if high is None else [key < high]
            frame = (rows.filter(*inside) if inside else rows).collect()
            if frame.height:
                yield frame.sort(self.key)
