"""The inbox: the one door through which preferences enter, as files."""

import hashlib
import os
import re
from pathlib import Path

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


def batches_in(home: Path) -> dict[str, str]:
    """SHA-256 of every file of the inbox by batch name, in name order. Names that can not be a partition are refused."""
    found = {}
    for path in sorted(inbox_folder(home).glob("*.jsonl")):
        if not _NAME.fullmatch(path.stem):
            raise TampuError(f"inbox file {path.name!r}: a batch name has letters, digits, '-' and '_' only; rename the file")
        found[path.stem] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def place(home: Path, batch: str, content: bytes) -> Path:
    """Put a batch into the inbox at once and for ever: the same content again changes nothing, other content is refused."""
    if not _NAME.fullmatch(batch):
        raise TampuError(f"batch name {batch!r}: letters, digits, '-' and '_' only")
    path = inbox_folder(home) / f"{batch}.jsonl"
    if path.exists():
        if path.read_bytes() == content:
            return path
        raise TampuError(f"{path} exists with other content: batches never change, choose another name")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return path
