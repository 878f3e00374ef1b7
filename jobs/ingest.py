"""`tampu ingest`: read a user's file, say what was understood, and place it into the inbox as it is, with how to read it."""

import gzip
import hashlib
import io
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from assets import demonstrations
from assets.preferences import formats, reading
from resources.annotator import Rating
from resources.disk import disk_troubles
from resources.errors import TampuError
from resources.inbox import place, place_demonstrations
from resources.store import ArtifactStore

FORMATS = ("auto", reading.OWN, *formats.BY_NAME, *demonstrations.BY_NAME)
ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet", ".gz")


@dataclass(frozen=True)
class Ingested:
    """What a file was understood as and where it lies now (None: nothing was placed)."""

    kind: str
    format: str
    source: str | None
    is_safety: bool | None
    read: int
    accepted: int
    quarantined: int
    reasons: dict[str, int]
    ratings: dict[str, int]
    example: dict[str, Any]
    batch: str
    file: str | None


def ingest(
    store: ArtifactStore,
    file: Path,
    *,
    layout: str = "auto",
    name: str | None = None,
    source: str | None = None,
    is_safety: bool | None = None,
    rating: Rating | None = None,
    dry_run: bool = False,
) -> Ingested:
    """Validate `file` and place it: comparisons into the inbox, demonstrations into its folder of that name.

    `layout` is one of `FORMATS`. `source` names the set that the rows are from (default: the format), `is_safety` says of rows that do not
    say it themselves whether their prompts are adversarial, `rating` is the rating of sets that only say which answer is better. A file of
    Anthropic's harmless set is taken for safety data by its name. Raises TampuError when nothing could be read.
    """
    raw = json_lines(file)
    parts = reading.split_origin(raw, (*formats.BY_NAME, *demonstrations.BY_NAME))
    if parts.problem:
        raise TampuError(f"{file}: {parts.problem}")
    stated = parts.origin.format if parts.origin else None
    found = layout if layout != "auto" else stated or _detect(file, parts.numbered)
    batch = name or _batch_name(file)
    if found == reading.OWN or stated:
        if source or is_safety is not None or rating or found != (stated or found):
            raise TampuError(f"{file} says itself how to read it (source, is_safety, rating, format): leave these options out")
        content = raw
    else:
        origin = reading.Origin(format=found, source=source or found, is_safety=is_safety, sha256=hashlib.sha256(raw).hexdigest())
        if found == formats.AnthropicHH.NAME:
            origin = _of_anthropic(origin, file, source, is_safety)
        content = (origin if rating is None else origin.model_copy(update={"rating": rating})).line() + raw
    comparisons = found not in demonstrations.BY_NAME
    result = reading.read_comparisons(content) if comparisons else demonstrations.read_demonstrations(content)
    if result.accepted.is_empty():
        thing = "comparison" if comparisons else "demonstration"
        raise TampuError(f"{file}: no {thing} could be read as {found}; reasons: {result.reasons or 'the file is empty'}")
    path = None
    if not dry_run:
        with disk_troubles(store.root):
            path = (place if comparisons else place_demonstrations)(store.root, batch, content)
    sources = result.accepted["source"].drop_nulls().unique().sort()
    return Ingested(
        kind="comparisons" if comparisons else "demonstrations",
        format=found,
        source=", ".join(sources) or None,
        is_safety=_one(result.accepted["is_safety"]),
        read=result.read,
        accepted=result.accepted.height,
        quarantined=result.quarantined.height,
        reasons=result.reasons,
        ratings=dict(result.accepted.group_by("rating").len().sort("len", descending=True).iter_rows()) if comparisons else {},
        example=_example(result.accepted),
        batch=path.stem if path else batch,
        file=str(path) if path else None,
    )


def _of_anthropic(origin: reading.Origin, file: Path, source: str | None, is_safety: bool | None) -> reading.Origin:
    """The two halves of Anthropic's set are told apart by the file's name alone."""
    half = next((half for half in ("harmless", "helpful") if half in file.name.lower()), None)
    if half is None:
        return origin
    safety = half == "harmless" if is_safety is None else is_safety
    return origin.model_copy(update={"source": source or f"anthropic-{half}", "is_safety": safety})


def _detect(file: Path, lines: list[tuple[int, bytes]]) -> str:
    """The format of a file's records. Raises TampuError that names their keys when no format claims most of them."""
    found = reading.detect(lines) or demonstrations.detect(lines)
    if found:
        return found
    keys = next((sorted(record) for _, line in lines if isinstance(record := _record(line), dict)), None)
    seen = f"a record has the keys {', '.join(keys)}" if keys else "no line is a JSON object"
    raise TampuError(f"{file} is of no known format ({seen}): name one with --format, of {', '.join(FORMATS[1:])}")


def _record(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def json_lines(file: Path) -> bytes:
    """A file as JSON lines: `.jsonl` as it is, `.gz` unpacked, a JSON array or a Parquet file one record a line.

    Raises TampuError for a file that is missing, damaged, or of another kind.
    """
    if not file.is_file():
        raise TampuError(f"{file} does not exist")
    if not file.name.lower().endswith(ENDINGS):
        raise TampuError(f"{file}: the name ends in none of {', '.join(ENDINGS)}: convert it to JSON lines")
    raw, name = file.read_bytes(), file.name.lower()
    if name.endswith(".gz"):
        try:
            raw, name = gzip.decompress(raw), name.removesuffix(".gz")
        except (OSError, EOFError, zlib.error) as error:
            raise TampuError(f"{file} is no whole gzip file ({error}): fetch it again") from None
    if name.endswith(".parquet"):
        try:
            records: Sequence[Any] = pl.read_parquet(io.BytesIO(raw)).to_dicts()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise TampuError(f"{file} is no whole Parquet file ({error}): fetch it again") from None
        return _dumped(records)
    if raw.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[") and isinstance(records := _record(raw), list):
        return _dumped(records)
    return raw


def _dumped(records: Sequence[Any]) -> bytes:
    return "".join(f"{json.dumps(record, ensure_ascii=False, default=str)}\n" for record in records).encode("utf-8", "surrogatepass")


def _batch_name(file: Path) -> str:
    """The file's name up to its first dot, with '-' for what a batch name can not hold."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", file.name.split(".")[0]).strip("-") or "batch"


def _one(values: pl.Series) -> bool | None:
    """The value that all share, or None."""
    different = values.unique()
    return different[0] if len(different) == 1 else None


def _example(accepted: pl.DataFrame) -> dict[str, Any]:
    """The first harmless row, or nothing: a terminal is no place for the others."""
    names = [name for name in ("line", "prompt", "chosen", "rejected", "rating", "messages") if name in accepted.columns]
    rows = accepted.filter(pl.col("is_safety").fill_null(False).not_()).select(names).head(1).to_dicts()
    return rows[0] if rows else {}


def described(found: Ingested, letters: int = 160) -> str:
    """The same for a person: counts, reasons, an example, and what comes next."""
    said = f" of {found.source}" if found.source else ""
    lines = [
        f"{found.kind} in the format {found.format}{said}: {found.read} read, {found.accepted} accepted, {found.quarantined} quarantined",
        *(f"  {count} {rating}" for rating, count in found.ratings.items()),
        *(f"  quarantined: {count}, {reason}" for reason, count in found.reasons.items()),
    ]
    if found.is_safety:
        lines.append("  safety data: its prompts count as adversarial")
    if found.example:
        lines.append("for example")
        for key, value in found.example.items():
            text = " ".join(str(value).split())
            lines.append(f"  {key}: {text if len(text) <= letters else text[: letters - 1] + '…'}")
    if found.file is None:
        lines.append("nothing was placed")
    elif found.kind == "comparisons":
        lines.append(f"placed as {found.file}: `tampu round` opens a round with it, or the UI's sensors do")
    else:
        lines.append(f"placed as {found.file}: `tampu run --select sft/data --select sft/model` learns from it")
    return "\n".join(lines)
