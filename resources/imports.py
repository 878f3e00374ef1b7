"""Checkpoints from outside, read once and kept whole below the home.

$TAMPU_HOME/imported/<name>/   config.json and model.safetensors in the project's own naming, the tokenizer's files, and origin.json,
                               which says where all that came from, with the hashes of what was read and of what was written
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.disk import disk_troubles, pretty_json, sha256_file, whole_folder
from resources.environment import NAME, NAME_RULE
from resources.errors import TampuError

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint

ORIGIN = "origin.json"
WEIGHTS = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class Imported:
    """A checkpoint below the home.

    `origin` has its format, kind, path, parameters and context, and the files that were `read` and `written` with their hashes.
    """

    name: str
    path: Path
    origin: dict[str, Any]

    @property
    def tokenizer_files(self) -> dict[str, Path]:
        """The tokenizer's files by name."""
        return {one["name"]: self.path / one["name"] for one in self.origin["written"] if one["name"] not in WEIGHTS}

    @property
    def weight_files(self) -> dict[str, Path]:
        """The files that `model.weights` reads, by name."""
        return {name: self.path / name for name in WEIGHTS}

    def told(self) -> str:
        """Where it came from, as Markdown: what was read, with hashes."""
        lines = [f"- `{one['name']}` {one['bytes']:,} bytes, SHA-256 `{one['sha256']}`" for one in self.origin["read"]]
        return "\n".join([f"imported as `{self.name}` from `{self.origin['path']}` ({self.origin['format']})", "", *lines])


def folder_of(home: Path, name: str) -> Path:
    """Where an import of this name lies. Raises TampuError for a name that can be none."""
    if not NAME.fullmatch(name):
        raise TampuError(f"imported name {name!r}: {NAME_RULE}")
    return home / "imported" / name


def names(home: Path) -> list[str]:
    """Every imported name, sorted."""
    return sorted(path.parent.name for path in (home / "imported").glob(f"*/{ORIGIN}") if NAME.fullmatch(path.parent.name))


def imported(home: Path, name: str, *, check: bool = True) -> Imported:
    """The import of this name with a readable origin; `check` also that every file is there with its size. Raises TampuError."""
    path = folder_of(home, name)
    if not (path / ORIGIN).is_file():
        known = ", ".join(names(home)) or "none"
        raise TampuError(f"there is no imported checkpoint {name!r} (imported are: {known}): `tampu import PATH --name {name}` makes it")
    found = Imported(name, path, _origin(path))
    for problem in problems(found, rehash=False) if check else ():
        raise TampuError(f"imported checkpoint {name!r}: {problem}; delete {path} and import it again")
    return found


def problems(found: Imported, *, rehash: bool = True) -> Iterator[str]:
    """What is wrong with the files of an import: missing, of another size, or (with `rehash`) of other bytes."""
    for one in found.origin["written"]:
        path = found.path / one["name"]
        if not path.is_file():
            yield f"{path} is missing"
        elif path.stat().st_size != one["bytes"]:
            yield f"{path} has {path.stat().st_size} bytes, expected {one['bytes']}"
        elif rehash and (digest := sha256_file(path)) != one["sha256"]:
            yield f"{path} has the SHA-256 {digest}, expected {one['sha256']}"


def _origin(path: Path) -> dict[str, Any]:
    try:
        origin = json.loads((path / ORIGIN).read_text(encoding="utf-8"))
        for key in ("format", "kind", "path", "parameters", "context", "read", "written"):
            origin[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TampuError(f"{path / ORIGIN} can not be read ({error!r}): delete {path} and import it again") from None
    return origin


def import_checkpoint(home: Path, source: Path, name: str, *, context: int | None = None) -> tuple[Imported, bool]:
    """Read the checkpoint at `source` and keep it as `name`; also whether it was there already.

    `context` (tokens) as in `model.formats.read_checkpoint`. Raises TampuError for a checkpoint that cannot be read, and for a name that
    another one has; nothing is left behind then.
    """
    from model.formats import read_checkpoint
    from model.weights import save

    path = folder_of(home, name)
    source = source.expanduser().absolute()
    try:
        checkpoint = read_checkpoint(source, context=context)
    except ValueError as error:
        raise TampuError(f"import {source}: {error}") from None
    before = imported(home, name) if path.exists() else None
    read = _read_files(checkpoint, source)
    if before is not None:
        if (before.origin["read"], before.origin["context"]) == (read, context):
            return before, True
        raise TampuError(f"the name {name!r} belongs to another checkpoint, from {before.origin['path']}: choose another, or delete {path}")
    with disk_troubles(home), whole_folder(path) as temporary:
        save(checkpoint.model, temporary)
        for file, content in checkpoint.tokenizer.items():
            (temporary / file).write_bytes(content)
        origin = {
            "format": checkpoint.format,
            "kind": checkpoint.kind,
            "path": str(source),
            "parameters": sum(parameter.numel() for parameter in checkpoint.model.parameters()),
            "context": context,
            "read": read,
            "written": [_entry(one.name, one) for one in sorted(temporary.iterdir())],
        }
        (temporary / ORIGIN).write_text(pretty_json(origin), encoding="utf-8")
    return Imported(name, path, origin), False


def _read_files(checkpoint: "Checkpoint", source: Path) -> list[dict[str, Any]]:
    base = source if source.is_dir() else source.parent
    return [_entry(os.path.relpath(path, base), path) for path in checkpoint.files]


def _entry(name: str, path: Path) -> dict[str, Any]:
    return {"name": name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}
