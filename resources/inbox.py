"""The inbox: the one door through which preferences enter, as files."""

import hashlib
import re
from pathlib import Path

from resources.disk import write_once
from resources.errors import TampuError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def inbox_folder(home: Path) -> Path:
    """`$TAMPU_HOME/inbox`, made if missing."""
    folder = home / "inbox"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def batch_file(home: Path, batch: str) -> Path:
    """The file of a batch; error if it has gone."""
    path = inbox_folder(home) / f"{batch}.jsonl"
    if not path.is_file():
        raise TampuError(f"preference batch {batch!r} has no file {path}: put it back, or drop a new file under another name")
    return path


def inbox_files(home: Path) -> tuple[dict[str, str], list[str]]:
    """SHA-256 of every file of the inbox by batch name, in name order, and what is wrong with names that can not be a partition."""
    found, problems = {}, []
    for path in sorted(inbox_folder(home).glob("*.jsonl")):
        if path.name.startswith("."):
            continue
        if _NAME.fullmatch(path.stem):
            found[path.stem] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            problems.append(f"inbox file {path.name!r}: a batch name has letters, digits, '-' and '_' only; rename the file")
    return found, problems


def batches_in(home: Path) -> dict[str, str]:
    """SHA-256 of every file of the inbox by batch name, in name order. Names that can not be a partition are refused."""
    found, problems = inbox_files(home)
    if problems:
        raise TampuError(problems[0])
    return found


def place(home: Path, batch: str, content: bytes) -> Path:
    """Put a batch into the inbox at once and for ever, and return where it lies.

    The same content again changes nothing, under whatever name: it lies where it lay. Other content under the same name is refused.
    """
    return _place(inbox_folder(home), batch, content)


def demonstrations_folder(home: Path) -> Path:
    """`$TAMPU_HOME/inbox/demonstrations`: files of demonstrations that `sft/data` reads beside its own."""
    return inbox_folder(home) / "demonstrations"


def demonstration_files(home: Path) -> dict[str, Path]:
    """The files of demonstrations by name, in name order."""
    return {path.stem: path for path in sorted(demonstrations_folder(home).glob("*.jsonl")) if not path.name.startswith(".")}


def place_demonstrations(home: Path, name: str, content: bytes) -> Path:
    """As `place`, for a file of demonstrations."""
    folder = demonstrations_folder(home)
    folder.mkdir(exist_ok=True)
    return _place(folder, name, content)


def _place(folder: Path, name: str, content: bytes) -> Path:
    if not _NAME.fullmatch(name):
        raise TampuError(f"batch name {name!r}: letters, digits, '-' and '_' only")
    path = folder / f"{name}.jsonl"
    if path.exists():
        if path.read_bytes() == content:
            return path
        raise TampuError(f"{path} exists with other content: batches never change, choose another name")
    for other in sorted(folder.glob("*.jsonl")):
        if other.stat().st_size == len(content) and other.read_bytes() == content:
            return other
    if not write_once(path, content) and path.read_bytes() != content:
        raise TampuError(f"{path} was placed with other content by another process just now: choose another name")
    return path
