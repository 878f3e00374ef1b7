"""One materialization: look up what an asset reads, compute its key, reuse or make the artifact, tell the world."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg

from model.memory import release_freed_memory
from resources import environment, identity
from resources.declaration import Declaration
from resources.disk import disk_troubles, sha256_file
from resources.errors import TampuError
from resources.manifests import Artifact
from resources.pins import pinned_by_key
from resources.rounds import BATCH_ASSET, Round, load_round
from resources.run import Input, Request, Run
from resources.store import ArtifactStore
from resources.torchrun import pipes_session
from resources.warehouse import publish

# What Dagster shows of a manifest; the rest of it is shown as metadata of its own.
OUTLINE = (
    "asset",
    "partition",
    "key",
    "data_version",
    "code_version",
    "applied",
    "inputs",
    "cited",
    "raw_files",
    "config",
    "seed",
    "git",
    "packages",
    "hardware",
    "created_at",
    "seconds",
    "peak_memory_bytes",
    "carbon",
    "files",
    "differs_from",
)


@dataclass(frozen=True)
class _Plan:
    """Everything that is known before an artifact is made or reused."""

    declared: Declaration
    store: ArtifactStore
    profile: str
    partition: str | None
    round: Round | None
    applied: bool
    config: dict[str, Any]
    inputs: list[Input]
    files: Mapping[str, Path]
    hashes: dict[str, str]
    identity: str


def materialize(declared: Declaration, context: dg.AssetExecutionContext, config: Any) -> dg.MaterializeResult:
    """Reuse or make the artifact, point to it, publish its rows, and tell Dagster."""
    store: ArtifactStore = context.resources.store
    with disk_troubles(store.root):
        plan = _plan(declared, store, context.partition_key if declared.partitions else None, config)
        found: Artifact | None = None
        said: list[str] = []
        if not environment.forced(dict(context.run.tags)):
            found, said = store.find(declared.asset, plan.identity, plan.partition, plan.profile)
        elif context.retry_number == 0:
            store.forget_states(declared.asset, plan.identity)
        for line in said:
            context.log.warning(line)
        made, differing = (found, []) if found else _make(plan, context, config)
        store.forget_states(declared.asset, plan.identity)
        release_freed_memory()
        for line in differing:
            context.log.warning(line)
        seconds = made.manifest["seconds"]
        label = declared.asset + (f"[{plan.partition}]" if plan.partition else "")
        verb = "reused" if found else "made"
        context.log.info(f"{verb} {label} {made.key[:4]}… {'made in' if found else 'in'} {seconds:.1f} s")
        store.point(made, plan.profile)
        publish(store, made, plan.profile)
    return _result(made, plan.profile, reused=found is not None, warnings=[*said, *differing])


def _plan(declared: Declaration, store: ArtifactStore, partition: str | None, config: Any) -> _Plan:
    """Look up what the asset reads and compute its key."""
    profile = environment.active_profile()
    if partition is not None and not environment.NAME.fullmatch(partition):
        raise TampuError(f"{declared.asset} has a partition {partition!r}: {environment.NAME_RULE}")
    current = load_round(store, profile, partition) if declared.partitions == "round" and partition else None
    literal = {} if config is None else config.model_dump(mode="json")
    applied = not (declared.starts_at_round and current is not None and current.number < literal["from_round"])
    inputs = _inputs(declared, store, profile, partition, current, literal) if applied else []
    for one in inputs:
        if one.artifact.failed_check:
            raise TampuError(
                f"{declared.asset} cannot use {one.artifact.label}: its blocking check {one.artifact.failed_check!r} "
                f"failed; mend the cause and make {one.artifact.asset} again"
            )
    request = Request(declared.asset, partition, profile, config, store.root)
    files = dict(declared.files(request)) if declared.files and applied else {}
    hashes = {name: _raw_hash(declared.asset, name, path) for name, path in sorted(files.items())}
    try:
        key = identity.key_of(
            asset=declared.asset,
            code=declared.code,
            config=identity.counted(literal, getattr(declared.config, "NOT_IDENTITY", ())),
            inputs=[(one.artifact.asset, one.artifact.partition, one.artifact.data_version) for one in inputs],
            files=hashes,
            applied=applied,
        )
    except ValueError as error:
        raise TampuError(f"the config of {declared.asset} has a value that is no plain number or text: {error}") from None
    return _Plan(declared, store, profile, partition, current, applied, literal, inputs, files, hashes, key)


def _raw_hash(asset: str, name: str, path: Path) -> str:
    """SHA-256 of a raw file. Raises TampuError when it is not there."""
    if not path.is_file():
        raise TampuError(f"{asset} reads the raw file {name}, but {path} does not exist: put it there")
    return sha256_file(path)


def _inputs(
    declared: Declaration, store: ArtifactStore, profile: str, partition: str | None, current: Round | None, config: Mapping[str, Any]
) -> list[Input]:
    """Every artifact that the asset reads."""
    inputs = []
    for parent in declared.parents:
        if parent not in declared.registry:
            raise TampuError(f"{declared.asset} has the parent {parent!r}, which is not declared: import its module")
        kind = declared.registry[parent].partitions
        if kind is None:
            inputs.append(Input("parent", parent, store.current(parent, None, profile)))
        elif kind == "batch" and current is not None:
            if parent != BATCH_ASSET:
                raise TampuError(f"{declared.asset} has rounds, and rounds pin batches of {BATCH_ASSET} only, not {parent}")
            for batch in current.batches:
                inputs.append(Input("batch", parent, store.open(parent, batch["key"], batch["batch"])))
        elif declared.partitions == kind:
            inputs.append(Input("parent", parent, store.current(parent, partition, profile)))
        elif declared.partitions is None:
            for part in store.partitions(parent, profile):
                inputs.append(Input("parent", parent, store.current(parent, part, profile)))
        else:
            raise TampuError(f"{declared.asset} has one partition a {declared.partitions}, its parent {parent} one a {kind}")
    if current is not None:
        for asset in declared.previous:
            if (field := declared.pins.get(asset)) is not None and config[field]:
                inputs.append(Input("previous", asset, pinned_by_key(store, asset, config[field], profile)))
            elif (pinned := current.pinned(asset)) is not None:
                inputs.append(Input("previous", asset, _open_pinned(store, pinned)))
        for asset in declared.history:
            inputs.extend(
                Input("history", asset, _open_pinned(store, pinned)) for pinned in current.history.get(asset, ())
            )  # older records pin less
    return inputs


def _open_pinned(store: ArtifactStore, pinned: Mapping[str, str | None]) -> Artifact:
    """The artifact that a round's record names."""
    return store.open(str(pinned["asset"]), str(pinned["key"]), pinned["partition"])


def _make(plan: _Plan, context: dg.AssetExecutionContext, config: Any) -> tuple[Artifact, list[str]]:
    """Run the body in a temporary folder and turn that into the artifact."""
    declared, store = plan.declared, plan.store
    directory = store.begin(declared.asset, plan.identity)
    run = Run(
        asset=declared.asset,
        partition=plan.partition,
        profile=plan.profile,
        round=plan.round,
        directory=directory,
        inputs=plan.inputs,
        declared={
            "parents": frozenset(declared.parents),
            "previous": frozenset(declared.previous),
            "history": frozenset(declared.history),
        },
        checks=declared.checks,
        files=plan.files,
        resources=context.resources,
        states=store.states(declared.asset, plan.identity),
        home=store.root,
        say=context.log.info,
        pipes=pipes_session(context),
    )
    meter = environment.Meter()
    try:
        if plan.applied:
            seen = {name: path.stat() for name, path in plan.files.items()}
            declared.body(run) if declared.config is None else declared.body(run, config)
            _check_unchanged(declared.asset, plan.files, seen)
        else:
            _not_in_this_round(run, plan.config["from_round"])
        run.finish()
        return store.commit(directory, _manifest(plan, run, meter.read()), plan.partition)
    finally:
        store.discard(directory)


def _check_unchanged(asset: str, files: Mapping[str, Path], seen: Mapping[str, Any]) -> None:
    """A raw file that changed under the reader would make the key a lie."""
    for name, path in files.items():
        before, now = seen[name], path.stat()
        if (before.st_size, before.st_mtime_ns, before.st_ino) != (now.st_size, now.st_mtime_ns, now.st_ino):
            raise TampuError(f"the raw file {path} changed while {asset} read it: run again")


def _not_in_this_round(run: Run, from_round: int) -> None:
    """The artifact of an asset that starts at a later round: a reason, and every check passed."""
    reason = f"{run.asset} starts at round v{from_round}"
    run.write_json("applied.json", {"applied": False, "reason": reason})
    run.note("not in this round", f"{reason}.")
    for name in run.checks:
        run.check(name, passed=True, description="not in this round")


def _manifest(plan: _Plan, run: Run, used: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that is known of an artifact but its files."""
    return {
        "asset": plan.declared.asset,
        "partitions": plan.declared.partitions,
        "partition": plan.partition,
        "profile": plan.profile,
        "identity": plan.identity,
        "format": identity.FORMAT,
        "code_version": plan.declared.code,
        "applied": plan.applied,
        "inputs": [{"relation": one.relation, "name": one.name, **one.artifact.reference()} for one in plan.inputs],
        "cited": run.cited,
        "raw_files": [_raw_entry(name, digest, plan.files[name], plan.store) for name, digest in plan.hashes.items()],
        "config": plan.config,
        "not_identity": list(getattr(plan.declared.config, "NOT_IDENTITY", ())),
        "seed": plan.config.get("seed"),
        "git": environment.git_state(),
        "packages": environment.package_versions(),
        "hardware": environment.hardware(),
        "created_at": datetime.now(UTC).isoformat(timespec="microseconds"),
        **used,
        "carbon": [*used["carbon"], *run.devices],
        "metrics": run.metrics,
        "notes": run.notes,
        "previews": run.previews,
        "plots": run.plots,
        "tables": sorted(run.tables),
        "unversioned": sorted(run.unversioned),
        "checks": list(run.reported.values()),
    }


def _raw_entry(name: str, digest: str, path: Path, store: ArtifactStore) -> dict[str, Any]:
    """A raw file as the manifest has it; a path below the home is relative, so that a moved home stays right."""
    absolute = path.absolute()
    place = absolute.relative_to(store.root) if absolute.is_relative_to(store.root) else absolute
    return {"name": name, "sha256": digest, "bytes": path.stat().st_size, "path": str(place)}


def _result(made: Artifact, profile: str, *, reused: bool, warnings: Sequence[str]) -> dg.MaterializeResult:
    """What Dagster shows, the same for an artifact that was made and for one that was reused."""
    manifest = made.manifest
    metadata: dict[str, Any] = {
        "key": made.key,
        "data_version": made.data_version,
        "code_version": manifest["code_version"],
        "profile": profile,
        "reused": reused,
        "applied": made.applied,
        "seconds": manifest["seconds"],
        "path": dg.MetadataValue.path(str(made.path)),
        "manifest": dg.MetadataValue.json({name: manifest[name] for name in OUTLINE}),
    }
    if warnings:
        metadata["warning"] = dg.MetadataValue.md("\n\n".join(warnings))
    metadata |= made.metrics
    # A number, a note and a table may have one name; Dagster's metadata has one value a name.
    for kind, texts in (("note", manifest["notes"]), ("table", manifest["previews"])):
        for name, text in texts.items():
            metadata[name if name not in metadata else f"{name} ({kind})"] = dg.MetadataValue.md(text)
    for name in manifest["plots"]:
        picture = base64.b64encode(made.file(f"plots/{name}.png").read_bytes()).decode()
        metadata[f"plot {name}"] = dg.MetadataValue.md(f"![{name}](data:image/png;base64,{picture})")
    results = [
        dg.AssetCheckResult(
            check_name=one["name"],
            passed=one["passed"],
            severity=dg.AssetCheckSeverity.ERROR if one["blocking"] else dg.AssetCheckSeverity.WARN,
            description=one["description"],
            metadata=one["numbers"],
        )
        for one in manifest["checks"]
    ]
    return dg.MaterializeResult(data_version=dg.DataVersion(made.data_version), metadata=metadata, check_results=results)
