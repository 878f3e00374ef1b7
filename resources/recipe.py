"""The `@artifact` decorator: a plain function that makes something becomes a Dagster asset with identity and lineage.

    @artifact("tokenizer/sentencepiece", parents=["corpus/filtered"], kinds={"sentencepiece"}, owners=["team:data"])
    def sentencepiece(run: Run, config: TokenizerConfig) -> None:
        '''What it is, in Markdown; shown in Dagster.'''
        documents = run.parent("corpus/filtered").frame("documents.parquet")
        ...

What happens when the asset is materialized: parents are looked up (never another profile's), the key is computed, a
complete artifact of that key is reused, otherwise the body writes into a temporary folder that becomes the artifact;
then it is pointed to as current, its rows are published, and Dagster is told the same facts either way.
"""

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import dagster as dg

from resources import environment, identity
from resources.declaration import DECLARED, Body, Declaration, Files, Partitions, validate
from resources.errors import TampuError
from resources.manifests import Artifact
from resources.materialization import materialize
from resources.rounds import BATCH_ASSET, BATCHES, ROUNDS
from resources.run import Check, ExecutionConfig, Request, Run

__all__ = ["DECLARED", "Artifact", "Check", "Declaration", "ExecutionConfig", "Request", "Run", "artifact"]


def artifact(
    key: str,
    *,
    parents: Sequence[str] = (),
    partitions: Partitions = None,
    previous: Sequence[str] = (),
    history: Sequence[str] = (),
    pins: Mapping[str, str] | None = None,
    starts_at_round: bool = False,
    files: Files | None = None,
    kinds: Iterable[str] = (),
    owners: Sequence[str] = (),
    checks: Sequence[Check] = (),
    pool: str | None = None,
    tags: Mapping[str, str] | None = None,
    resources: Iterable[str] = (),
    automation_condition: dg.AutomationCondition | None = None,
    retry_policy: dg.RetryPolicy | None = None,
    root: Path = environment.REPOSITORY,
    registry: dict[str, Declaration] = DECLARED,
) -> Callable[[Body], dg.AssetsDefinition]:
    """A decorator that makes a Dagster asset of `body(run)` or `body(run, config)`.

    `parents` are asset names; for an asset with rounds, a parent with rounds means the same round and
    `preferences/batches` the round's batches; for one without, a partitioned parent means all its partitions.
    `previous` and `history` are read from the round's record and are no edges in Dagster. `pins` maps one of
    `previous` to a text field of the config: the key of an artifact to read in its place, where it is not empty. With `starts_at_round` the
    config has an int field `from_round`, and an earlier round gets an artifact that only says so. `files(request)`
    names raw files outside the store, {stable name: path}, whose SHA-256 enters the key. `resources` are keys of
    further Dagster resources for `run.resources`. `root` is the repository whose code counts, and `registry` where the
    declaration is kept and its parents' are looked up.
    Raises TampuError when the declaration contradicts itself.
    """

    def decorate(body: Body) -> dg.AssetsDefinition:
        source = inspect.getsourcefile(body)
        if source is None:
            raise TampuError(f"{key}: the function {body.__name__} has no source file, so its code cannot be identified")
        declared = Declaration(
            asset=key,
            parents=tuple(parents),
            partitions=partitions,
            previous=tuple(previous),
            history=tuple(history),
            pins=dict(pins or {}),
            starts_at_round=starts_at_round,
            files=files,
            checks={check.name: check for check in checks},
            config=_config_class(key, body),
            body=body,
            code=identity.code_version(Path(source).resolve(), root),
            registry=registry,
        )
        validate(declared)
        registry[key] = declared
        asset_key = dg.AssetKey(key.split("/"))
        return dg.asset(
            key=asset_key,
            group_name=key.split("/")[0],
            description=inspect.getdoc(body),
            deps=[_dependency(declared, parent) for parent in declared.parents],
            partitions_def={"round": ROUNDS, "batch": BATCHES, None: None}[partitions],
            kinds=set(kinds),
            owners=list(owners),
            tags=dict(tags or {}),
            code_version=declared.code[:12],
            check_specs=[
                dg.AssetCheckSpec(check.name, asset=asset_key, description=check.description, blocking=check.blocking) for check in checks
            ],
            pool=pool,
            automation_condition=automation_condition,
            retry_policy=retry_policy,
            required_resource_keys={"store", *resources},
        )(_step(declared))

    return decorate


def _config_class(key: str, body: Body) -> type[dg.Config] | None:
    """The class that annotates the body's parameter `config`, or None when it takes `run` alone."""
    names = list(inspect.signature(body).parameters)
    if names == ["run"]:
        return None
    if names != ["run", "config"]:
        raise TampuError(f"{key}: the body takes (run) or (run, config), not ({', '.join(names)})")
    annotation = body.__annotations__.get("config")
    if isinstance(annotation, str):
        annotation = typing.get_type_hints(body)["config"]
    if not (isinstance(annotation, type) and issubclass(annotation, dg.Config)):
        raise TampuError(f"{key}: annotate config with a class derived from dagster.Config, not {annotation!r}")
    return annotation


def _dependency(declared: Declaration, parent: str) -> dg.AssetDep:
    """Dagster's edge to a parent; rounds and batches are two sets of partitions, which Dagster cannot match."""
    key = dg.AssetKey(parent.split("/"))
    if parent == BATCH_ASSET and declared.partitions == "round":
        return dg.AssetDep(key, partition_mapping=dg.AllPartitionMapping())
    return dg.AssetDep(key)


def _step(declared: Declaration) -> Callable[..., dg.MaterializeResult]:
    """The function that Dagster calls, with the annotations that it reads."""

    def with_config(context, config):  # type: ignore[no-untyped-def]
        return materialize(declared, context, config)

    def without_config(context):  # type: ignore[no-untyped-def]
        return materialize(declared, context, None)

    step = without_config if declared.config is None else with_config
    step.__annotations__ = {"context": dg.AssetExecutionContext, "return": dg.MaterializeResult}
    if declared.config is not None:
        step.__annotations__["config"] = declared.config
    step.__name__ = step.__qualname__ = declared.asset.replace("/", "__")
    return step
