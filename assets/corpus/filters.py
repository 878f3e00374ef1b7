"""The chain that turns documents into the filtered corpus. What is taken out is kept, by filter, with the reason.

It goes twice through the documents, a batch of a few megabytes at a time. The first pass decides what a document's own
text decides; what remains, its digests, band keys and lines wait on the disk. Between the passes the documents are
compared with one another. The second pass takes out duplicates, repeated lines and personal data. Neither the size of a
batch nor the number of threads changes any row of the result.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from assets.corpus import duplicates, personal_data, repeated_lines
from assets.corpus.characters import Characters
from assets.corpus.domains import PERSONAL_SITES, checked, excluded
from assets.corpus.duplicates import NearDuplicates, Removed
from assets.corpus.language import UNKNOWN, identify
from assets.corpus.personal_data import PersonalData, redact_frame
from assets.corpus.quality import RULES, Quality, broken_rule, measure
from assets.corpus.repeated_lines import Repeated, RepeatedLines
from assets.corpus.shingles import shingles_of, word_shingles
from assets.corpus.spill import Column, Partitions, ShingleSets
from resources.errors import TampuError
from resources.parts import BATCH_BYTES, PartWriter, batches, in_order, read_parts

COLUMNS = ("document_id", "source", "text", "factual", "split", "group")
URL = "url"

# In the order in which they are applied.
FILTERS = (
    "normalise",
    "excluded_domain",
    "language",
    *RULES,
    "exact_duplicate",
    "near_duplicate",
    "repeated_across_documents",
    "personal_data",
)

KEPT_SCHEMA: dict[str, type[pl.DataType]] = {
    "document_id": pl.String,
    "source": pl.String,
    "text": pl.String,
    "factual": pl.Boolean,
    "split": pl.String,
    "group": pl.String,
    "language": pl.String,
    "language_probability": pl.Float64,
}
REJECT_SCHEMA: dict[str, type[pl.DataType]] = {
    "document_id": pl.String,
    "source": pl.String,
    "split": pl.String,
    "filter": pl.String,
    "value": pl.Float64,
    "detail": pl.String,
    "text": pl.String,
}
COUNT_SCHEMA: dict[str, type[pl.DataType]] = {
    "source": pl.String,
    "filter": pl.String,
    "documents_in": pl.Int64,
    "documents_out": pl.Int64,
    "bytes_in": pl.Int64,
    "bytes_out": pl.Int64,
}


@dataclass(frozen=True)
class FilterSettings:
    """`languages` (ISO 639 codes) are kept, and so are texts whose language is unknown: below `language_threshold`
    are the greetings of a few words, not foreign texts. `excluded_domains` are left out with all below them.
    `dialogues` are sources whose lines are turns, none of which may be taken out. The other fields belong to the steps
    they name."""

    languages: tuple[str, ...] = ("en",)
    language_threshold: float = 0.5
    language_characters: int = 500
    excluded_domains: frozenset[str] = PERSONAL_SITES
    dialogues: frozenset[str] = frozenset({"chitchat"})
    quality: Quality = field(default_factory=Quality)
    near_duplicates: NearDuplicates = field(default_factory=NearDuplicates)
    repeated_lines: RepeatedLines = field(default_factory=RepeatedLines)
    personal_data: PersonalData = field(default_factory=PersonalData)

    def __post_init__(self) -> None:
        if not self.languages:
            raise TampuError("language filter: languages is empty; name at least one ISO 639 code, such as 'en'")
        if not 0 <= self.language_threshold <= 1:
            raise TampuError(f"language filter: language_threshold is {self.language_threshold}; expected 0 to 1")
        if self.language_characters < 1:
            raise TampuError(f"language filter: language_characters is {self.language_characters}; expected at least 1")
        checked(self.excluded_domains)


@dataclass(frozen=True)
class Summary:
    """`counts` (COUNT_SCHEMA): a row a source and filter, in the chain's order; documents_in = documents_out + rejects.
    `personal_data`: spans replaced, by source and type (personal_data.COUNT_SCHEMA)."""

    counts: pl.DataFrame
    personal_data: pl.DataFrame


@dataclass(frozen=True)
class Filtered(Summary):
    """What the chain gives in memory.

    `frame`: the documents kept, sorted by document_id, with `language` and `language_probability` added.
    `rejects` (REJECT_SCHEMA): every document taken out, once, with the filter that did it, the number it judged
    (`value`), what it is a duplicate of or which language it is in (`detail`), and its text as that filter saw it.
    """

    frame: pl.DataFrame
    rejects: pl.DataFrame


# What normalising would change; all other texts are passed over. Everything outside ASCII is looked at.
_NEEDS = r"[^\x20-\x7e\n]|  | \n|\n |\n\n\n|^[ \n]|[ \n]$"


def normalise(frame: pl.DataFrame) -> pl.DataFrame:
    """`frame` with texts in Unicode form NFC and plain white space.

    Control and invisible formatting characters go (zero-width joiners, which emoji and Indic scripts need, stay); line
    and paragraph separators become line breaks; other runs of white space become one space; lines lose the space at
    their edges; no more than one blank line follows another text line. The result may be empty.
    """
    needs = pl.col("text").str.contains(_NEEDS)
    text = (
        pl.col("text")
        .str.replace_all(r"\r\n|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]", "\n")
        .str.replace_all(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]", "")
        .str.normalize("NFC")
        .str.replace_all(r"[\s\x1f&&[^\n]]+", " ")
        .str.replace_all(r" ?\n ?", "\n")
        .str.replace_all(r"\n{3,}", "\n\n")
        .str.strip_chars()
    )
    some = frame.with_row_index("row").filter(needs).with_columns(text=text)
    if not some.height:
        return frame
    places, changed = some["row"], some["text"]
    return frame.with_columns(text=frame["text"].scatter(places, changed))


def apply_filters(
    frame: pl.DataFrame, settings: FilterSettings = FilterSettings(), *, batch_bytes: int = BATCH_BYTES, workers: int = 1
) -> Filtered:
    """The whole chain over documents in memory, in the order of FILTERS.

    The result does not depend on the order of the rows. TampuError if a column is missing or an id comes twice.
    """
    kept: list[pl.DataFrame] = [pl.DataFrame(schema=KEPT_SCHEMA)]
    rejects: list[pl.DataFrame] = [pl.DataFrame(schema=REJECT_SCHEMA)]
    _check_columns(frame)
    with TemporaryDirectory() as work:
        parts = batches([frame.sort("document_id")], limit=batch_bytes)
        found = filter_corpus(
            parts, settings, kept=kept.append, rejected=rejects.append, work=Path(work), batch_bytes=batch_bytes, workers=workers
        )
    return Filtered(found.counts, found.personal_data, pl.concat(kept), pl.concat(rejects))


def filter_corpus(
    documents: Iterable[pl.DataFrame],
    settings: FilterSettings,
    *,
    kept: Callable[[pl.DataFrame], object],
    rejected: Callable[[pl.DataFrame], object],
    work: Path,
    batch_bytes: int = BATCH_BYTES,
    workers: int = 1,
    say: Callable[[str], object] = lambda line: None,
) -> Summary:
    """The whole chain over batches of documents that are sorted by document_id.

    `kept` is called with KEPT_SCHEMA and `rejected` with REJECT_SCHEMA rows, both sorted by document_id. `work` is an
    empty folder for files of about the size of the corpus, which the caller deletes. In memory are a few batches a
    worker, about 60 bytes a document, the repeated lines, and the pairs of near duplicates.
    TampuError if a column is missing or an id comes twice.
    """
    ledger = _Ledger()
    stage, taken = work / "stage", work / "rejects"
    files = _Files(work, settings)
    with PartWriter(stage, KEPT_SCHEMA) as staged, PartWriter(taken, REJECT_SCHEMA) as early:
        for screened in in_order(partial(_screen, settings=settings), _sorted(documents), workers):
            files.append(screened)
            staged.write(screened.frame)
            early.write(screened.rejects)
            ledger.add(screened.ledger)
    files.close()
    say(f"{sum(ledger.documents.values()):,} documents read, {staged.rows:,} passed what looks at one document alone")

    facts = _compare(stage, files, settings, batch_bytes, workers, say)
    late = in_order(partial(_finish, facts=facts, settings=settings), _numbered(batches(read_parts(stage), limit=batch_bytes)), workers)
    earlier = _Earlier(batches(read_parts(taken), limit=batch_bytes))
    spans = [pl.DataFrame(schema=personal_data.COUNT_SCHEMA)]
    for finished in late:
        kept(finished.frame)
        for rows in earlier.merged(finished.rejects, finished.last):
            rejected(rows)
        ledger.add(finished.ledger)
        spans.append(finished.spans)
    for rows in earlier.merged(pl.DataFrame(schema=REJECT_SCHEMA), None):
        rejected(rows)
    found = pl.concat(spans).group_by("source", "type").agg(pl.col("documents", "spans").sum()).sort("source", "type")
    return Summary(ledger.counts(), found)


def _check_columns(frame: pl.DataFrame) -> None:
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise TampuError(f"The documents have no column {missing[0]!r}; expected {', '.join(COLUMNS)}")


def _sorted(documents: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The batches, each checked: all columns there, every id behind the one before it."""
    last: str | None = None
    for frame in documents:
        _check_columns(frame)
        names = frame["document_id"]
        before = names.shift(1, fill_value=last)
        wrong = frame.filter((names <= before).fill_null(False))
        if wrong.height:
            name = wrong["document_id"][0]
            repeated = ((names == name) & (before == name)).any()
            why = "comes more than once: ids must be unique" if repeated else "is out of order: sort the documents by document_id"
            raise TampuError(f"The document_id {name!r} {why}")
        if frame.height:
            last = names[-1]
            yield frame


class _Ledger:
    """Documents and bytes by source: what came in, what each filter rejected, and by how much it changed the texts."""

    def __init__(self) -> None:
        self.documents: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.rejected: Counter[tuple[str, str]] = Counter()
        self.rejected_bytes: Counter[tuple[str, str]] = Counter()
        self.changed: Counter[tuple[str, str]] = Counter()

    def add(self, other: "_Ledger") -> None:
        for name, counter in vars(other).items():
            getattr(self, name).update(counter)

    def arrived(self, frame: pl.DataFrame) -> None:
        for source, number, size in _sizes(frame, "source"):
            self.documents[source] += number
            self.bytes[source] += size

    def texts_changed(self, name: str, before: pl.DataFrame, after: pl.DataFrame) -> None:
        """Both frames hold the same documents in the same order."""
        sizes = after.select("source", size=after["text"].str.len_bytes().cast(pl.Int64) - before["text"].str.len_bytes().cast(pl.Int64))
        for source, size in sizes.group_by("source").agg(pl.col("size").sum()).iter_rows():
            self.changed[source, name] += size

    def took(self, rejects: pl.DataFrame) -> None:
        for source, name, number, size in _sizes(rejects, "source", "filter"):
            self.rejected[source, name] += number
            self.rejected_bytes[source, name] += size

    def counts(self) -> pl.DataFrame:
        rows = []
        left = {source: (self.documents[source], self.bytes[source]) for source in sorted(self.documents)}
        for name in FILTERS:
            for source, (documents, size) in left.items():
                after = documents - self.rejected[source, name]
                bytes_after = size + self.changed[source, name] - self.rejected_bytes[source, name]
                rows.append((source, name, documents, after, size, bytes_after))
                left[source] = (after, bytes_after)
        return pl.DataFrame(rows, schema=COUNT_SCHEMA, orient="row")


def _sizes(frame: pl.DataFrame, *by: str) -> Iterator[tuple]:
    """Rows of (by …, documents, bytes of text)."""
    sizes = frame.group_by(*by).agg(documents=pl.len().cast(pl.Int64), size=pl.col("text").str.len_bytes().sum().cast(pl.Int64))
    yield from sizes.iter_rows()


@dataclass(frozen=True)
class _Screened:
    """A batch after the first pass; the arrays have a row for each document of `frame`, `lines` counts them from 0."""

    frame: pl.DataFrame
    rejects: pl.DataFrame
    ledger: _Ledger
    digests: np.ndarray
    band_keys: np.ndarray
    has_words: np.ndarray
    rank: np.ndarray
    lines: np.ndarray


def _screen(batch: pl.DataFrame, settings: FilterSettings) -> _Screened:
    """The filters that look at one document alone, and what the comparison of documents needs of it."""
    ledger = _Ledger()
    ledger.arrived(batch)
    urls = batch[URL] if URL in batch.columns else pl.Series(URL, [None] * batch.height, dtype=pl.String)
    before = batch.select(COLUMNS)
    frame = normalise(before)
    ledger.texts_changed("normalise", before, frame)
    frame = identify(frame, threshold=settings.language_threshold, characters=settings.language_characters)
    characters = Characters.of(frame["text"])
    measured = measure(frame, settings.quality, characters)
    domain = excluded(urls, settings.excluded_domains)
    frame = frame.with_columns(domain=domain, broken=broken_rule(measured, settings.quality))
    foreign = ~pl.col("language").is_in([*settings.languages, UNKNOWN])
    rule = (
        pl.when(pl.col("text") == "").then(pl.lit("normalise"))
        .when(pl.col("domain").is_not_null()).then(pl.lit("excluded_domain"))
        .when(foreign).then(pl.lit("language"))
        .otherwise("broken")
    )  # fmt: skip
    value = pl.coalesce(
        pl.when(pl.col("filter") == "language").then("language_probability"),
        *(pl.when(pl.col("filter") == name).then(measured[name]) for name in RULES),
    )
    detail = pl.when(pl.col("filter") == "language").then("language").when(pl.col("filter") == "excluded_domain").then("domain")
    frame = frame.with_columns(filter=rule).with_columns(value=value, detail=detail)
    gone = frame["filter"].is_not_null()
    rejects = frame.filter(gone).select(REJECT_SCHEMA.keys())
    ledger.took(rejects)

    here = ~gone.to_numpy()
    rest = frame.filter(~gone).select(KEPT_SCHEMA.keys())
    shingles = shingles_of(characters.word_hashes, characters.words, settings.near_duplicates.shingle_words)
    keys = duplicates.band_keys(duplicates.signatures(shingles, settings.near_duplicates), settings.near_duplicates)
    searched = here & ~frame["source"].is_in(list(settings.dialogues)).to_numpy()
    records = repeated_lines.line_records(characters, np.arange(frame.height, dtype=np.uint32), settings.repeated_lines)
    records = records[searched[records["document"]]]
    records["document"] = (np.cumsum(here) - 1)[records["document"]]
    return _Screened(
        frame=rest,
        rejects=rejects,
        ledger=ledger,
        digests=duplicates.digests(rest["text"]),
        band_keys=keys[here],
        has_words=(np.diff(shingles.offsets) > 0)[here],
        rank=duplicates.ranks(rest["split"]),
        lines=records,
    )


class _Files:
    """What the first pass leaves for the comparison of documents, in files of `work`."""

    def __init__(self, work: Path, settings: FilterSettings):
        self.work = work
        self.digests = Column(work / "digests", np.uint64)
        self.has_words = Column(work / "has-words", np.bool_)
        self.rank = Column(work / "rank", np.int8)
        self.bands = [Column(work / f"band-{band}", np.uint64) for band in range(settings.near_duplicates.bands)]
        self.lines = Partitions(work, repeated_lines.RECORD)
        self.documents = 0

    def append(self, screened: _Screened) -> None:
        records = screened.lines.copy()
        records["document"] += np.uint32(self.documents)
        self.lines.append(records)
        self.digests.append(screened.digests.ravel())
        self.has_words.append(screened.has_words)
        self.rank.append(screened.rank)
        for column, keys in zip(self.bands, screened.band_keys.T, strict=True):
            column.append(keys)
        self.documents += screened.frame.height

    def close(self) -> None:
        for column in (self.digests, self.has_words, self.rank, *self.bands):
            column.close()
        self.lines.close()


@dataclass(frozen=True)
class _Facts:
    """What the comparison of documents found; `names` are the document_ids of representatives by number."""

    exact: Removed
    near: Removed
    names: dict[int, str]
    lines: Repeated


def _compare(stage: Path, files: _Files, settings: FilterSettings, batch_bytes: int, workers: int, say: Callable[[str], object]) -> _Facts:
    """Exact duplicates, then near ones among the rest, then the lines that the rest repeats."""
    rank = files.rank.read()
    alive = np.ones(files.documents, dtype=bool)
    exact = duplicates.exact(files.digests.read().reshape(-1, 2), rank)
    alive[exact.document] = False

    searched = np.flatnonzero(alive & files.has_words.read())
    candidates = duplicates.candidates(lambda band: files.bands[band].read(), searched, settings.near_duplicates)
    say(f"{len(exact.document):,} exact duplicates; {len(candidates):,} documents share a MinHash band with another")
    with ShingleSets(files.work / "shingles", candidates) as sets:
        among = partial(_shingle_sets, candidates=candidates, size=settings.near_duplicates.shingle_words)
        for found in in_order(among, _numbered(batches(read_parts(stage, ["text"]), limit=batch_bytes)), workers):
            for shingles in found:
                sets.append(shingles)
        sets.finish()
        near = duplicates.near(lambda band: files.bands[band].read(), candidates, rank, sets, settings.near_duplicates)
    alive[near.document] = False
    say(f"{len(near.document):,} near duplicates")

    parts = (repeated_lines.repeated(column.read(), alive, rank, settings.repeated_lines) for column in files.lines.columns)
    lines = repeated_lines.joined(list(parts))
    say(f"{len(lines.hash):,} lines stand in more than {settings.repeated_lines.documents_max} documents")
    wanted = np.unique(np.concatenate([exact.representative, near.representative]))
    names: dict[int, str] = {}
    begin = 0
    for frame in read_parts(stage, ["document_id"]) if len(wanted) else ():
        low, high = np.searchsorted(wanted, [begin, begin + frame.height])
        names.update(zip(wanted[low:high].tolist(), frame["document_id"].gather(wanted[low:high] - begin), strict=True))
        begin += frame.height
    return _Facts(exact, near, names, lines)


def _numbered(frames: Iterable[pl.DataFrame]) -> Iterator[tuple[int, pl.DataFrame]]:
    """Each batch with the number of its first document."""
    begin = 0
    for frame in frames:
        yield begin, frame
        begin += frame.height


def _shingle_sets(numbered: tuple[int, pl.DataFrame], candidates: np.ndarray, size: int) -> list[np.ndarray]:
    """The distinct shingles of the batch's candidates."""
    begin, frame = numbered
    low, high = np.searchsorted(candidates, [begin, begin + frame.height])
    shingles = word_shingles(frame["text"].gather(candidates[low:high] - begin), size)
    return [np.unique(shingles.of(index)) for index in range(high - low)]


@dataclass(frozen=True)
class _Finished:
    frame: pl.DataFrame
    rejects: pl.DataFrame
    ledger: _Ledger
    spans: pl.DataFrame
    last: str


def _finish(numbered: tuple[int, pl.DataFrame], facts: _Facts, settings: FilterSettings) -> _Finished:
    """The filters that come after the comparison of documents."""
    begin, frame = numbered
    ledger = _Ledger()
    last = frame["document_id"][-1]
    rejects = [pl.DataFrame(schema=REJECT_SCHEMA)]
    numbers = np.arange(begin, begin + frame.height)

    def reject(gone: np.ndarray, name: str, value: list[float], detail: list[str] | None = None) -> None:
        nonlocal frame, numbers
        taken = frame.filter(pl.Series(gone)).with_columns(
            filter=pl.lit(name),
            value=pl.Series(value, dtype=pl.Float64),
            detail=pl.lit(None, pl.String) if detail is None else pl.Series(detail, dtype=pl.String),
        )
        rejects.append(taken.select(REJECT_SCHEMA.keys()))
        frame, numbers = frame.filter(pl.Series(~gone)), numbers[~gone]

    for name, removed in (("exact_duplicate", facts.exact), ("near_duplicate", facts.near)):
        low, high = np.searchsorted(removed.document, [begin, begin + len(numbered[1])])
        names = [facts.names[int(number)] for number in removed.representative[low:high]]
        reject(np.isin(numbers, removed.document[low:high]), name, removed.similarity[low:high].tolist(), names)

    dialogue = frame["source"].is_in(list(settings.dialogues)).to_numpy()
    texts, shares = repeated_lines.without_repeated(frame["text"].filter(pl.Series(~dialogue)), numbers[~dialogue], facts.lines)
    if shares.any():
        changed = frame.with_columns(text=frame["text"].scatter(np.flatnonzero(~dialogue), texts))
        share = np.zeros(frame.height)
        share[~dialogue] = shares
        ledger.texts_changed("repeated_across_documents", frame, changed)
        frame = changed
        short = (share > 0) & (frame["text"].str.count_matches(r"\S+") < settings.quality.words_min).to_numpy()
        reject(short, "repeated_across_documents", share[short].tolist())

    redacted = redact_frame(frame, settings.personal_data)
    ledger.texts_changed("personal_data", frame, redacted.frame)
    frame = redacted.frame
    dense = dict(redacted.dense.iter_rows())
    reject(frame["document_id"].is_in(list(dense)).to_numpy(), "personal_data", [dense[i] for i in frame["document_id"] if i in dense])
    taken = pl.concat(rejects).sort("document_id")
    ledger.took(taken)
    return _Finished(frame.select(KEPT_SCHEMA.keys()), taken, ledger, redacted.counts, last)


class _Earlier:
    """The first pass's rejects, given out between the second's, so that all are sorted by id."""

    def __init__(self, frames: Iterator[pl.DataFrame]):
        self.frames = frames
        self.held = pl.DataFrame(schema=REJECT_SCHEMA)

    def merged(self, late: pl.DataFrame, last: str | None) -> Iterator[pl.DataFrame]:
        """The rejects up to the id `last` (None: to the end) merged with `late`, which has none behind it."""
        while True:
            if not self.held.height:
                following = next(self.frames, None)
                if following is None:
                    break
                self.held = following
            due = self.held if last is None else self.held.filter(pl.col("document_id") <= last)
            held_back = due.height < self.held.height
            self.held = self.held.slice(due.height)
            if held_back:
                late = pl.concat([due, late]).sort("document_id")
                break
            now = pl.col("document_id") <= due["document_id"][-1]
            yield pl.concat([due, late.filter(now)]).sort("document_id")
            late = late.filter(~now)
        if late.height:
            yield late
