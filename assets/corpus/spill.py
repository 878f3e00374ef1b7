"""Numbers of many documents in files: written once from beginning to end, then read in pieces."""

import os
from collections import OrderedDict
from pathlib import Path
from types import TracebackType

import numpy as np

CACHED_BYTES = 64 << 20


class Column:
    """An array on the disk that only grows."""

    def __init__(self, path: Path, dtype: np.dtype | type):
        self.path, self.dtype = path, np.dtype(dtype)
        self.size = 0
        self._file = path.open("wb")

    def append(self, values: np.ndarray) -> None:
        """Adds values at the end."""
        np.ascontiguousarray(values, dtype=self.dtype).tofile(self._file)
        self.size += len(values)

    def read(self) -> np.ndarray:
        """All of it, once it is closed."""
        return np.fromfile(self.path, dtype=self.dtype)

    def close(self) -> None:
        self._file.close()


class Partitions:
    """Records divided by the top bits of their field `hash`, so that each part fits into memory and holds all of a hash."""

    BITS = 6

    def __init__(self, folder: Path, dtype: np.dtype):
        self.columns = [Column(folder / f"lines-{part:02d}", dtype) for part in range(1 << self.BITS)]

    def append(self, records: np.ndarray) -> None:
        """Adds records that are sorted by hash."""
        edges = (np.arange(1, len(self.columns), dtype=np.uint64)) << np.uint64(64 - self.BITS)
        for column, part in zip(self.columns, np.split(records, np.searchsorted(records["hash"], edges)), strict=True):
            if len(part):
                column.append(part)

    def close(self) -> None:
        for column in self.columns:
            column.close()


class ShingleSets:
    """The distinct shingles of some documents on the disk, read by number; the last used stay in memory."""

    def __init__(self, path: Path, documents: np.ndarray):
        """`documents` int64, sorted: those that will be added, in this order."""
        self.documents = documents
        self.offsets = np.zeros(len(documents) + 1, dtype=np.int64)
        self.added = 0
        self._column = Column(path, np.uint64)
        self._descriptor = os.open(path, os.O_RDONLY)
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._bytes = 0

    def append(self, shingles: np.ndarray) -> None:
        """Adds the next document's shingles."""
        self._column.append(shingles)
        self.added += 1
        self.offsets[self.added] = self._column.size

    def __call__(self, document: int) -> np.ndarray:
        """The sorted distinct shingles of a document: uint64."""
        if (found := self._cache.get(document)) is not None:
            self._cache.move_to_end(document)
            return found
        place = int(np.searchsorted(self.documents, document))
        begin, end = int(self.offsets[place]), int(self.offsets[place + 1])
        found = np.frombuffer(os.pread(self._descriptor, 8 * (end - begin), 8 * begin), dtype=np.uint64)
        self._cache[document] = found
        self._bytes += found.nbytes
        while self._bytes > CACHED_BYTES and len(self._cache) > 1:
            self._bytes -= self._cache.popitem(last=False)[1].nbytes
        return found

    def __enter__(self) -> "ShingleSets":
        return self

    def finish(self) -> None:
        """Makes what was added readable."""
        self._column.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._column.close()
        os.close(self._descriptor)
