"""Files that are whole or absent: hashing, durable writes, and disk troubles told in one sentence."""

import errno
import glob
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from resources.errors import TampuError

FULL = {errno.ENOSPC, errno.EDQUOT}
UNWRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. Not-a-number is refused with ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def pretty_json(value: Any) -> str:
    """The same value for a person to read: sorted keys, two spaces of indent, a newline at the end."""
    return json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def sha256_text(text: str) -> str:
    """SHA-256 of the UTF-8 bytes of `text`, 64 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits, read in pieces so that size does not matter."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parquet_bytes(frame: pl.DataFrame) -> bytes:
    """A frame as Parquet: the same rows in the same order give the same bytes under one version of Polars."""
    buffer = io.BytesIO()
    frame.write_parquet(buffer, compression="zstd", compression_level=3, statistics=True)
    return buffer.getvalue()


def fsync_path(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(folder: Path) -> None:
    """Flush every file below `folder`, then every folder, the outermost last."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            fsync_path(Path(parent) / name)
        fsync_path(Path(parent))


def temporary_name(path: Path) -> Path:
    """A hidden sibling that no `*.parquet` or `*.json` glob matches, with this process's id in it."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_whole(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Put `content` at `path`: a reader sees the old file or the new one, never a part, however this process ends.

    With `durable` that also holds for a power cut; what can be derived again does without the wait for the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync_path(path.parent)


def write_once(path: Path, content: bytes) -> bool:
    """Like `write_whole`, but an existing file wins: returns False and leaves it as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    fsync_path(path.parent)
    return True


def alive(pid: str) -> bool:
    """Whether a process with this id exists."""
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to write into that becomes `path` when the block ends well, and is removed when it does not.

    `path` must not exist, or be an empty folder. What dead processes left behind for this `path` is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for other in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        if other.is_dir() and not alive(other.name.removesuffix(".tmp").rpartition(".")[2]):
            shutil.rmtree(other)
    temporary = temporary_name(path)
    temporary.mkdir()
    try:
        yield temporary
        fsync_tree(temporary)
        os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    fsync_path(path.parent)


@contextmanager
def disk_troubles(home: Path) -> Iterator[None]:
    """Turn a full or unwritable disk below `home` into a TampuError; any other exception passes.

    Libraries written in Rust wrap the operating system's error in their own, so their text is looked at too.
    """
    try:
        yield
    except TampuError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None)
        text = str(error)
        if number in FULL or "os error 28)" in text or "No space left on device" in text:
            way_out = "free some space or set TAMPU_HOME to another disk, then run again"
            raise TampuError(f"the disk under TAMPU_HOME={home} is full: {way_out}") from error
        place = getattr(error, "filename", None)
        if number in UNWRITABLE and place is not None and _below(Path(os.fsdecode(place)), home):
            way_out = "make it writable or set TAMPU_HOME to a folder of yours"
            raise TampuError(f"cannot write below TAMPU_HOME={home} ({os.strerror(number)}): {way_out}") from error
        raise


def _below(path: Path, home: Path) -> bool:
    """Whether `path` is `home`, lies below it, or is a folder on the way to it that would have to be made."""
    return path.is_relative_to(home) or home.is_relative_to(path)
