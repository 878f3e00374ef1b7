"""Encoding MB/s: ours beside Hugging Face `tokenizers` with the same vocabulary, whose ids must be the same.

    python -m bench.tokenizer [--vocab-size 2048] [--megabytes 12]

Trains a tokenizer on the embedded text, turns it into a `tokenizers` one, checks the ids of every document, then measures
documents in, arrays of ids out, on one and on two threads, in turn, each run in a process of its own.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import polars as pl

from bench.corpus import real_documents
from model.encoding import TextEncoder
from model.tokenizer import SentencePieceTokenizer, train_sentencepiece
from model.tokenizer_json import from_sentencepiece
from resources.parts import BATCH_BYTES, batches, in_order

RUNS = 5


def encode_ours(folder: Path, texts: pl.Series, threads: int) -> int:
    encoder = TextEncoder(SentencePieceTokenizer(folder / "tokenizer.model"))
    parts = (part["text"].to_list() for part in batches([texts.to_frame("text")], limit=BATCH_BYTES))
    return sum(len(encoded.ids) for encoded in in_order(encoder.encode, parts, threads))


def encode_sentencepiece(folder: Path, texts: pl.Series, threads: int) -> int:
    processor = SentencePieceTokenizer(folder / "tokenizer.model").processor
    parts = (part["text"].to_list() for part in batches([texts.to_frame("text")], limit=BATCH_BYTES))
    return sum(len(np.array(ids, dtype=np.uint32)) for part in parts for ids in processor.encode(part, num_threads=threads))


def encode_tokenizers(folder: Path, texts: pl.Series, threads: int) -> int:
    from tokenizers import Tokenizer

    made = Tokenizer.from_file(str(folder / "tokenizer.json"))
    parts = (part["text"].to_list() for part in batches([texts.to_frame("text")], limit=BATCH_BYTES))
    return sum(len(np.array(found.ids, dtype=np.uint32)) for part in parts for found in made.encode_batch_fast(part, add_special_tokens=False))


SIDES: dict[str, Callable[[Path, pl.Series, int], int]] = {
    "tampu": encode_ours,
    "sentencepiece": encode_sentencepiece,
    "tokenizers": encode_tokenizers,
}


def encoding() -> tuple[Callable[[], int], str]:
    """For `python -m bench`: bytes a second of the embedded text."""
    from resources.profiles import active

    texts = real_documents()["text"]
    place = TemporaryDirectory()
    train_sentencepiece((line for text in texts for line in text.split("\n")), Path(place.name), active().vocab_size)
    size = int(texts.str.len_bytes().sum())

    def work() -> int:
        encode_ours(Path(place.name), texts, len(os.sched_getaffinity(0)))
        return size

    return work, "bytes/s"


def measured(folder: str, side: str, threads: int) -> None:
    """One run: seconds from texts in memory to arrays of ids, the tokenizer's loading included."""
    texts = pl.read_parquet(Path(folder) / "texts.parquet")["text"]
    work = SIDES[side]
    work(Path(folder), texts.head(20), threads)
    began = perf_counter()
    tokens = work(Path(folder), texts, threads)
    seconds = perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "tokens": tokens, "memory": memory}))


def run(folder: Path, side: str, threads: int) -> dict[str, float]:
    allowed = sorted(os.sched_getaffinity(0))[:threads]
    done = subprocess.run(
        [sys.executable, "-m", "bench.tokenizer", "--one", side, "--folder", str(folder), "--threads", str(threads)],
        env={**os.environ, "RAYON_NUM_THREADS": str(threads), "POLARS_MAX_THREADS": str(threads), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare(vocab_size: int, megabytes: float) -> None:
    """Ids first, then speed."""
    from tokenizers import Tokenizer

    texts = real_documents()["text"].shuffle(seed=0)
    until = np.cumsum(texts.str.len_bytes().to_numpy())
    texts = texts.head(int(np.searchsorted(until, megabytes * 1e6)) + 1)
    size = int(texts.str.len_bytes().sum())
    with TemporaryDirectory() as place:
        folder = Path(place)
        train_sentencepiece((line for text in texts for line in text.split("\n")), folder, vocab_size)
        texts.to_frame("text").write_parquet(folder / "texts.parquet")
        tokenizer = SentencePieceTokenizer(folder / "tokenizer.model")
        (folder / "tokenizer.json").write_bytes(from_sentencepiece(tokenizer))
        made = Tokenizer.from_file(str(folder / "tokenizer.json"))
        mine = TextEncoder(tokenizer).encode(texts.to_list())
        parts = np.split(mine.ids, np.cumsum(mine.lengths)[:-1])
        theirs = made.encode_batch_fast(texts.to_list(), add_special_tokens=False)
        unlike = sum(part.tolist() != found.ids for part, found in zip(parts, theirs, strict=True))
        print(
            f"{len(texts):,} documents, {size / 1e6:.1f} MB, {len(mine.ids):,} tokens of {vocab_size}: {unlike} documents with other ids",
            flush=True,
        )
        rates: dict[tuple[str, int], list[float]] = {}
        for _ in range(RUNS):
            for threads in (1, 2):
                for side in SIDES:
                    rates.setdefault((side, threads), []).append(size / 1e6 / run(folder, side, threads)["seconds"])
    for (side, threads), values in rates.items():
        print(f"{side:<14} {threads} thread(s): {statistics.median(values):.2f} MB/s ({min(values):.2f} to {max(values):.2f}, {RUNS} runs)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--megabytes", type=float, default=12)
    parser.add_argument("--one", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        measured(chosen.folder, chosen.one, chosen.threads)
    else:
        compare(chosen.vocab_size, chosen.megabytes)


if __name__ == "__main__":
    main()
