"""When things run: ticks of the sensors and the schedule on an ephemeral instance."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from conftest import Demo

from jobs.growth import MOST_ATTEMPTS, growth, inbox, preference_growth, weekly
from jobs.pipelines import refresh
from jobs.stages import accept_inbox, open_next
from resources.errors import TampuError
from resources.inbox import batch_file, place
from resources.rounds import load_round, round_names
from resources.store import ArtifactStore


def new_file(store: ArtifactStore, name: str, count: int, seed: int = 0) -> None:
    """Place `count` comparisons that are the first week's with other answers."""
    lines = batch_file(store.root, "week-1").read_text().splitlines()
    chance = random.Random(seed)
    rows = []
    for number in range(count):
        row = json.loads(chance.choice(lines))
        row["responses"][0]["text"] += f" {seed} {number}"
        rows.append(json.dumps(row))
    place(store.root, name, ("\n".join(rows) + "\n").encode())


def sensor_tick(sensor: dg.SensorDefinition, instance: dg.DagsterInstance) -> dg.SensorResult | dg.SkipReason:
    return sensor(dg.build_sensor_context(instance=instance))  # type: ignore[return-value]


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance of its own, with a folder: a schedule's context needs one that it can name."""
    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as made:
        made.add_dynamic_partitions("rounds", ["v1", "v2"])
        yield made


def test_a_new_file_becomes_a_batch_once(demo_copy: ArtifactStore, instance: dg.DagsterInstance) -> None:
    assert isinstance(sensor_tick(inbox, instance), dg.SkipReason)
    new_file(demo_copy, "week-3", 5)
    result = sensor_tick(inbox, instance)
    assert isinstance(result, dg.SensorResult)
    assert [request.partition_key for request in result.run_requests or []] == ["week-3"]
    again = sensor_tick(inbox, instance)
    assert isinstance(again, dg.SensorResult)
    assert [r.run_key for r in again.run_requests or []] == [r.run_key for r in result.run_requests or []]
    accept_inbox(demo_copy, instance)
    assert isinstance(sensor_tick(inbox, instance), dg.SkipReason)


def test_a_file_that_changed_after_it_was_accepted_is_refused(demo_copy: ArtifactStore, instance: dg.DagsterInstance) -> None:
    path = batch_file(demo_copy.root, "week-1")
    path.write_bytes(path.read_bytes() + b"\n{}\n")
    with pytest.raises(TampuError, match=r"week-1.jsonl changed"):
        sensor_tick(inbox, instance)


def test_growth_below_the_threshold_opens_no_round(demo_copy: ArtifactStore, instance: dg.DagsterInstance) -> None:
    new_file(demo_copy, "week-3", 5)
    accept_inbox(demo_copy, instance)
    assert growth(demo_copy, "micro").new == 5
    result = sensor_tick(preference_growth, instance)
    assert isinstance(result, dg.SkipReason)
    assert "5 comparisons are new" in str(result.skip_message)


def test_growth_above_the_threshold_opens_round_three_and_touches_nothing_older(demo_copy: ArtifactStore, instance: dg.DagsterInstance) -> None:
    older = {path: path.read_bytes() for path in Path(demo_copy.root).glob("rounds/**/*.json")}
    pointers = {path: path.read_bytes() for path in Path(demo_copy.root).glob("current/**/*.json")}
    new_file(demo_copy, "week-3", 45)
    accept_inbox(demo_copy, instance)
    result = sensor_tick(preference_growth, instance)
    assert isinstance(result, dg.SensorResult)
    assert [request.partition_key for request in result.run_requests or []] == ["v3"]
    record = load_round(demo_copy, "micro", "v3")
    assert [batch["batch"] for batch in record.batches] == ["week-1", "week-2", "week-3"]
    assert record.pinned("rlhf/chat_model") == demo_copy.current("rlhf/chat_model", "v2", "micro").reference()
    assert all(path.read_bytes() == content for path, content in {**older, **pointers}.items() if "preferences/batches" not in str(path))


def test_a_round_that_is_under_way_is_not_started_twice(demo_copy: ArtifactStore, instance: dg.DagsterInstance) -> None:
    new_file(demo_copy, "week-3", 45)
    accept_inbox(demo_copy, instance)
    instance.create_run_for_job(_refresh_job(), status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": "v2"})
    result = sensor_tick(preference_growth, instance)
    assert isinstance(result, dg.SkipReason)
    assert round_names(demo_copy, "micro") == ["v1", "v2"]


def test_a_failed_round_is_tried_again_a_bounded_number_of_times(demo_copy: ArtifactStore, instance: dg.DagsterInstance) -> None:
    new_file(demo_copy, "week-3", 45)
    accept_inbox(demo_copy, instance)
    open_next(demo_copy, instance)
    keys = set()
    for _ in range(MOST_ATTEMPTS):
        result = sensor_tick(preference_growth, instance)
        assert isinstance(result, dg.SensorResult)
        keys |= {request.run_key for request in result.run_requests or []}
        instance.create_run_for_job(_refresh_job(), status=dg.DagsterRunStatus.FAILURE, tags={"dagster/partition": "v3"})
    assert len(keys) == MOST_ATTEMPTS
    assert "failed 3 times" in str(sensor_tick(preference_growth, instance).skip_message)  # type: ignore[union-attr]
    assert round_names(demo_copy, "micro") == ["v1", "v2", "v3"]


def test_the_weekly_schedule_takes_what_is_new_however_little(demo_copy: ArtifactStore, instance: dg.DagsterInstance) -> None:
    quiet = weekly(dg.build_schedule_context(instance=instance))
    assert isinstance(quiet, dg.SkipReason)
    new_file(demo_copy, "week-3", 1)
    accept_inbox(demo_copy, instance)
    due = weekly(dg.build_schedule_context(instance=instance))
    assert isinstance(due, dg.RunRequest)
    assert due.partition_key == "v3"
    assert instance.get_dynamic_partitions("rounds") == ["v1", "v2", "v3"]


def test_nothing_new_means_no_round(finished_demo: Demo) -> None:
    with pytest.raises(TampuError, match="no comparison is new"):
        open_next(finished_demo.store, finished_demo.instance)


def test_an_empty_preference_set_says_how_to_collect_one(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    with pytest.raises(TampuError, match="tampu collect"):
        open_next(ArtifactStore(home=str(tmp_path)), instance)


def _refresh_job() -> dg.JobDefinition:
    from definitions import defs

    return defs.resolve_job_def(refresh.name)
