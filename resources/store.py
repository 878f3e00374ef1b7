"""The artifact store: folders named by content that appear whole or not at all, and pointers to the current ones.

$TAMPU_HOME/artifacts/<asset>/<key>/             an artifact; manifest.json is written last
$TAMPU_HOME/artifacts/<asset>/.<key>.<pid>.tmp/  one being written; nobody reads it
$TAMPU_HOME/artifacts/<asset>/.damaged-<key>-n/  one that was found damaged, kept for a person to look at
$TAMPU_HOME/current/<profile>/<asset>/<partition or _>.json
$TAMPU_HOME/resume/<asset>/<key>/                states of a training that has not ended; gone once its artifact is there
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
from pydantic import Field

from resources.disk import alive, canonical_json, disk_troubles, fsync_path, fsync_tree, pretty_json, sha256_text, write_whole
from resources.environment import tampu_home
from resources.errors import TampuError
from resources.identity import data_version_of
from resources.locks import one_run
from resources.manifests import (
    MANIFEST,
    Artifact,
    Damaged,
    difference,
    file_entries,
    file_problems,
    natural,
    read_manifest,
    versioned_files,
)

__all__ = ["Artifact", "ArtifactStore", "natural"]


class ArtifactStore(dg.ConfigurableResource):
    """Everything made so far, below one folder; as a Dagster resource it also keeps a second run off that folder."""

    home: str = Field(
        default_factory=lambda: str(tampu_home()),
        description="Folder that holds artifacts, rounds, the warehouse and the inbox (TAMPU_HOME).",
    )

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["ArtifactStore"]:
        """Hold the home for the length of a run. Raises TampuError when another run holds it."""
        with one_run(self.root, context.run.run_id if context.run else f"pid-{os.getpid()}"):
            yield self

    @property
    def root(self) -> Path:
        """The home as an absolute path."""
        return Path(self.home).expanduser().absolute()

    # Reading

    def folder(self, asset: str) -> Path:
        """Where the artifacts of an asset lie."""
        return self.root / "artifacts" / asset

    def open(self, asset: str, key: str, partition: str | None = None) -> Artifact:
        """The artifact with this key, after the cheap check (manifest whole, every file there with its size).

        Raises TampuError, with the way to make it again, when it is absent or damaged.
        """
        path = self.folder(asset) / key
        try:
            return self.trusted(asset, key, partition)
        except Damaged as problem:
            raise TampuError(f"artifact {path} {problem}: make it again with `{command(asset, partition)}`") from None

    def trusted(self, asset: str, key: str, partition: str | None, *, rehash: bool = False) -> Artifact:
        """The artifact after the cheap check, or a full one with `rehash`. Raises Damaged."""
        path = self.folder(asset) / key
        manifest = read_manifest(path)
        if manifest["asset"] != asset or manifest["key"] != key:
            raise Damaged(f"has the manifest of {manifest['asset']} {manifest['key']}")
        for problem in file_problems(path, manifest, rehash=rehash):
            raise Damaged(problem)
        return Artifact(asset, partition, key, manifest["data_version"], path, manifest)

    def keys_of(self, asset: str) -> list[str]:
        """Names of the folders that claim to be complete artifacts of `asset`, sorted."""
        folder = self.folder(asset)
        if not folder.is_dir():
            return []
        return sorted(path.name for path in folder.iterdir() if _is_artifact(path))

    def everything(self) -> list[tuple[str, str]]:
        """(asset, key) of every folder that claims to be complete, sorted."""
        found = []
        top = self.root / "artifacts"
        for parent, folders, _ in os.walk(top):
            folders[:] = [name for name in folders if not name.startswith(".")]
            here = Path(parent)
            for name in [name for name in folders if _is_artifact(here / name)]:
                folders.remove(name)
                found.append((here.relative_to(top).as_posix(), name))
        return sorted(found)

    # Pointers

    def _pointer(self, asset: str, partition: str | None, profile: str) -> Path:
        return self.root / "current" / profile / asset / f"{partition or '_'}.json"

    def pointer(self, asset: str, partition: str | None, profile: str) -> dict[str, str] | None:
        """{key, data_version, materialized_at} of the latest materialization, or None."""
        path = self._pointer(asset, partition, profile)
        try:
            content = json.loads(path.read_text())
            return {name: str(content[name]) for name in ("key", "data_version", "materialized_at")}
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            raise TampuError(f"{path} is damaged: make it again with `{command(asset, partition)}`") from None

    def pointers(self, profile: str | None = None) -> list[tuple[str, str, str | None]]:
        """(profile, asset, partition) of everything that is current, of one profile or of all, sorted."""
        top = self.root / "current"
        found = []
        for path in top.rglob("*.json"):
            parts = path.relative_to(top).with_suffix("").parts
            if not path.name.startswith(".") and profile in (None, parts[0]):
                found.append((parts[0], "/".join(parts[1:-1]), None if parts[-1] == "_" else parts[-1]))
        return sorted(found, key=lambda item: (item[0], item[1], natural(item[2])))

    def partitions(self, asset: str, profile: str) -> list[str]:
        """Partitions of `asset` that are current in `profile`, v2 before v10."""
        return [part for _, name, part in self.pointers(profile) if name == asset and part is not None]

    def has_current(self, asset: str, partition: str | None, profile: str) -> bool:
        """Whether the asset was ever materialized under this profile."""
        return self._pointer(asset, partition, profile).is_file()

    def current(self, asset: str, partition: str | None, profile: str) -> Artifact:
        """The latest materialization under `profile`.

        Raises TampuError saying how to make it when there is none; one of another profile is refused by name.
        """
        pointed = self.pointer(asset, partition, profile)
        if pointed is not None:
            return self.open(asset, pointed["key"], partition)
        name = f"{asset}[{partition}]" if partition else asset
        others = sorted({other for other, one, part in self.pointers() if (one, part) == (asset, partition)})
        if others:
            raise TampuError(
                f"{name} exists under the profile {others[0]!r} only, and this is {profile!r}: "
                f"make it with `TAMPU_PROFILE={profile} {command(asset, partition)}`"
            )
        raise TampuError(f"{name} has not been made yet under the profile {profile!r}: make it with `{command(asset, partition)}`")

    def point(self, artifact: Artifact, profile: str) -> dict[str, str]:
        """Make `artifact` the current one of its asset and partition; returns the pointer's content.

        Of two materializations the later one has the later time, even where the clock was set back in between.
        """
        moment = datetime.now(UTC)
        with suppress(TampuError):  # a damaged pointer is replaced
            if before := self.pointer(artifact.asset, artifact.partition, profile):
                moment = max(moment, datetime.fromisoformat(before["materialized_at"]) + timedelta(microseconds=1))
        content = {
            "key": artifact.key,
            "data_version": artifact.data_version,
            "materialized_at": moment.isoformat(timespec="microseconds"),
        }
        with disk_troubles(self.root):
            write_whole(self._pointer(artifact.asset, artifact.partition, profile), pretty_json(content).encode())
        return content

    # Writing

    def find(self, asset: str, identity: str, partition: str | None, profile: str) -> tuple[Artifact | None, list[str]]:
        """A complete artifact of this identity, and a sentence for each damaged one that was moved out of its place.

        Where recomputing once gave other bytes there are several; the current one is taken, else the latest.
        """
        variants = self._variant_keys(asset, identity)
        said: list[str] = []
        try:
            pointed = self.pointer(asset, partition, profile)
        except TampuError:
            pointed = None
            said.append(f"the pointer to {asset} was damaged and is written anew")
        if pointed and pointed["key"] in variants:
            variants.remove(pointed["key"])
            variants.insert(0, pointed["key"])
        for key in variants:
            try:
                return self.trusted(asset, key, partition), said
            except Damaged as problem:
                said.append(self.set_aside(asset, key, problem))
        return None, said

    def set_aside(self, asset: str, key: str, problem: Damaged) -> str:
        """Move a damaged artifact out of every reader's way, keeping it for a person; returns a sentence about it."""
        folder = self.folder(asset)
        number = 1
        while (aside := folder / f".damaged-{key}-{number}").exists():
            number += 1
        with disk_troubles(self.root):
            os.rename(folder / key, aside)
            fsync_path(folder)
        return f"artifact {asset} {key} {problem}: moved to {aside}"

    def begin(self, asset: str, identity: str) -> Path:
        """A new empty folder to write into; folders that dead processes left behind for this asset are removed."""
        folder = self.folder(asset)
        with disk_troubles(self.root):
            folder.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(".*.tmp"):
                pid = path.name.removesuffix(".tmp").rpartition(".")[2]
                if path.is_dir() and (pid == str(os.getpid()) or not alive(pid)):
                    shutil.rmtree(path)
            temporary = folder / f".{identity}.{os.getpid()}.tmp"
            temporary.mkdir()
        return temporary

    def states(self, asset: str, identity: str) -> Path:
        """Where a training keeps what it needs to go on after an interruption; it makes the folder when it needs one."""
        return self.root / "resume" / asset / identity

    def forget_states(self, asset: str, identity: str) -> None:
        """Remove the states of a training, with the folders above them that are left empty."""
        folder = self.states(asset, identity)
        if not folder.exists():
            return
        shutil.rmtree(folder)
        for above in list(folder.parents)[: len(Path(asset).parts) + 1]:
            if any(above.iterdir()):
                break
            above.rmdir()

    def discard(self, temporary: Path) -> None:
        """Remove what was being written."""
        shutil.rmtree(temporary, ignore_errors=True)

    def commit(self, temporary: Path, manifest: dict[str, Any], partition: str | None) -> tuple[Artifact, list[str]]:
        """Turn a written folder into an artifact and read it back.

        `manifest` has everything but key, data_version, files and differs_from. When the same identity exists with the
        same bytes, that artifact is returned and the new folder dropped; with other bytes both are kept, the new one as
        `<identity>-2` and so on. The second value says in sentences what was found damaged or different.
        """
        asset, identity = manifest["asset"], manifest["identity"]
        with disk_troubles(self.root):
            files = file_entries(temporary)
            version = data_version_of(versioned_files({**manifest, "files": files}))
            kept, said = self._variants(asset, identity, partition)
            for same in (one for one in kept if one.data_version == version):
                self.discard(temporary)
                return same, said
            before = kept[0].manifest if kept else self._last_damaged(asset, identity)
            differs_from = None
            if before is not None and before["data_version"] != version:
                differs_from = difference(before, {**manifest, "files": files})
                names, old = ", ".join(differs_from["files"]), before["data_version"]
                said.append(
                    f"recomputing {asset} {identity[:8]} gave other bytes than before in {names} (data version {version[:8]}, before {old[:8]})"
                )
            key = f"{identity}-{max(_variant(one.key) for one in kept) + 1}" if kept else identity
            complete = manifest | {"key": key, "data_version": version, "files": files, "differs_from": differs_from}
            complete["manifest_sha256"] = sha256_text(canonical_json(complete))
            fsync_tree(temporary)
            write_whole(temporary / MANIFEST, pretty_json(complete).encode())
            os.rename(temporary, self.folder(asset) / key)
            fsync_path(self.folder(asset))
        return self.open(asset, key, partition), said

    def _variants(self, asset: str, identity: str, partition: str | None) -> tuple[list[Artifact], list[str]]:
        """Intact artifacts of one identity, hashed in full, the latest first; damaged ones are moved aside."""
        kept, said = [], []
        for key in self._variant_keys(asset, identity):
            try:
                kept.append(self.trusted(asset, key, partition, rehash=True))
            except Damaged as problem:
                said.append(self.set_aside(asset, key, problem))
        return kept, said

    def _variant_keys(self, asset: str, identity: str) -> list[str]:
        """Folders of one identity, the latest first."""
        return sorted((key for key in self.keys_of(asset) if key.partition("-")[0] == identity), key=_variant, reverse=True)

    def _last_damaged(self, asset: str, identity: str) -> dict[str, Any] | None:
        """The manifest of the last damaged artifact of this identity, where it is still readable."""
        asides = self.folder(asset).glob(f".damaged-{identity}*")
        for path in sorted(asides, key=lambda path: path.stat().st_mtime_ns, reverse=True):
            try:
                return read_manifest(path)
            except Damaged:
                continue
        return None


def _is_artifact(path: Path) -> bool:
    """Whether a folder is in an artifact's place: named by a key, or holding a manifest."""
    identity, _, variant = path.name.partition("-")
    named = len(identity) == 20 and all(letter in "0123456789abcdef" for letter in identity)
    return path.is_dir() and not path.name.startswith(".") and named and (variant == "" or variant.isdigit())


def _variant(key: str) -> int:
    """1 for `<identity>`, n for `<identity>-n`."""
    return int(key.partition("-")[2] or 1)


def command(asset: str, partition: str | None) -> str:
    """The command that makes an asset, for messages."""
    is_round = partition is not None and partition.startswith("v") and partition[1:].isdigit()
    return f"tampu run --select {asset}" + (f" --round {partition}" if is_round else "")
