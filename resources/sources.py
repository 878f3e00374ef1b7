"""Declared text sources: what they are, under which licence, how much they weigh, and how they are read."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl

from resources.errors import TampuError
from resources.readers import files as own
from resources.readers import huggingface, packages
from resources.readers.rows import BadRow, RawFile, Read, Row
from resources.splits import split_of

READERS = ("chitchat", "sotu", "jsonl", "parquet", "text", "huggingface")

DOCUMENT_SCHEMA: dict[str, type[pl.DataType]] = {
    "document_id": pl.String,
    "source": pl.String,
    "text": pl.String,
    "factual": pl.Boolean,
    "split": pl.String,
    "group": pl.String,
    "url": pl.String,
}
QUARANTINE_SCHEMA: dict[str, type[pl.DataType]] = {
    "source": pl.String,
    "file": pl.String,
    "line": pl.Int64,
    "reason": pl.String,
}


# Where a document's row was: what finds two rows of one id. `native` is null where the id is the place itself; `first`
# is true for one document of each row.
PLACE_SCHEMA: dict[str, type[pl.DataType]] = {
    "native": pl.String,
    "digest": pl.UInt64,
    "file": pl.String,
    "line": pl.Int64,
    "first": pl.Boolean,
}

# Bytes of text in a batch of documents.
BATCH_BYTES = 4 << 20


@dataclass(frozen=True)
class Source:
    """One declared source of pretraining text.

    `weight` is how often its training documents are seen beside those of weight 1 (recipe: the most factual sources
    are up-sampled). `piece_characters` cuts a long text into documents of whole paragraphs of about that size, which
    keep one group and so one split. `path` is a file or folder for the readers of own data; for the embedded packages
    it replaces the installed package's folder. `first_year`/`last_year` (inclusive) are read by `sotu` alone, `dataset`
    (an id of the Hugging Face hub, or a folder), `config`, `hub_split` and `revision` by `huggingface`.
    `share` is the part of the training text, in bytes, that the source is to make up; either all sources have one or
    none. `dialogue` says that lines are turns, so that no filter takes single lines out.
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
    url_field: str | None = None
    share: float | None = None
    dialogue: bool = False
    dataset: str | None = None
    config: str | None = None
    hub_split: str = "train"
    revision: str | None = None
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
        if not re.fullmatch(r"[a-z]{2,3}", self.language):
            raise TampuError(f"source {self.name}: language {self.language!r}; expected an ISO 639 code such as 'en'")
        if self.share is not None and not 0 < self.share <= 1:
            raise TampuError(f"source {self.name}: share {self.share} must be above 0 and at most 1")
        if self.share is not None and self.weight != 1:
            raise TampuError(f"source {self.name}: it has a share {self.share} and a weight {self.weight}; give one of the two")
        if self.reader == "huggingface":
            if not self.dataset:
                raise TampuError(f"source {self.name}: the reader 'huggingface' needs a dataset, such as 'allenai/c4'")
            if not Path(self.dataset).exists() and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
                raise TampuError(
                    f"source {self.name}: revision {self.revision!r} of {self.dataset} can change; give the commit's 40 hexadecimal digits, "
                    "so that the corpus can be made again"
                )
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
        made = {"dialogue": declared.get("reader") == "chitchat", **declared, "path": None if path is None else Path(path)}
        for key in ("weight", "share", "piece_characters", "first_year", "last_year"):
            if made.get(key) is not None and (isinstance(made[key], bool) or not isinstance(made[key], int | float)):
                raise TampuError(f"source {declared['name']}: {key} is {made[key]!r}, which is no number")
        for key in ("factual", "dialogue"):
            if not isinstance(made.get(key, False), bool):
                raise TampuError(f"source {declared['name']}: {key} is {made[key]!r}; expected true or false")
        return cls(**made)


EMBEDDED: tuple[Source, ...] = (
    Source(name="chitchat", reader="chitchat", licence="MIT (chitchat-dataset, BYU PCC lab)", dialogue=True),
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


def check_sources(sources: Sequence[Source]) -> None:
    """TampuError if two sources have a name, or some have a share and others none, or the shares are not 1 together."""
    names = [source.name for source in sources]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise TampuError(f"two sources are called {repeated[0]!r}: give each a name of its own")
    shares = [source.share for source in sources if source.share is not None]
    if shares and len(shares) < len(sources):
        missing = next(source.name for source in sources if source.share is None)
        raise TampuError(f"source {missing}: it has no share, and other sources have: give one to all or to none")
    if shares and abs(sum(shares) - 1) > 1e-6:
        raise TampuError(f"the shares of the sources are {sum(shares):g} together: they must be 1")


def source_files(source: Source) -> list[RawFile]:
    """The raw files that `read_documents` would read, for hashing, without reading the texts; none for the hub's data sets."""
    if source.reader == "chitchat":
        return packages.chitchat_files(source.path)
    if source.reader == "sotu":
        return packages.sotu_files(source.path, source.first_year, source.last_year)
    if source.reader == "huggingface":
        folder = Path(source.dataset or "")
        found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")) if folder.is_dir() else []
        return [RawFile(path.relative_to(folder).as_posix(), path) for path in found]
    assert source.path is not None
    return own.files_under(source.path, own.FILE_ENDINGS[source.reader])[0]


@dataclass
class Batch:
    """Documents (DOCUMENT_SCHEMA and PLACE_SCHEMA) in the order of the source, rows kept out, and how many rows were read."""

    frame: pl.DataFrame
    quarantine: pl.DataFrame
    rows: int


def stream_documents(source: Source, *, validation: float, test: float, batch_bytes: int = BATCH_BYTES) -> Iterator[Batch]:
    """Every text of `source` as documents with their split, and every row that had to be kept out, a few megabytes at a time.

    Two rows of one id are both there: see `repeated_rows`. The split is drawn for `<source>/<group>` (a conversation, a
    speech, the group field of own data), so that pieces of one text never part.
    """
    records: list[tuple[Any, ...]] = []
    bad: list[BadRow] = []
    rows = size = 0
    for found in _read(source):
        if isinstance(found, BadRow):
            bad.append(found)
        else:
            rows += 1
            records += _records(source, found, validation, test)
            size += len(found.text)
        if size >= batch_bytes or len(bad) >= 1 << 16:
            yield _batch(source, records, bad, rows)
            records, bad, rows, size = [], [], 0, 0
    yield _batch(source, records, bad, rows)


def _records(source: Source, row: Row, validation: float, test: float) -> Iterator[tuple[Any, ...]]:
    group = f"{source.name}/{row.group}"
    split = split_of(group, validation=validation, test=test)
    texts = [row.text] if source.piece_characters is None else pieces(row.text, source.piece_characters)
    place: tuple[Any, ...] = (None, None, row.file, row.line)
    if row.given:
        digest = int.from_bytes(hashlib.blake2b(row.text.encode(), digest_size=8).digest(), "little")
        place = (row.native, digest, row.file, row.line)
    for number, text in enumerate(texts, start=1):
        suffix = "" if source.piece_characters is None else f"#{number:04d}"
        yield (f"{source.name}/{row.native}{suffix}", source.name, text, source.factual, split, group, row.url, *place, number == 1)


def _batch(source: Source, records: list[tuple[Any, ...]], bad: list[BadRow], rows: int) -> Batch:
    frame = pl.DataFrame(records, schema={**DOCUMENT_SCHEMA, **PLACE_SCHEMA}, orient="row")
    return Batch(frame, _quarantine(source.name, bad), rows + len(bad))


def repeated_rows(places: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Of rows that have one id, which go: (file, line) of each, and their quarantine (QUARANTINE_SCHEMA without source).

    `places` are the PLACE_SCHEMA rows of one source. The row whose text has the smallest hash stays, so that the choice
    does not depend on the order of the rows; of equal texts the first.
    """
    keys = ["native", "digest", "file", "line"]
    ranked = places.filter(pl.col("native").is_not_null()).unique(keys).sort(keys)
    first = pl.struct("file", "line").first().over("native")
    gone = ranked.with_columns(stays=first).filter(pl.struct("file", "line") != pl.col("stays"))
    where = pl.format("{}:{}", pl.col("stays").struct.field("file"), pl.col("stays").struct.field("line"))
    reason = pl.format("the id '{}' is also that of {}, which is kept", "native", where)
    return gone.select("file", "line"), gone.select("file", "line", reason=reason).sort("file", "line")


def read_documents(source: Source, *, validation: float, test: float) -> Documents:
    """All documents of `source` in memory, of each id one (see `stream_documents`).

    TampuError if the source is missing or gives no document at all.
    """
    parts = list(stream_documents(source, validation=validation, test=test))
    frame = pl.concat([part.frame for part in parts])
    gone, repeated = repeated_rows(frame.select(PLACE_SCHEMA.keys()))
    bad = pl.concat([*(part.quarantine for part in parts), repeated.select(pl.lit(source.name).alias("source"), pl.all())])
    frame = frame.join(gone, on=["file", "line"], how="anti").select(DOCUMENT_SCHEMA.keys()).sort("document_id")
    if not frame.height:
        raise nothing_in(source, bad)
    return Documents(frame=frame, quarantine=bad, files=source_files(source))


def nothing_in(source: Source, bad: pl.DataFrame) -> TampuError:
    """The error for a source without any document."""
    first = f"; the first of {bad.height} quarantined rows: {bad['reason'][0]}" if bad.height else ""
    return TampuError(f"The source {source.name} gave no document{first}")


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


def _read(source: Source) -> Iterator[Read]:
    """The rows of a source, good and bad, in file order."""
    if source.reader == "chitchat":
        talks = packages.chitchat(source.path)
        yield from talks.bad
        yield from (Row(native, "\n".join(turns), native) for native, turns in talks.talks)
        return
    if source.reader == "sotu":
        speeches = packages.sotu(source.path, source.first_year, source.last_year)
        yield from speeches.bad
        yield from speeches.rows
        return
    fields = own.Fields(source.text_field, source.id_field, source.group_field, source.url_field)
    if source.reader == "huggingface":
        assert source.dataset is not None
        yield from huggingface.hub_dataset(source.dataset, source.config, source.hub_split, source.revision, fields)
        return
    assert source.path is not None
    files, others = own.files_under(source.path, own.FILE_ENDINGS[source.reader])
    yield from others
    yield from own.FILE_READERS[source.reader](files, fields)


def _quarantine(name: str, bad: Sequence[BadRow]) -> pl.DataFrame:
    records = [(name, row.file, row.line, row.reason) for row in bad]
    return pl.DataFrame(records, schema=QUARANTINE_SCHEMA, orient="row")
