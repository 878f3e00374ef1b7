"""Reading a batch: every line of a file is accepted as comparisons or quarantined with its reason; nothing is dropped.

A file is our own JSONL or one of `formats`. It may begin with a line `{"tampu_batch": …}`, an `Origin`, which `tampu ingest` writes for
public formats: it says how to read the lines below, and they are the user's own, so that lineage hashes what was handed in.
"""

import json
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from assets.preferences.formats import BY_NAME, Pair, format_of
from assets.preferences.schema import COLUMNS, Comparison
from resources.annotator import Rating

OWN = "tampu"
MARK = b'{"tampu_batch": '
LOOKED_AT = 50  # records that decide a file's format
# Characters of a dialogue with its longer answer: the paper's context of 4,096 tokens at about four characters each (our choice).
MOST_CHARACTERS = 16_384
# A set that only says which answer is better gets the rating whose margin is 0, which is the ranking loss without margin (our choice).
UNRATED: Rating = "negligibly better"
QUARANTINE = {"line": pl.Int64, "reason": pl.String, "text": pl.String}


class Origin(BaseModel):
    """How to read a file of a public format, and what its records do not say of themselves."""

    model_config = ConfigDict(extra="forbid")
    format: str
    source: str
    is_safety: bool | None = None
    rating: Rating = UNRATED
    sha256: str = ""

    def line(self) -> bytes:
        """The first line of a batch."""
        return MARK + self.model_dump_json().encode() + b"}\n"


@dataclass(frozen=True)
class Accepted:
    """What a file held: `accepted` with `COLUMNS`, `quarantined` with line, reason and the raw text. Together all that was read.

    `read` counts comparisons, and lines of which none could be made; a line of our own format is one of either.
    """

    accepted: pl.DataFrame
    quarantined: pl.DataFrame
    read: int
    format: str

    @property
    def reasons(self) -> dict[str, int]:
        return dict(sorted(Counter(self.quarantined["reason"].to_list()).items()))


@dataclass(frozen=True)
class Lines:
    """A file's lines that are not blank, numbered as the user's file has them (from 1), and the origin that it states.

    `problem` says why the stated origin can not be used; then none of the lines can be trusted to mean what they seem to.
    """

    numbered: list[tuple[int, bytes]]
    origin: Origin | None = None
    problem: str | None = None


def split_origin(raw: bytes, known: Collection[str] = tuple(BY_NAME)) -> Lines:
    """A file's lines and its origin, whose format must be one of `known`."""
    lines = raw.split(b"\n")
    origin, problem = None, None
    if lines[0].startswith(MARK):
        try:
            origin = Origin.model_validate(json.loads(lines[0])["tampu_batch"])
            if origin.format not in known:
                raise ValueError(f"format {origin.format!r} is not one of {', '.join(known)}")
        except (ValueError, RecursionError) as error:
            origin, problem = None, f"the file's first line says 'tampu_batch' and can not be used: {reason_of(error)}"
    start = 1 if origin is None else 0
    return Lines([(number, line) for number, line in enumerate(lines, start=start) if number and line.strip()], origin, problem)


def detect(lines: list[tuple[int, bytes]]) -> str | None:
    """The format that most of the first records are of: `tampu`, a name of `formats`, or None where most are of none."""
    votes: Counter[str | None] = Counter()
    for _, line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            votes[OWN if {"responses", "preferred"} & record.keys() else format_of(record)] += 1
        if votes.total() == LOOKED_AT:
            break
    return votes.most_common(1)[0][0] if votes else None


def read_comparisons(raw: bytes, *, most_characters: int = MOST_CHARACTERS) -> Accepted:
    """Validate every line of a file. Nothing is dropped: a comparison is accepted or quarantined with its line and reason.

    Of two comparisons of the same prompt and answers by the same annotator the first is kept; the second is a duplicate, or a
    contradiction if it prefers the other answer. Lines of no known format are read as our own, so that each says what it lacks.
    """
    parts = split_origin(raw)
    lines, origin = parts.numbered, parts.origin
    if parts.problem:
        return Accepted(pl.DataFrame(schema=COLUMNS), refused(parts), len(lines), OWN)
    if origin is None and (found := detect(lines) or OWN) != OWN:
        origin = Origin(format=found, source=found)
    rows: list[dict[str, Any]] = []
    bad: list[tuple[int, str, str]] = []
    seen: dict[tuple[str, frozenset[str], str], str] = {}
    read = 0
    for line, content in lines:
        for number, (text, candidate) in enumerate(_candidates(content, origin, first=line == 1)):
            read += 1
            if isinstance(candidate, str):
                bad.append((line, candidate, text))
                continue
            row = candidate.row(line, number)
            identity = (row["prompt_id"], frozenset((row["chosen"], row["rejected"])), row["annotator"])
            if _characters(candidate) > most_characters:
                bad.append((line, f"over-long: more than {most_characters} characters", text))
            elif identity in seen:
                bad.append((line, "duplicate" if seen[identity] == row["chosen"] else "contradicts an earlier comparison", text))
            else:
                seen[identity] = row["chosen"]
                rows.append(row)
    frame = pl.DataFrame(bad, schema=QUARANTINE, orient="row")
    return Accepted(pl.DataFrame(rows, schema=COLUMNS), frame, read, origin.format if origin else OWN)


def refused(parts: Lines) -> pl.DataFrame:
    """The quarantine of a file whose origin can not be used: all of it."""
    bad = [(line, parts.problem, content.decode("utf-8", "replace")) for line, content in parts.numbered]
    return pl.DataFrame(bad, schema=QUARANTINE, orient="row")


def _characters(comparison: Comparison) -> int:
    longer = max(len(response.text) for response in comparison.responses)
    return sum(len(message.content) for message in comparison.prompt) + longer


def _candidates(content: bytes, origin: Origin | None, *, first: bool) -> Iterator[tuple[str, Comparison | str]]:
    """What a line holds: each comparison, or the reason why it is none, with the text that the quarantine keeps."""
    try:
        text = content.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError:
        yield content.decode("utf-8", "replace"), "invalid UTF-8"
        return
    try:
        record = json.loads(text)
        if origin is None:
            yield text, Comparison.model_validate(record)
            return
        pairs = list(BY_NAME[origin.format].model_validate(record).pairs())
    except (ValueError, RecursionError) as error:
        yield text, reason_of(error)
        return
    for pair in pairs:
        kept = text if len(pairs) == 1 else json.dumps(vars(pair), ensure_ascii=False)
        try:
            yield kept, _comparison(pair, origin)
        except ValueError as error:
            yield kept, reason_of(error)


def _comparison(pair: Pair, origin: Origin) -> Comparison:
    """A public set's pair with what the file's origin adds. ValueError if it is no comparison."""
    if pair.texts[0].strip() == pair.texts[1].strip():
        raise ValueError("the two responses do not differ")
    if pair.preferred is None:
        raise ValueError("neither response is preferred")
    return Comparison.model_validate(
        {
            "prompt": pair.prompt,
            "responses": [{"text": text, "model": name} for text, name in zip(pair.texts, pair.models, strict=True)],
            "preferred": pair.preferred,
            "rating": pair.rating or origin.rating,
            "is_safety": bool(origin.is_safety) if pair.is_safety is None else pair.is_safety,
            "safe": pair.safe,
            "annotator": pair.annotator or origin.source,
            "source": origin.source,
        }
    )


def reason_of(error: Exception) -> str:
    """One line: where, and what. Of several complaints the first."""
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON: {error.msg}"
    if isinstance(error, RecursionError):
        return "not JSON: nested too deeply"
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    if first["type"] == "extra_forbidden":
        return f"unknown key {place!r}"
    if first["type"] == "missing":
        return f"{place}: missing"
    text = str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {text}" if place else text
