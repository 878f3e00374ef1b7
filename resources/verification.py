"""Whether everything below the home still is what it says it is: every byte hashed again, every reference followed."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from resources import identity, imports
from resources.disk import sha256_file
from resources.errors import TampuError
from resources.manifests import Artifact, Damaged, file_problems, read_manifest, versioned_files
from resources.rounds import BATCH_ASSET, load_round, round_path
from resources.store import ArtifactStore, command
from resources.warehouse import current_file, current_row, published_file, published_rows, published_tables


@dataclass(frozen=True)
class Finding:
    """One thing that is not what it says: which, what is wrong, and the way out."""

    thing: str
    problem: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.thing}: {self.problem}; {self.way_out}"


def verify(store: ArtifactStore) -> list[Finding]:
    """Check artifacts, pointers, round records, warehouse, raw files and imported checkpoints; an empty list means that nothing differs."""
    manifests: dict[tuple[str, str], dict[str, Any]] = {}
    findings = []
    for asset, key in store.everything():
        found, manifest = _artifact(store, asset, key)
        findings.extend(found)
        if manifest is not None:
            manifests[asset, key] = manifest
    for (asset, key), manifest in manifests.items():
        thing = str(store.folder(asset) / key)
        for one in manifest["inputs"]:
            way_out = f"make it again with `{command(one['asset'], one['partition'])}`"
            findings.extend(_reference(manifests, f"{thing} reads", one, way_out))
    findings.extend(_pointers(store, manifests))
    findings.extend(_rounds(store, manifests))
    findings.extend(_warehouse(store, manifests))
    findings.extend(_imports(store))
    return findings


def _imports(store: ArtifactStore) -> Iterator[Finding]:
    """Every imported checkpoint."""
    for name in imports.names(store.root):
        folder = imports.folder_of(store.root, name)
        way_out = f"delete {folder} and import it again"
        try:
            found = imports.imported(store.root, name, check=False)
        except TampuError as error:
            yield Finding(f"imported checkpoint {name}", str(error), way_out)
            continue
        for problem in imports.problems(found):
            yield Finding(f"imported checkpoint {name}", problem, way_out)


def _artifact(store: ArtifactStore, asset: str, key: str) -> tuple[list[Finding], dict[str, Any] | None]:
    """What is wrong with one folder, and its manifest where that can be read."""
    path = store.folder(asset) / key
    try:
        manifest = read_manifest(path)
    except Damaged as problem:
        return [Finding(str(path), str(problem), _again(asset, None))], None
    problems = list(file_problems(path, manifest, rehash=True))
    if (manifest["asset"], manifest["key"]) != (asset, key):
        problems.append(f"has the manifest of {manifest['asset']} {manifest['key']}")
    if identity.data_version_of(versioned_files(manifest)) != manifest["data_version"]:
        problems.append("has a data version that is not that of its files")
    if manifest["format"] == identity.FORMAT and _key(manifest) != manifest["identity"]:
        problems.append("has a key that is not that of its code, config and inputs")
    return [Finding(str(path), problem, _again(asset, manifest["partition"])) for problem in problems], manifest


def _again(asset: str, partition: str | None) -> str:
    """The way out of a damaged artifact; without --force only the sizes of its files would be looked at."""
    made_again = f"`{command(asset, partition)} --force` moves it aside and makes it again"
    return f"{made_again}; where its code or config is no longer in use, delete the folder"


def _key(manifest: dict[str, Any]) -> str:
    """The key that a manifest's own facts give."""
    return identity.key_of(
        asset=manifest["asset"],
        code=manifest["code_version"],
        config=identity.counted(manifest["config"], manifest["not_identity"]),
        inputs=[(one["asset"], one["partition"], one["data_version"]) for one in manifest["inputs"]],
        files={file["name"]: file["sha256"] for file in manifest["raw_files"]},
        applied=manifest["applied"],
    )


def _reference(manifests: dict[tuple[str, str], dict[str, Any]], thing: str, reference: dict[str, Any], way_out: str) -> Iterator[Finding]:
    """Whether what is referred to exists with the data version that is stated."""
    name = f"{reference['asset']} {reference['key']}"
    manifest = manifests.get((reference["asset"], reference["key"]))
    if manifest is None:
        yield Finding(f"{thing} {name}", "no such artifact is in the store, or its manifest is damaged", way_out)
    elif manifest["data_version"] != reference["data_version"]:
        stated, has = reference["data_version"][:12], manifest["data_version"][:12]
        yield Finding(f"{thing} {name}", f"data version {stated} is stated, and the artifact has {has}", way_out)


def _pointers(store: ArtifactStore, manifests: dict[tuple[str, str], dict[str, Any]]) -> Iterator[Finding]:
    """Every pointer, and the raw files behind what is current."""
    for profile, asset, partition in store.pointers():
        again = f"make it again with `TAMPU_PROFILE={profile} {command(asset, partition)}`"
        try:
            pointer = store.pointer(asset, partition, profile)
        except TampuError as error:
            yield Finding(str(error), "it cannot be read", again)
            continue
        if pointer is None:
            continue
        thing = f"the pointer of {profile} to"
        yield from _reference(manifests, thing, {"asset": asset, **pointer}, again)
        manifest = manifests.get((asset, pointer["key"]))
        for file in manifest["raw_files"] if manifest else ():
            path = store.root / file["path"]
            if path.is_file() and sha256_file(path) != file["sha256"]:
                problem = f"it has other bytes than {asset} {pointer['key']} read"
                yield Finding(str(path), problem, f"put the old file back, or {again}")


def _rounds(store: ArtifactStore, manifests: dict[tuple[str, str], dict[str, Any]]) -> Iterator[Finding]:
    """Every round's record and what it pins."""
    for path in sorted((store.root / "rounds").glob("*/v*.json")):
        profile, name = path.parent.name, path.stem
        try:
            record = load_round(store, profile, name)
        except TampuError as error:
            yield Finding(str(round_path(store, profile, name)), str(error), "restore it from a copy")
            continue
        batches = [{"asset": BATCH_ASSET, **batch} for batch in record.batches]
        history = [one for many in record.history.values() for one in many]
        for one in [*batches, *record.previous["artifacts"].values(), *history]:
            way_out = "restore the artifact from a copy, or make it again under the same code and config"
            yield from _reference(manifests, f"round {name} of {profile} pins", one, way_out)


def _warehouse(store: ArtifactStore, manifests: dict[tuple[str, str], dict[str, Any]]) -> Iterator[Finding]:
    """Every file of the warehouse against the artifact that it comes from, and what is current against its rows."""
    again = "materialize the asset again, which writes it anew"
    for path in sorted((store.root / "warehouse").glob("*/*.parquet")):
        table, parts = path.parent.name, path.stem.split("@")
        if path.name == "schema.parquet":
            continue
        if table == "current":
            if len(parts) != 4 or not store.has_current(parts[0].replace("__", "/"), _partition(parts[1]), parts[2]):
                yield Finding(str(path), "there is no pointer that it stands for", "delete it")
            elif _is_later_than_pointer(store, path, parts):
                yield Finding(str(path), "it is later than what the pointer says, and so hides it", again)
            continue
        asset = parts[0].replace("__", "/")
        manifest = manifests.get((asset, parts[-1])) if len(parts) == 4 else None
        if manifest is None:
            yield Finding(str(path), "it comes from no artifact of this store", "delete it")
            continue
        artifact = _as_artifact(store, manifest, _partition(parts[1]))
        yield from _same_rows(path, lambda made=artifact, of=table, by=parts[2]: published_rows(made, of, by), again)
    for profile, asset, partition in store.pointers():
        try:
            pointer = store.pointer(asset, partition, profile)
        except TampuError:
            continue
        manifest = manifests.get((asset, pointer["key"])) if pointer else None
        if manifest is None:
            continue
        artifact = _as_artifact(store, manifest, partition)
        way_out = f"write it with `TAMPU_PROFILE={profile} {command(asset, partition)}`"
        for table in published_tables(artifact, profile):
            path = published_file(store, table, artifact, profile)
            if not path.exists():
                yield Finding(str(path), "it is missing from the warehouse", way_out)
        path = current_file(store, artifact, profile)
        yield from _same_rows(path, lambda made=artifact, by=profile: current_row(store, by, made), way_out)


def _is_later_than_pointer(store: ArtifactStore, path: Path, parts: list[str]) -> bool:
    """Whether the views would take this file's key for current instead of the pointer's; what can not be read is found elsewhere."""
    try:
        pointer = store.pointer(parts[0].replace("__", "/"), _partition(parts[1]), parts[2])
        moments = pl.read_parquet(path, glob=False)["materialized_at"]
    except (TampuError, pl.exceptions.PolarsError, OSError):
        return False
    return pointer is not None and any(moment > datetime.fromisoformat(pointer["materialized_at"]).replace(tzinfo=None) for moment in moments)


def _partition(name: str) -> str | None:
    """A partition from its part of a file's name."""
    return None if name == "_" else name


def _as_artifact(store: ArtifactStore, manifest: dict[str, Any], partition: str | None) -> Artifact:
    """An artifact from its manifest, its files unchecked."""
    path = store.folder(manifest["asset"]) / manifest["key"]
    return Artifact(manifest["asset"], partition, manifest["key"], manifest["data_version"], path, manifest)


def _same_rows(path: Path, expected: Any, way_out: str) -> Iterator[Finding]:
    """Whether a Parquet file holds the rows that it should."""
    try:
        rows = pl.read_parquet(path, glob=False)
    except FileNotFoundError:
        yield Finding(str(path), "it is missing from the warehouse", way_out)
        return
    except (pl.exceptions.PolarsError, OSError) as error:
        yield Finding(str(path), f"it cannot be read ({error})", way_out)
        return
    try:
        wanted = expected()
    except (TampuError, pl.exceptions.PolarsError, OSError):
        return  # The artifact itself is damaged, which is a finding of its own.
    # Columns that the table got later are absent from older files, and null in what the artifact gives now.
    older = [name for name in wanted.columns if name in rows.columns]
    if rows.columns != older or not rows.equals(wanted.select(older)):
        yield Finding(str(path), "its rows are not those of the artifact", way_out)
