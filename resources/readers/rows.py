"""What every reader gives back: rows that can be trusted, rows that cannot, and the raw files they came from."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One text: `native` is its stable id in the source, `group` what the split is drawn for (a speech, an author).

    `file` and `line` are its place, as in BadRow; `url` is its address where the source has one. `given` says that the id
    came from the data, so that two rows may have the same.
    """

    native: str
    text: str
    group: str
    file: str = ""
    line: int = 0
    url: str | None = None
    given: bool = False


@dataclass(frozen=True)
class BadRow:
    """A row kept out: `line` is its 1-based place in `file` (line, record or entry; 0 stands for the whole file)."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class RawFile:
    """A file that lineage hashes: `name` is free of local paths, so it is the same on every machine."""

    name: str
    path: Path


# What a reader yields: a row, or why there is none.
Read = Row | BadRow


@dataclass
class Rows:
    """A source's rows, quarantined rows and raw files, in file order."""

    rows: list[Row] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    files: list[RawFile] = field(default_factory=list)


def text_problem(text: object) -> str | None:
    """Why `text` cannot be a document, or None if it can."""
    if text is None:
        return "the text is missing"
    if not isinstance(text, str):
        return f"the text is {type(text).__name__}, not a string"
    if not text or text.isspace():
        return "the text is empty"
    if "\0" in text:
        return f"the text has a NUL at character {text.index(chr(0))}: no text, or not in UTF-8"
    if text.isascii():
        return None
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"the text has half of a surrogate pair at character {error.start}"
    return None


def decoded(data: bytes) -> tuple[str, str | None]:
    """`data` as UTF-8 and None, or an empty string and where the first bad byte is. A byte order mark is dropped."""
    try:
        return data.decode("utf-8-sig"), None
    except UnicodeDecodeError as error:
        return "", f"invalid UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}"
