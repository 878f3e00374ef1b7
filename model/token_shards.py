"""Token streams on the disk: shards of a fixed size, memory-mapped, and rows for training cut from them by number.

`<name>-00000.npy`, `<name>-00001.npy`, … hold the stream, uint16 where the vocabulary allows and uint32 otherwise;
`<name>-lengths.npy` int64 the tokens of each document, BOS and EOS included. Nothing needs to be remembered to go on
reading: a row's number says where it stands, and a step's number which rows it has (`model.causal_lm.PackedLoader.rows`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

SHARD_TOKENS = 1 << 26


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id of the vocabulary."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class ShardWriter:
    """Writes a stream of documents; every shard but the last has `shard_tokens` tokens, wherever documents end."""

    def __init__(self, folder: Path, name: str, vocab_size: int, *, shard_tokens: int = SHARD_TOKENS) -> None:
        self.folder, self.name, self.dtype, self.shard_tokens = folder, name, token_dtype(vocab_size), shard_tokens
        self.shards = self.tokens = 0
        self._held: list[np.ndarray] = []
        self._held_tokens = 0
        self._lengths: list[np.ndarray] = []

    def write(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Adds whole documents: their tokens one after another, and the number of tokens of each."""
        if int(lengths.sum()) != len(tokens):
            raise ValueError(f"{self.name}: the lengths add up to {int(lengths.sum())} and there are {len(tokens)} tokens")
        self._lengths.append(lengths.astype(np.int64))
        self.tokens += len(tokens)
        while len(tokens):
            taken, tokens = np.split(tokens, [self.shard_tokens - self._held_tokens])
            self._held.append(taken.astype(self.dtype))
            self._held_tokens += len(taken)
            if self._held_tokens == self.shard_tokens:
                self._flush()

    def _flush(self) -> None:
        np.save(self.folder / f"{self.name}-{self.shards:05d}.npy", np.concatenate([np.zeros(0, self.dtype), *self._held]))
        self.shards += 1
        self._held, self._held_tokens = [], 0

    def close(self) -> None:
        """Writes what is held; a stream without tokens has one empty shard."""
        if self._held or not self.shards:
            self._flush()
        np.save(self.folder / f"{self.name}-lengths.npy", np.concatenate([np.zeros(0, np.int64), *self._lengths]))


class TokenShards:
    """A stream that `ShardWriter` wrote, memory-mapped."""

    def __init__(self, folder: Path, name: str) -> None:
        files = sorted(Path(folder).glob(f"{name}-[0-9]*.npy"))
        if not files:
            raise ValueError(f"{folder} holds no shards {name}-00000.npy, …")
        self.folder, self.name = Path(folder), name
        self.shards = [np.load(file, mmap_mode="r") for file in files]
        self.starts = np.concatenate([[0], np.cumsum([len(shard) for shard in self.shards])]).astype(np.int64)
        self.lengths: np.ndarray = np.load(Path(folder) / f"{name}-lengths.npy", mmap_mode="r")

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, start: int, stop: int) -> np.ndarray:
        """The tokens `start` to `stop` (cut at the stream's end), in the shards' dtype."""
        stop = min(stop, len(self))
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        parts = []
        while start < stop:
            end = min(stop, int(self.starts[first + 1]))
            parts.append(self.shards[first][start - self.starts[first] : end - self.starts[first]])
            start, first = end, first + 1
        return np.concatenate([np.zeros(0, self.shards[0].dtype), *parts]) if len(parts) != 1 else np.asarray(parts[0])

    def all(self) -> np.ndarray:
        """The whole stream in memory."""
        return self.read(0, len(self))


class StreamBlocks:
    """The rows that `model.packing.blocks` cuts from a stream, each read when it is asked for.

    `tokens[rows]` int32, `learn[rows]` bool and `segments[rows]` int32, each [rows, context], for a slice or an int array.
    """

    def __init__(self, stream: TokenShards, context: int, *, bos_id: int = 1) -> None:
        if context < 2 or len(stream) < 2:
            raise ValueError(f"a stream of {len(stream)} tokens in blocks of {context}: both need at least 2 tokens")
        self.stream, self.context, self.bos_id = stream, context, bos_id
        self.tokens, self.learn, self.segments = (_Column(self, kind) for kind in ("tokens", "learn", "segments"))

    def __len__(self) -> int:
        return -(-(len(self.stream) - 1) // (self.context - 1))

    def rows(self, which: np.ndarray | slice) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [rows, context], 0 behind the stream's end, and which are real: bool [rows, context]."""
        numbers = np.arange(len(self))[which] if isinstance(which, slice) else np.asarray(which)
        tokens = np.zeros((len(numbers), self.context), dtype=np.int32)
        real = np.zeros((len(numbers), self.context), dtype=bool)
        for place, number in enumerate(numbers.tolist()):
            if not -len(self) <= number < len(self):
                raise IndexError(f"there is no row {number} of {len(self)}")
            start = (number % len(self)) * (self.context - 1)
            found = self.stream.read(start, start + self.context)
            tokens[place, : len(found)] = found
            real[place, : len(found)] = True
        return tokens, real


class _Column:
    """One of the three arrays of `StreamBlocks`."""

    def __init__(self, blocks: StreamBlocks, kind: str) -> None:
        self.blocks, self.kind = blocks, kind

    def __getitem__(self, which: np.ndarray | slice) -> np.ndarray:
        tokens, real = self.blocks.rows(which)
        if self.kind == "tokens":
            return tokens
        if self.kind == "learn":
            return real
        return np.where(real, 1 + np.cumsum(tokens == self.blocks.bos_id, axis=1), 0).astype(np.int32)
