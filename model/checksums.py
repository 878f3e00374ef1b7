"""Sums that lie beside a checkpoint's files: a changed bit inside the weights is seen by nothing else."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from model.checkpoint_errors import CheckpointError

OURS = "SHA256SUMS"
METAS = "checklist.chk"  # md5sum's, beside Meta's shards
LISTINGS = {OURS: "sha256", METAS: "md5"}
DOWNLOADS = ".cache/huggingface/download"  # what `hf download --local-dir` notes of each file


def check(folder: Path) -> None:
    """Compare the files of a folder with every sum that it has of them. Raises CheckpointError for one that differs or is missing."""
    for algorithm, listing, name, expected in _sums(folder):
        path = folder / name
        if not path.is_file():
            if listing.startswith(DOWNLOADS):  # a download of which a part was deleted
                continue
            raise CheckpointError(path, None, expected=f"this file by {listing}", found="no such file")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, algorithm).hexdigest()
        if found != expected:
            raise CheckpointError(path, None, expected=f"{algorithm} {expected} by {listing}", found=f"{found}: copy it again")


def _sums(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """(algorithm, file that says so, file, hex digest)."""
    for listing, algorithm in LISTINGS.items():
        if (folder / listing).is_file():
            for line in (folder / listing).read_text().splitlines():
                digest, _, name = line.partition(" ")
                yield algorithm, listing, name.strip().removeprefix("*"), digest
    for note in sorted((folder / DOWNLOADS).glob("*.metadata")):
        lines = note.read_text().splitlines()
        # The second line is the SHA-256 of a large file, and git's own hash of a small one.
        if len(lines) > 1 and re.fullmatch("[0-9a-f]{64}", lines[1]):
            yield "sha256", f"{DOWNLOADS}/{note.name}", note.name.removesuffix(".metadata"), lines[1]


def write(folder: Path, listing: str = OURS) -> None:
    """Write `SHA256SUMS`, or Meta's `checklist.chk`, over all files of a folder, as `sha256sum -c` or `md5sum -c` reads it."""
    lines = []
    for path in sorted(path for path in folder.iterdir() if path.is_file() and path.name != listing):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, LISTINGS[listing]).hexdigest()}  {path.name}\n")
    (folder / listing).write_text("".join(lines))
