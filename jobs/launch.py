"""Running parts of the graph in this process, for the command line: one line an asset, one clear line on failure."""

import json
import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from resources.errors import TampuError
from resources.rounds import BATCHES, ROUNDS
from resources.store import ArtifactStore

Overrides = dict[str, dict[str, Any]]


@dg.logger
def plain(init_context: dg.InitLoggerContext) -> logging.Logger:
    """Lines that assets write, on standard error; Dagster's own events stay in its event log."""
    log = logging.Logger("tampu", level=logging.INFO)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(_is_a_persons)
    log.addHandler(handler)
    return log


def _is_a_persons(record: logging.LogRecord) -> bool:
    """Keep what an asset said, without the prefix that Dagster adds. A failure is told once, by the caller."""
    meta = getattr(record, "dagster_meta", None)
    if not meta or meta.get("dagster_event") is not None or record.levelno >= logging.ERROR:
        return False
    record.exc_info = None
    record.msg, record.args = str(meta.get("orig_message", record.getMessage())), ()
    return True


def parse_overrides(pairs: Sequence[str], known: Mapping[str, set[str]]) -> Overrides:
    """`asset.key=value` settings as {asset: {key: value}}; values are JSON where they parse as such, else text.

    `known` maps assets to their config keys; unknown ones are refused by name.
    """
    overrides: Overrides = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        asset, dot, key = name.rpartition(".")
        if not equals or not dot:
            raise TampuError(f"--set {pair}: expected asset.key=value, such as reward/helpfulness.learning_rate=0.001")
        if asset not in known:
            raise TampuError(f"--set {pair}: there is no asset {asset!r} with a config; see `dagster asset list`")
        if key not in known[asset]:
            raise TampuError(f"--set {pair}: {asset} has no config key {key!r}; it has {', '.join(sorted(known[asset])) or 'none'}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        overrides.setdefault(asset, {})[key] = value
    return overrides


def config_keys() -> dict[str, set[str]]:
    """Every asset's config keys."""
    import definitions  # noqa: F401  declares every asset
    from resources.recipe import DECLARED

    return {name: set(one.config.model_fields) if one.config else set() for name, one in DECLARED.items()}


def run_assets(
    store: ArtifactStore,
    instance: dg.DagsterInstance,
    selection: Sequence[str],
    *,
    partition: str | None = None,
    overrides: Overrides | None = None,
    force: bool = False,
) -> None:
    """Materialize assets by name in this process. Raises TampuError with the first failure's message, or KeyboardInterrupt."""
    from definitions import defs

    chosen = set(selection)
    ops = {asset.replace("/", "__"): {"config": values} for asset, values in (overrides or {}).items() if asset in chosen}
    job = dg.define_asset_job(
        "tampu_run", selection=dg.AssetSelection.assets(*[name.split("/") for name in selection]), partitions_def=_partitions(selection)
    )
    merged = dg.Definitions(
        assets=defs.assets, jobs=[job], resources={"store": store}, loggers={"tampu": plain}, executor=dg.in_process_executor
    )
    resolved = merged.resolve_job_def("tampu_run")
    try:
        result = resolved.execute_in_process(
            instance=instance,
            partition_key=partition,
            run_config={"ops": ops, "loggers": {"tampu": {}}},
            raise_on_error=False,
            tags={"tampu/force": str(force).lower()},
        )
    except dg.DagsterInvalidConfigError as error:
        raise TampuError(_config_message(error)) from None
    if not result.success:
        raise TampuError(_first_failure(result))


def _partitions(selection: Sequence[str]) -> dg.PartitionsDefinition | None:
    from resources.recipe import DECLARED

    kinds = {DECLARED[name].partitions for name in selection}
    if len(kinds) != 1:
        raise TampuError("assets with and without rounds can not run together: select either the ones or the others")
    return {"round": ROUNDS, "batch": BATCHES, None: None}[kinds.pop()]


def _config_message(error: dg.DagsterInvalidConfigError) -> str:
    """The first complaint about a config in one line."""
    return "config: " + str(error.errors[0].message).replace("\n", " ") if error.errors else str(error).splitlines()[0]


def _first_failure(result: dg.ExecuteInProcessResult) -> str:
    """What went wrong first, down to its cause: an error of a body or of the run itself, or the blocking checks that failed."""
    for event in result.all_events:
        error = event.step_failure_data.error if event.is_step_failure else getattr(event.event_specific_data, "error", None)
        if error is None:
            continue
        while error.cause is not None:
            error = error.cause
        name = error.cls_name or "error"
        if name in ("KeyboardInterrupt", "DagsterExecutionInterruptedError"):
            raise KeyboardInterrupt
        text = " ".join(error.message.split()).removeprefix("resources.errors.").removeprefix(f"{name}: ")
        asset = (event.step_key or "the run").replace("__", "/")
        return text if name == "TampuError" else f"{asset}: {name}: {text[:400]}"
    failed = [one for one in result.get_asset_check_evaluations() if not one.passed and one.blocking]
    return "; ".join(f"{one.asset_key.to_user_string()}: check {one.check_name} failed: {one.description}" for one in failed) or "the run failed"
