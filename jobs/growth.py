"""When things run: new files of the inbox become batches, enough new comparisons open the next round, a weekly schedule backs it up.

Both tests are level-triggered: they compare what is there with what was used, so an event between two ticks can not be lost
(an edge-triggered condition loses updates that come while the downstream is running).
"""

import os
from dataclasses import dataclass

import dagster as dg

from jobs.collect import collect
from jobs.pipelines import accept_batch, refresh
from resources.errors import TampuError
from resources.inbox import inbox_files
from resources.profiles import active
from resources.rounds import BATCHES, ROUNDS, load_round, open_round, round_names
from resources.store import ArtifactStore

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
MOST_ATTEMPTS = 3


@dataclass(frozen=True)
class Growth:
    """Comparisons accepted so far, and those that the latest round stands on."""

    accepted: int
    used: int

    @property
    def new(self) -> int:
        return self.accepted - self.used


def growth(store: ArtifactStore, profile: str) -> Growth:
    """Counts from the store's own records; batches that a blocking check refuses do not count."""
    sound = [store.current("preferences/batches", batch, profile) for batch in store.partitions("preferences/batches", profile)]
    accepted = {batch.key: int(batch.metrics["accepted"]) for batch in sound if batch.failed_check is None}
    names = round_names(store, profile)
    used = {batch["key"] for batch in load_round(store, profile, names[-1]).batches} if names else set()
    return Growth(sum(accepted.values()), sum(count for key, count in accepted.items() if key in used))


def is_accepted(store: ArtifactStore, profile: str, batch: str, digest: str) -> bool:
    """Whether a file of the inbox has become a batch. Raises TampuError when its content (SHA-256 `digest`) changed since."""
    if not store.has_current("preferences/batches", batch, profile):
        return False
    if store.current("preferences/batches", batch, profile).manifest["raw_files"][0]["sha256"] != digest:
        raise TampuError(f"inbox file {batch}.jsonl changed after it was accepted: restore it, and put new rows into a new file")
    return True


@dataclass(frozen=True)
class Waiting:
    """Files of the inbox that are no batch yet (name → SHA-256), how many there are in all, and what is wrong with others."""

    new: dict[str, str]
    files: int
    copies: list[str]
    problems: list[str]


def waiting(store: ArtifactStore, profile: str) -> Waiting:
    """What the inbox holds beside its batches. A file with the content of another one is no batch of its own."""
    found, problems = inbox_files(store.root)
    batch_of: dict[str, str] = {}
    rest: dict[str, str] = {}
    for batch, digest in found.items():
        try:
            if is_accepted(store, profile, batch, digest):
                batch_of.setdefault(digest, batch)
            else:
                rest[batch] = digest
        except TampuError as error:
            problems.append(str(error))
    new: dict[str, str] = {}
    copies = []
    for batch, digest in rest.items():
        if digest in batch_of:
            copies.append(f"{batch}.jsonl has the content of {batch_of[digest]}.jsonl and is no batch of its own")
        else:
            batch_of[digest] = batch
            new[batch] = digest
    return Waiting(new, len(found), copies, problems)


@dg.sensor(
    job=accept_batch,
    minimum_interval_seconds=30,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Every new file of the inbox becomes a partition of preferences/batches, once. A file that changed is refused.",
)
def inbox(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    store = ArtifactStore()
    profile = active().name
    inside = waiting(store, profile)
    requests, failed = [], []
    for batch, digest in inside.new.items():
        attempts = _failures(context.instance, accept_batch.name, batch)
        if attempts < MOST_ATTEMPTS:
            requests.append(dg.RunRequest(run_key=f"batch/{profile}/{batch}/{digest}/{attempts}", partition_key=batch))
        else:
            failed.append(f"{batch}.jsonl failed {attempts} times: see its runs")
    if requests:
        names = [request.partition_key for request in requests if request.partition_key]
        return dg.SensorResult(dynamic_partitions_requests=[BATCHES.build_add_request(names)], run_requests=requests)
    # Only now, so that one bad file keeps no good one waiting.
    if inside.problems or failed:
        raise TampuError("; ".join([*inside.problems, *failed]))
    return dg.SkipReason("; ".join([f"{inside.files} files in the inbox, all accepted or under way", *inside.copies]))


def _failures(instance: dg.DagsterInstance, job: str, partition: str) -> int:
    """Runs of a job that failed for a partition."""
    wanted = dg.RunsFilter(job_name=job, statuses=[dg.DagsterRunStatus.FAILURE], tags={"dagster/partition": partition})
    return len(instance.get_runs(wanted))


def next_step(
    context: dg.SensorEvaluationContext | dg.ScheduleEvaluationContext, store: ArtifactStore, least: int
) -> dg.RunRequest | dg.SkipReason:
    """The run that is due, if any: the latest round while it is unfinished, else a new round once `least` comparisons are new.

    Nothing is requested while a refresh runs. A round that failed is tried `MOST_ATTEMPTS` times and then left visible as failed.
    """
    profile = active().name
    running = context.instance.get_runs(dg.RunsFilter(job_name=refresh.name, statuses=UNFINISHED), limit=1)
    if running:
        return dg.SkipReason(f"a refresh is under way (run {running[0].run_id[:8]})")
    names = round_names(store, profile)
    if names and not store.has_current("evaluation/report", names[-1], profile):
        failed = _failures(context.instance, refresh.name, names[-1])
        if failed >= MOST_ATTEMPTS:
            return dg.SkipReason(f"round {names[-1]} failed {failed} times: see its runs, then materialize it by hand")
        stopped = dg.RunsFilter(job_name=refresh.name, statuses=[dg.DagsterRunStatus.CANCELED], tags={"dagster/partition": names[-1]})
        if context.instance.get_runs(stopped, limit=1):
            return dg.SkipReason(f"round {names[-1]} was stopped by a person: materialize it by hand to go on")
        return dg.RunRequest(run_key=f"round/{profile}/{names[-1]}/{failed}", partition_key=names[-1])
    counts = growth(store, profile)
    if counts.new < least:
        return dg.SkipReason(f"{counts.new} comparisons are new, a round is opened at {least}")
    if not names and not store.has_current("sft/model", None, profile):
        return dg.SkipReason("there is no sft/model yet: materialize the foundation job first")
    opened = open_round(store, profile)
    return dg.RunRequest(run_key=f"round/{profile}/{opened.round}/0", partition_key=opened.round)


@dg.sensor(
    job=refresh,
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Opens the next round when enough comparisons are new, and starts its refresh.",
)
def preference_growth(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
    step = next_step(context, ArtifactStore(), active().growth_threshold)
    if isinstance(step, dg.SkipReason):
        return step
    return dg.SensorResult(dynamic_partitions_requests=[ROUNDS.build_add_request([str(step.partition_key)])], run_requests=[step])


@dg.schedule(
    job=refresh,
    cron_schedule="0 3 * * 1",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every Monday at 03:00: a round of whatever is new, however little.",
)
def weekly(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    step = next_step(context, ArtifactStore(), 1)
    if isinstance(step, dg.RunRequest):
        context.instance.add_dynamic_partitions(ROUNDS.name or "rounds", [str(step.partition_key)])
    return step


class CollectConfig(dg.Config):
    """As `tampu collect`."""

    models: list[str] = ["sft/model", "sft/model:first_epoch"]
    week: int = 1


@dg.op(description="Samples two model variants on training prompts, has the answers rated, drops the file into the inbox.")
def sample_and_rate(context: dg.OpExecutionContext, config: CollectConfig, store: ArtifactStore) -> None:
    if len(config.models) != 2:
        raise TampuError(f"models = {config.models}: two variants are compared, name two")
    made = collect(store, models=(config.models[0], config.models[1]), week=config.week)
    context.log.info(f"batch {made.batch}: {made.comparisons} comparisons" + (" (already there)" if made.reused else ""))


@dg.job(description="Collect a week of preferences from two model variants with the simulated annotator.", name="collect")
def collect_preferences() -> None:
    sample_and_rate()


def dagster_home(store: ArtifactStore) -> str:
    """`$TAMPU_HOME/dagster` with a `dagster.yaml`: telemetry and the community pop-up off, one run at a time."""
    folder = store.root / "dagster"
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "dagster.yaml"
    if not settings.exists():
        settings.write_text(
            "telemetry: {enabled: false}\nnux: {enabled: false}\n"
            "concurrency:\n  pools: {default_limit: 1}\n  runs: {max_concurrent_runs: 1}\n"
            "run_monitoring: {enabled: true, start_timeout_seconds: 180}\n"
            "retention:\n  sensor: {purge_after_days: {skipped: 1, failure: 7, success: 30}}\n"
            "  schedule: {purge_after_days: 90}\n"
        )
    os.environ["DAGSTER_HOME"] = str(folder)
    return str(folder)
