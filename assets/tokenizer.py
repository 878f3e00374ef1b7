"""The tokenizer: SentencePiece BPE trained on the filtered corpus (paper, section 2.2), or an imported checkpoint's."""

import shutil
from pathlib import Path
from typing import ClassVar

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from resources.imports import imported
from resources.profiles import active
from resources.recipe import Check, Request, Run, artifact

HARD_TEXTS = ("", " ", "  two  spaces ", "tab\tand\nnewline", "1234567890", "naïve café", "日本語", "🙂🙃", "<s> [INST] ", "a" * 300)


class TokenizerConfig(dg.Config):
    """Settings that the paper gives are fixed in `model.tokenizer`; these are ours."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("checkpoint",)  # the hashes of its files count
    checkpoint: str = Field(active().base_checkpoint, description="imported checkpoint whose tokenizer is taken; empty: train one")
    vocab_size: int = Field(active().vocab_size, ge=300, description="pieces, the 256 bytes and 3 control pieces included")
    dialogue_tag_share: float = Field(
        0.02, ge=0, le=0.5, description="share of lines that hold the chat format's tags, so that BPE learns them (our choice)"
    )


def _imported_files(request: Request) -> dict[str, Path]:
    name = request.config.checkpoint
    return imported(request.home, name).tokenizer_files if name else {}


@artifact(
    "tokenizer/sentencepiece",
    parents=["corpus/filtered"],
    files=_imported_files,
    kinds={"sentencepiece"},
    owners=["team:data"],
    checks=[
        Check("round_trip", blocking=True, description="decoding the encoding gives back hard texts byte for byte"),
        Check("digits_are_single", blocking=True, description="no piece of a tokenizer trained here holds two digits"),
    ],
)
def sentencepiece(run: Run, config: TokenizerConfig) -> None:
    """BPE tokenizer with byte fallback and split digits, trained on the training split alone; or an imported one with its chat format."""
    from model.dialogue import TAGS
    from model.tokenizer import train_sentencepiece
    from model.tokenizer_files import load_tokenizer

    documents = run.parent("corpus/filtered").frame("documents.parquet").filter(pl.col("split") == "train")
    if config.checkpoint:
        for name, path in run.files.items():
            shutil.copyfile(path, run.path(name))
        run.note("imported", imported(run.home, config.checkpoint).told())
    else:
        lines = [line for text in documents["text"] for line in text.split("\n")]
        tag_lines = int(len(lines) * config.dialogue_tag_share)
        every = " ".join(TAGS)
        train_sentencepiece([*lines, *[every] * tag_lines], run.directory, vocab_size=config.vocab_size)

    tokenizer = load_tokenizer(run.directory)
    broken = [text for text in HARD_TEXTS if tokenizer.decode(tokenizer.encode(text)) != text]
    run.check("round_trip", passed=not broken, description=f"texts that change: {broken!r}", texts=len(HARD_TEXTS))
    pieces = [tokenizer.piece(index) for index in range(tokenizer.vocab_size)]
    joined = [piece for piece in pieces if sum(character.isdigit() for character in piece) > 1 and not piece.startswith("<0x")]
    run.check(
        "digits_are_single",
        passed=bool(config.checkpoint) or not joined,
        description=f"pieces with several digits: {joined[:5]}",
        pieces=len(joined),
    )
    sample = documents["text"].head(200).to_list()
    run.metric("pieces", tokenizer.vocab_size)
    run.metric("bytes_per_token", sum(len(t.encode()) for t in sample) / sum(len(tokenizer.encode(t)) for t in sample))
    shown = " · ".join(tokenizer.piece(index) for index in tokenizer.encode(sample[0][:200]))
    run.note("example", f"`{shown}`")
