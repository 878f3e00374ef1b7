"""The tokenizer: SentencePiece BPE trained on the filtered corpus (paper, section 2.2), or an imported checkpoint's."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from resources.errors import TampuError
from resources.imports import imported
from resources.parts import read_parts
from resources.profiles import active
from resources.recipe import Check, Request, Run, artifact
from resources.splits import fraction_of

if TYPE_CHECKING:
    from model.tokenizer import Tokenizer

HARD_TEXTS = ("", " ", "  two  spaces ", "tab\tand\nnewline", "1234567890", "naïve café", "日本語", "🙂🙃", "<s> [INST] ", "a" * 300)
# Some characters of every block of the first plane, and the ends of the others.
EVERY_BLOCK = tuple("".join(chr(code) for code in (start, start + 7, start + 77)) for start in range(0x21, 0xD700, 0x80)) + tuple(
    chr(code) for code in (0x10000, 0x3FFFF, 0xFFFFF, 0x10FFFF, 0xE000, 0xFFFD)
)


class TokenizerConfig(dg.Config):
    """Settings that the paper gives are fixed in `model.tokenizer`; these are ours."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("checkpoint",)  # the hashes of its files count
    checkpoint: str = Field(active().base_checkpoint, description="imported checkpoint whose tokenizer is taken; empty: train one")
    vocab_size: int = Field(active().vocab_size, ge=300, description="pieces, the 256 bytes and 3 control pieces included")
    dialogue_tag_share: float = Field(
        0.02, ge=0, le=0.5, description="share of lines that hold the chat format's tags, so that BPE learns them (our choice)"
    )
    sample_bytes: int = Field(100_000_000, ge=1, description="training text read at most: documents are chosen by hash (the trainer holds it)")
    seed: int = Field(active().seed, ge=0, description="choice of the documents")


def sampled_texts(folder: Path, sample_bytes: int, seed: int) -> Iterator[str]:
    """The training texts in a folder of parts, or, where they are more than `sample_bytes`, a share of them of about that size."""
    total = sum(int(part.filter(pl.col("split") == "train")["text"].str.len_bytes().sum()) for part in read_parts(folder, ["split", "text"]))
    share = sample_bytes / max(total, 1)
    for part in read_parts(folder, ["document_id", "split", "text"]):
        for document, text in part.filter(pl.col("split") == "train").select("document_id", "text").iter_rows():
            if share >= 1 or fraction_of(document, f"tokenizer/{seed}") < share:
                yield text


def first_texts(folder: Path, count: int) -> list[str]:
    """The first training texts in a folder of parts."""
    found: list[str] = []
    for part in read_parts(folder, ["split", "text"]):
        found += part.filter(pl.col("split") == "train")["text"].head(count - len(found)).to_list()
        if len(found) == count:
            break
    return found


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
        Check("ids", blocking=True, description="unk, bos and eos are 0, 1 and 2, and the 256 bytes are there, in a tokenizer trained here"),
    ],
)
def sentencepiece(run: Run, config: TokenizerConfig) -> None:
    """BPE tokenizer with byte fallback and split digits, trained on the training split alone; or an imported one with its chat format."""
    from model.dialogue import TAGS
    from model.tokenizer import train_sentencepiece
    from model.tokenizer_files import load_tokenizer

    documents = run.parent("corpus/filtered").file("documents.parquet")
    every = " ".join(TAGS)

    def lines() -> Iterator[str]:
        number = 0
        for text in sampled_texts(documents, config.sample_bytes, config.seed):
            found = text.split("\n")
            number += len(found)
            yield from found
        yield from [every] * int(number * config.dialogue_tag_share)

    if config.checkpoint:
        for name, path in run.files.items():
            shutil.copyfile(path, run.path(name))
        run.note("imported", imported(run.home, config.checkpoint).told())
    else:
        try:
            train_sentencepiece(lines(), run.directory, vocab_size=config.vocab_size)
        except ValueError as error:
            raise TampuError(f"tokenizer/sentencepiece: {error}; set a smaller vocab_size or give it more text") from error

    tokenizer = load_tokenizer(run.directory)
    texts = HARD_TEXTS if config.checkpoint else (*HARD_TEXTS, *EVERY_BLOCK)
    broken = [text for text in texts if tokenizer.decode(tokenizer.encode(text)) != text]
    run.check("round_trip", passed=not broken, description=f"texts that change: {broken[:5]!r}", texts=len(texts))
    pieces = [tokenizer.piece(index) for index in range(tokenizer.vocab_size)]
    joined = [piece for piece in pieces if sum(character.isdigit() for character in piece) > 1 and not piece.startswith("<0x")]
    run.check(
        "digits_are_single",
        passed=bool(config.checkpoint) or not joined,
        description=f"pieces with several digits: {joined[:5]}",
        pieces=len(joined),
    )
    expected = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    wrong = [f"{piece} at {index}" for index, (piece, wanted) in enumerate(zip(pieces, expected, strict=False)) if piece != wanted]
    run.check("ids", passed=bool(config.checkpoint) or not wrong, description=f"pieces where others belong: {wrong[:5]}")
    sample = first_texts(documents, 200)
    run.metric("pieces", tokenizer.vocab_size)
    run.metric("bytes_per_token", sum(len(t.encode()) for t in sample) / sum(len(tokenizer.encode(t)) for t in sample))
    run.table("fertility", fertility(documents, tokenizer))
    shown = " · ".join(tokenizer.piece(index) for index in tokenizer.encode(sample[0][:200]))
    run.note("example", f"`{shown}`")


def fertility(documents: Path, tokenizer: "Tokenizer", a_source: int = 200) -> pl.DataFrame:
    """Tokens a word and bytes a token by source, on its first training documents; words are runs without white space."""
    seen: dict[str, list[str]] = {}
    table = []
    for part in read_parts(documents, ["source", "split", "text"]):
        for (source,), rows in part.filter(pl.col("split") == "train").group_by("source", maintain_order=True):
            texts = seen.setdefault(str(source), [])
            texts += rows["text"].head(a_source - len(texts)).to_list()
    for source, texts in sorted(seen.items()):
        tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
        words, size = sum(len(text.split()) for text in texts), sum(len(text.encode()) for text in texts)
        table.append(
            {"source": source, "documents": len(texts), "tokens_per_word": tokens / max(words, 1), "bytes_per_token": size / max(tokens, 1)}
        )
    return pl.DataFrame(table)
