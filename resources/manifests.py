"""An artifact as a folder on the disk: its manifest, its files, and whether both can be trusted."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from resources.disk import canonical_json, sha256_file, sha256_text
from resources.errors import TampuError

MANIFEST = "manifest.json"
REQUIRED = (
    "asset",
    "partitions",
    "partition",
    "profile",
    "key",
    "identity",
    "format",
    "data_version",
    "code_version",
    "applied",
    "inputs",
    "cited",
    "raw_files",
    "config",
    "not_identity",
    "seed",
    "git",
    "packages",
    "hardware",
    "created_at",
    "seconds",
    "peak_memory_bytes",
    "carbon",
    "metrics",
    "notes",
    "previews",
    "plots",
    "tables",
    "checks",
    "files",
    "differs_from",
)


class Damaged(Exception):
    """An artifact's folder cannot be trusted; the message says why."""


@dataclass(frozen=True)
class Artifact:
    """One complete artifact, as asked for: `partition` is the one that was asked for, also where two share a folder."""

    asset: str
    partition: str | None
    key: str
    data_version: str
    path: Path
    manifest: dict[str, Any]

    def file(self, name: str) -> Path:
        """Path of a file or folder of the artifact. Raises TampuError for a name that it does not have."""
        names = [entry["name"] for entry in self.manifest["files"]]
        if name in names or any(other.startswith(f"{name}/") for other in names):
            return self.path / name
        raise TampuError(f"{self.label} has no file {name!r}: it has {', '.join(names) or 'none'}")

    def json(self, name: str) -> Any:
        """A JSON file's content."""
        return json.loads(self.file(name).read_text())

    def frame(self, name: str) -> pl.DataFrame:
        """A Parquet file's rows."""
        return pl.read_parquet(self.file(name), glob=False)

    @property
    def metrics(self) -> dict[str, float]:
        """The numbers that the asset reported."""
        return dict(self.manifest["metrics"])

    @property
    def applied(self) -> bool:
        """False for an asset that starts at a later round: it holds a reason and nothing else."""
        return bool(self.manifest["applied"])

    @property
    def round(self) -> str | None:
        """The round that the artifact was asked for, None for an asset without rounds."""
        return self.partition if self.manifest["partitions"] == "round" else None

    @property
    def label(self) -> str:
        """Asset, partition and key in one short word, for messages."""
        partition = f"[{self.partition}]" if self.partition else ""
        return f"{self.asset}{partition} {self.key[:8]}"

    @property
    def failed_check(self) -> str | None:
        """Name of the first blocking check that failed, or None."""
        return next((one["name"] for one in self.manifest["checks"] if one["blocking"] and not one["passed"]), None)

    def reference(self) -> dict[str, str | None]:
        """What pins this artifact: {asset, partition, key, data_version}."""
        return {
            "asset": self.asset,
            "partition": self.partition,
            "key": self.key,
            "data_version": self.data_version,
        }


def natural(name: str | None) -> tuple[str, int, str]:
    """Sort key that puts v2 before v10 and x-2 before x-10, None first."""
    text = name or ""
    digits = len(text) - len(text.rstrip("0123456789"))
    head, tail = (text[: len(text) - digits], text[len(text) - digits :]) if digits else (text, "")
    return (head, int(tail or 0), text)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an artifact's folder. Raises Damaged when it is missing, cut short, edited or lacks a field."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise Damaged("has no manifest.json") from None
    except ValueError:
        raise Damaged("has a manifest.json that is no JSON") from None
    if not isinstance(manifest, dict) or (missing := [name for name in REQUIRED if name not in manifest]):
        raise Damaged(f"has a manifest.json without {', '.join(missing) if isinstance(manifest, dict) else 'fields'}")
    stated = manifest.pop("manifest_sha256", None)
    if stated != sha256_text(canonical_json(manifest)):
        raise Damaged("has a manifest.json that was edited after it was written")
    return manifest


def file_problems(path: Path, manifest: dict[str, Any], *, rehash: bool) -> Iterator[str]:
    """What is wrong with an artifact's files: missing, of another size, with `rehash` of other bytes or unlisted."""
    for entry in manifest["files"]:
        file = path / entry["name"]
        if not file.is_file():
            yield f"lacks its file {entry['name']}"
        elif file.stat().st_size != entry["bytes"]:
            yield f"has {file.stat().st_size} bytes in {entry['name']} where the manifest says {entry['bytes']}"
        elif rehash and sha256_file(file) != entry["sha256"]:
            yield f"has other bytes in {entry['name']} than the manifest says"
    if rehash:
        listed = {entry["name"] for entry in manifest["files"]} | {MANIFEST}
        for name in sorted(set(file_names(path)) - listed):
            yield f"has a file {name} that the manifest does not list"


def difference(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """What a recomputed artifact differs from: {key, data_version, files: names that differ} of the manifest before."""
    old = versioned_files(before)
    new = versioned_files(after)
    names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    return {"key": before["key"], "data_version": before["data_version"], "files": names}


def versioned_files(manifest: dict[str, Any]) -> dict[str, str]:
    """{name: SHA-256} of the files that the data version is made of; manifests from before there were others name none to leave out."""
    left_out = frozenset(manifest.get("unversioned", ()))
    return {entry["name"]: entry["sha256"] for entry in manifest["files"] if entry["name"] not in left_out}


def file_entries(folder: Path) -> list[dict[str, Any]]:
    """{name, bytes, sha256} of every file below `folder`, by name; links are refused with TampuError."""
    entries = []
    for name in sorted(file_names(folder)):
        file = folder / name
        if file.is_symlink():
            raise TampuError(f"{file} is a link: an artifact holds files of its own, so write a copy")
        entries.append({"name": name, "bytes": file.stat().st_size, "sha256": sha256_file(file)})
    return entries


def file_names(folder: Path) -> Iterator[str]:
    """Names of all files below a folder, relative, with forward slashes."""
    for parent, folders, names in os.walk(folder):
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in [*names, *links]:
            yield (Path(parent) / name).relative_to(folder).as_posix()
