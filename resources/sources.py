"""Declared text sources: what they are, under which licence, how much they weigh, and how they are read."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl

from resources.errors import TampuError
from resources.readers import files as own
from resources.readers import packages
from resources.readers.rows import BadRow, RawFile, Row, Rows
from resources.splits import split_of

READERS = ("chitchat", "sotu", "jsonl", "parquet", "text")

DOCUMENT_SCHEMA: dict[str, type[pl.DataType]] = {
    "document_id": pl.String,
    "source": pl.String,
    "text": pl.String,
    "factual": pl.Boolean,
    "split": pl.String,
    "group": pl.String,
}
QUARANTINE_SCHEMA: dict[str, type[pl.DataType]] = {
    "source": pl.String,
    "file": pl.String,
    "line": pl.Int64,
    "reason": pl.String,
}


@dataclass(frozen=True)
class Source:
    """One declared source of pretraining text.

    `weight` is how often its training documents are seen beside those of weight 1 (recipe: the most factual sources
    are up-sampled). `piece_characters` cuts a long text into documents of whole paragraphs of about that size, which
    keep one group and so one split. `path` is a file or folder for the readers of own data; for the embedded packages
    it replaces the installed package's folder. `first_year`/`last_year` (inclusive) are read by `sotu` alone.
    """

    name: str
    reader: str
    licence: str
    weight: float = 1.0
    factual: bool = False
    language: str = "en"
    path: Path | None = None
    text_field: str = "text"
    id_field: str | None = None
    group_field: str | None = None
    piece_characters: int | None = None
    first_year: int = 0
    last_year: int = 9999

    def __post_init__(self) -> None:
        if not self.name or not all(part.isalnum() for part in self.name.replace("-", "_").split("_")):
            raise TampuError(f"source name {self.name!r}: expected letters, digits, '-' and '_', such as 'team_wiki'")
        if self.reader not in READERS:
            raise TampuError(f"source {self.name}: reader {self.reader!r} is unknown; choose one of {', '.join(READERS)}")
        if not self.licence.strip():
            raise TampuError(f"source {self.name}: licence is empty; name the licence under which the text may be used")
        if not 0 < self.weight < float("inf"):
            raise TampuError(f"source {self.name}: weight {self.weight} must be a number above 0")
        if self.reader in own.FILE_ENDINGS and self.path is None:
            raise TampuError(f"source {self.name}: the reader {self.reader!r} needs a path to a file or a folder")
        if self.piece_characters is not None and self.piece_characters < 200:
            raise TampuError(f"source {self.name}: piece_characters {self.piece_characters} must be at least 200")
        if self.first_year > self.last_year:
            raise TampuError(f"source {self.name}: first_year {self.first_year} is after last_year {self.last_year}")

    @classmethod
    def from_dict(cls, declared: dict[str, Any]) -> "Source":
        """A source from configuration. TampuError names an unknown or missing key."""
        known = [field.name for field in fields(cls)]
        for key in declared:
            if key not in known:
                raise TampuError(f"source {declared.get('name', '?')}: unknown key {key!r}; known are {', '.join(known)}")
        for key in ("name", "reader", "licence"):
            if key not in declared:
                raise TampuError(f"source {declared.get('name', '?')}: the key {key!r} is missing")
        path = declared.get("path")
        return cls(**{**declared, "path": None if path is None else Path(path)})


EMBEDDED: tuple[Source, ...] = (
    Source(name="chitchat", reader="chitchat", licence="MIT (chitchat-dataset, BYU PCC lab)"),
    Source(
        name="sotu",
        reader="sotu",
        licence="MIT (sotu package); speeches of US presidents are in the public domain",
        weight=2.0,
        factual=True,
        piece_characters=1500,
        first_year=2000,
    ),
)


@dataclass(frozen=True)
class Documents:
    """`frame` has DOCUMENT_SCHEMA sorted by document_id, `quarantine` QUARANTINE_SCHEMA in file order."""

    frame: pl.DataFrame
    quarantine: pl.DataFrame
    files: list[RawFile]


@dataclass(frozen=True)
class Conversation:
    """A dialogue of two people: `turns` alternate between them, the first speaker first. `id` is the document_id."""

    id: str
    turns: tuple[str, ...]
    split: str


def source_files(source: Source) -> list[RawFile]:
    """The raw files that `read_documents` would read, for hashing, without reading the texts."""
    if source.reader == "chitchat":
        return packages.chitchat_files(source.path)
    if source.reader == "sotu":
        return packages.sotu_files(source.path, source.first_year, source.last_year)
    assert source.path is not None
    return own.files_under(source.path, own.FILE_ENDINGS[source.reader])[0]


def read_documents(source: Source, *, validation: float, test: float) -> Documents:
    """Every text of `source` as documents with their split, and every row that had to be kept out.

    The split is drawn for `<source>/<group>` (a conversation, a speech, the group field of own data), so that pieces
    of one text never part. TampuError if the source is missing or gives no document at all.
    """
    found = _read(source)
    if not found.rows:
        first = f"; the first of {len(found.bad)} quarantined rows: {found.bad[0].reason}" if found.bad else ""
        raise TampuError(f"The source {source.name} gave no document{first}")
    records = []
    for row in found.rows:
        group = f"{source.name}/{row.group}"
        split = split_of(group, validation=validation, test=test)
        texts = [row.text] if source.piece_characters is None else pieces(row.text, source.piece_characters)
        for number, text in enumerate(texts, start=1):
            suffix = "" if source.piece_characters is None else f"#{number:04d}"
            records.append((f"{source.name}/{row.native}{suffix}", source.name, text, source.factual, split, group))
    return Documents(
        frame=pl.DataFrame(records, schema=DOCUMENT_SCHEMA, orient="row").sort("document_id"),
        quarantine=_quarantine(source.name, found.bad),
        files=found.files,
    )


def read_conversations(source: Source = EMBEDDED[0], *, validation: float, test: float) -> list[Conversation]:
    """The conversations of a `chitchat` source by id. Their turns are the lines of the documents of the same id.

    This is the raw text. What went through the filters (personal data redacted, duplicates removed) is had by
    splitting the filtered documents' texts at line breaks, which gives the same turns.
    """
    if source.reader != "chitchat":
        raise TampuError(f"The source {source.name} (reader {source.reader!r}) holds no conversations; 'chitchat' does")
    found = packages.chitchat(source.path)
    conversations = []
    for native, turns in found.talks:
        identity = f"{source.name}/{native}"
        conversations.append(Conversation(identity, turns, split_of(identity, validation=validation, test=test)))
    return sorted(conversations, key=lambda conversation: conversation.id)


def pieces(text: str, characters: int) -> list[str]:
    """`text` cut between paragraphs into pieces of about `characters`; joined by blank lines they give all paragraphs.

    A paragraph is never cut, so one longer than `characters` stands alone; a last piece under a third of `characters`
    joins the piece before it.
    """
    paragraphs = [stripped for line in text.splitlines() if (stripped := line.strip())]
    cut: list[str] = []
    for paragraph in paragraphs:
        if cut and len(cut[-1]) + 2 + len(paragraph) <= characters:
            cut[-1] += "\n\n" + paragraph
        else:
            cut.append(paragraph)
    if len(cut) > 1 and len(cut[-1]) < characters / 3:
        last = cut.pop()
        cut[-1] += "\n\n" + last
    return cut


def _read(source: Source) -> Rows:
    if source.reader == "chitchat":
        talks = packages.chitchat(source.path)
        rows = [Row(native, "\n".join(turns), native) for native, turns in talks.talks]
        return Rows(rows, talks.bad, talks.files)
    if source.reader == "sotu":
        return packages.sotu(source.path, source.first_year, source.last_year)
    assert source.path is not None
    if source.reader == "text":
        return own.text_folder(source.path)
    read = own.json_lines if source.reader == "jsonl" else own.parquet
    return read(source.path, source.text_field, source.id_field, source.group_field)


def _quarantine(name: str, bad: Sequence[BadRow]) -> pl.DataFrame:
    records = [(name, row.file, row.line, row.reason) for row in bad]
    return pl.DataFrame(records, schema=QUARANTINE_SCHEMA, orient="row")
