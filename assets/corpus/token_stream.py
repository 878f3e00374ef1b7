"""Documents as token streams: encoded in parallel in their own order, then written in the order of the mixture."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from assets.corpus.spill import Column
from model.encoding import Encoded, TextEncoder
from model.token_shards import ShardWriter, token_dtype
from model.tokenizer import Tokenizer
from resources.parts import batches, in_order, read_parts

# Tokens gathered before they are written.
GATHERED = 1 << 22


class EncodedDocuments:
    """Every document between BOS and EOS in a file, in the order of the documents' parts."""

    def __init__(self, documents: Path, tokenizer: Tokenizer, folder: Path, *, workers: int) -> None:
        """`documents` is a folder of parts with a column text; `folder` an empty one, which the caller deletes."""
        self.dtype = token_dtype(tokenizer.vocab_size)
        encoder = TextEncoder(tokenizer)
        column = Column(folder / "tokens", self.dtype)
        lengths: list[np.ndarray] = []
        texts = (batch["text"].to_list() for batch in batches(read_parts(documents, ["text"])))
        for encoded in in_order(encoder.encode, texts, workers):
            framed, sizes = _framed(encoded, tokenizer.bos_id, tokenizer.eos_id)
            column.append(framed)
            lengths.append(sizes)
        column.close()
        self.lengths = np.concatenate([np.zeros(0, np.int64), *lengths])
        self.offsets = np.concatenate([[0], np.cumsum(self.lengths)])
        self.path = column.path

    def in_order_of(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Tokens and lengths of the documents `numbers` int64, some millions of tokens at a time."""
        until = np.cumsum(self.lengths[numbers])
        edges = np.unique(np.searchsorted(until, np.arange(GATHERED, int(until[-1]) if len(until) else 0, GATHERED)) + 1)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            for part in np.split(numbers, edges):
                parts = [
                    os.pread(descriptor, int(self.lengths[n]) * self.dtype.itemsize, int(self.offsets[n]) * self.dtype.itemsize) for n in part
                ]
                yield np.frombuffer(b"".join(parts), dtype=self.dtype), self.lengths[part]
        finally:
            os.close(descriptor)


def _framed(encoded: Encoded, bos: int, eos: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids with BOS before and EOS behind each text."""
    lengths = encoded.lengths + 2
    ends = np.cumsum(lengths)
    framed = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.uint32)
    inside = np.ones(len(framed), dtype=bool)
    inside[ends - lengths] = inside[ends - 1] = False
    framed[ends - lengths], framed[ends - 1] = bos, eos
    framed[inside] = encoded.ids
    return framed, lengths


def write_stream(encoded: EncodedDocuments, numbers: pl.Series, folder: Path, name: str, vocab_size: int) -> int:
    """Writes the documents `numbers` in this order as shards called `name`; returns the number of tokens."""
    writer = ShardWriter(folder, name, vocab_size)
    for tokens, lengths in encoded.in_order_of(numbers.to_numpy().astype(np.int64)):
        writer.write(tokens, lengths)
    writer.close()
    return writer.tokens
