"""When things run: ticks of the sensors and the schedule on an ephemeral instance."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from conftest import Demo

from jobs.growth import MOST_ATTEMPTS, growth, inbox, preference_growth, weekly
from jobs.ingest import ingest
from jobs.launch import config_keys, parse_overrides, run_assets
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


def test_one_bad_file_keeps_no_good_one_waiting(demo_copy: ArtifactStore, instance: dg.DagsterInstance) -> None:
    path = batch_file(demo_copy.root, "week-1")
    path.write_bytes(path.read_bytes() + b"\n{}\n")
    (demo_copy.root / "inbox" / "my file.jsonl").write_text("{}")
    new_file(demo_copy, "week-3", 5)
    result = sensor_tick(inbox, instance)
    assert isinstance(result, dg.SensorResult)
    assert [request.partition_key for request in result.run_requests or []] == ["week-3"]
    instance.add_dynamic_partitions("preference_batches", ["week-3"])
    run_assets(demo_copy, instance, ["preferences/batches"], partition="week-3")
    with pytest.raises(TampuError, match=r"'my file.jsonl'.*rename the file; .*week-1.jsonl changed"):
        sensor_tick(inbox, instance)


def test_the_same_content_under_another_name_is_no_second_batch(demo_copy: ArtifactStore, instance: dg.DagsterInstance) -> None:
    folder = demo_copy.root / "inbox"
    (folder / "a-copy.jsonl").write_bytes(batch_file(demo_copy.root, "week-2").read_bytes())
    result = sensor_tick(inbox, instance)
    assert isinstance(result, dg.SkipReason)
    assert "a-copy.jsonl has the content of week-2.jsonl" in str(result.skip_message)
    assert accept_inbox(demo_copy, instance) == ["week-1", "week-2"]


def test_a_batch_that_can_not_be_read_is_tried_a_bounded_number_of_times(demo_copy: ArtifactStore, instance: dg.DagsterInstance) -> None:
    (demo_copy.root / "inbox" / "empty.jsonl").write_text("")
    keys = set()
    for _ in range(MOST_ATTEMPTS):
        result = sensor_tick(inbox, instance)
        assert isinstance(result, dg.SensorResult)
        keys |= {request.run_key for request in result.run_requests or []}
        instance.create_run_for_job(_job("accept_batch"), status=dg.DagsterRunStatus.FAILURE, tags={"dagster/partition": "empty"})
    assert len(keys) == MOST_ATTEMPTS
    with pytest.raises(TampuError, match=r"empty.jsonl failed 3 times"):
        sensor_tick(inbox, instance)


def test_a_round_that_a_person_stopped_stays_stopped_and_says_so(demo_copy: ArtifactStore, instance: dg.DagsterInstance) -> None:
    new_file(demo_copy, "week-3", 45)
    accept_inbox(demo_copy, instance)
    open_next(demo_copy, instance)
    instance.create_run_for_job(_job(refresh.name), status=dg.DagsterRunStatus.CANCELED, tags={"dagster/partition": "v3"})
    result = sensor_tick(preference_growth, instance)
    assert isinstance(result, dg.SkipReason) and "v3 was stopped by a person" in str(result.skip_message)


def test_a_public_set_becomes_part_of_the_next_round_with_held_out_rows_bounded_and_prompts_apart(
    demo_copy: ArtifactStore, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    chance = random.Random(0)
    rows = [
        {"input": f"question {chance.randrange(150)}", "output_1": f"right answer {n}", "output_2": f"wrong {n}", "label": 1} for n in range(400)
    ]
    (tmp_path / "public.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, {**rows[0], "label": 3}]))
    assert ingest(demo_copy, tmp_path / "public.jsonl", source="open-set").quarantined == 1
    accept_inbox(demo_copy, instance)
    batch = demo_copy.current("preferences/batches", "public", "micro")
    assert batch.metrics["read"] == batch.metrics["accepted"] + batch.metrics["quarantined"] == 401
    assert batch.frame("quarantine.parquet")["line"].to_list() == [401]
    opened = open_next(demo_copy, instance)
    overrides = {"preferences/dataset": {"most_held_out": 30}}
    run_assets(demo_copy, instance, ["preferences/dataset"], partition=opened.round, overrides=overrides)
    made = demo_copy.current("preferences/dataset", opened.round, "micro")
    frame = made.frame("comparisons.parquet")
    public = frame.filter(pl.col("source") == "open-set")
    counts = dict(public.group_by("part").len().iter_rows())
    assert counts["held_out"] == 30 and counts["set_aside"] == made.metrics["set_aside"] > 10 and sum(counts.values()) == 400
    trained = set(frame.filter(pl.col("part") == "train")["prompt_id"])
    assert not trained & set(frame.filter(pl.col("part") != "train")["prompt_id"])
    stats = made.frame("rows/preference_batches.parquet")
    assert stats.filter(pl.col("batch") == "public").select("source", "comparisons", "quarantined", "turns").rows() == [
        ("open-set", 400, 1, 1.0)
    ]
    assert made.file("plots/batches.png").stat().st_size > 1000


def test_a_reward_model_can_start_from_an_older_chat_model_named_by_its_key(demo_copy: ArtifactStore, instance: dg.DagsterInstance) -> None:
    older = demo_copy.current("sft/model", None, "micro")
    before = demo_copy.current("reward/safety", "v2", "micro")
    pinned = parse_overrides([f"reward/safety.chat_model_key={older.key}"], config_keys())
    run_assets(demo_copy, instance, ["reward/safety"], partition="v2", overrides=pinned)
    made = demo_copy.current("reward/safety", "v2", "micro")
    assert made.data_version != before.data_version
    started = [one for one in made.manifest["inputs"] if one["relation"] == "previous"]
    assert [(one["asset"], one["key"], one["data_version"]) for one in started] == [("sft/model", older.key, older.data_version)]
    unknown = parse_overrides(["reward/safety.chat_model_key=0123456789abcdef0123"], config_keys())
    with pytest.raises(TampuError, match=rf"no rlhf/chat_model or sft/model has the key '0123456789abcdef0123'; the keys are .*{older.key}"):
        run_assets(demo_copy, instance, ["reward/safety"], partition="v2", overrides=unknown)


def test_the_reward_models_page_shows_what_they_are_worth(finished_demo: Demo) -> None:
    made = finished_demo.store.current("evaluation/reward_accuracy", "v2", "micro")
    assert {"calibration", "helpfulness_scores", "safety_scores", "safety_calibration", "accuracy_by_test_set"} <= set(made.manifest["plots"])
    tables = {"accuracy by test set (Table 7)", "accuracy by rating (Table 8)", "safety pairs (Table 29)", "agreement of the two models"}
    assert tables | {"scores and length"} <= set(made.manifest["previews"])
    assert {"gate_recall_at_half", "models_agree", "helpfulness_calibration_error", "safety_length_correlation"} <= set(made.metrics)
    scores = made.frame("scores.parquet")
    held_out = (
        finished_demo.store.current("preferences/dataset", "v2", "micro").frame("comparisons.parquet").filter(pl.col("part") == "held_out")
    )
    assert scores.height + made.metrics["longer_than_context"] == held_out.height
    margin = (scores["safety_chosen"] - scores["safety_rejected"]).filter(scores["test_set"] == "safety")
    assert (margin.sign() / 2 + 0.5).mean() == pytest.approx(made.metrics["safety_accuracy"])  # ties count half


def test_own_demonstrations_join_the_data_and_the_bad_ones_are_quarantined(
    demo_copy: ArtifactStore, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    before = demo_copy.current("sft/data", None, "micro")
    rows = [{"instruction": f"Say {n}", "output": f"{n}."} for n in range(40)]
    (tmp_path / "mine.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, rows[0], {"instruction": "Say", "output": ""}]))
    ingest(demo_copy, tmp_path / "mine.jsonl", is_safety=False)
    run_assets(demo_copy, instance, ["sft/data"])
    made = demo_copy.current("sft/data", None, "micro")
    frame = made.frame("examples.parquet")
    own = frame.filter(pl.col("family") == "own")
    assert frame.filter(pl.col("family") != "own").equals(before.frame("examples.parquet"))
    assert own.height == 40 and set(own["split"]) == {"train", "validation"} and own["is_safety"].to_list() == [False] * 40
    assert made.metrics["own_read"] == made.metrics["own_accepted"] + made.metrics["own_quarantined"] == 42
    assert made.frame("quarantine.parquet").select("file", "line", "reason").rows() == [
        ("mine.jsonl", 41, "duplicate"),
        ("mine.jsonl", 42, "messages.content: is empty"),
    ]


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
    instance.create_run_for_job(_job(refresh.name), status=dg.DagsterRunStatus.STARTED, tags={"dagster/partition": "v2"})
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
        instance.create_run_for_job(_job(refresh.name), status=dg.DagsterRunStatus.FAILURE, tags={"dagster/partition": "v3"})
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


def _job(name: str) -> dg.JobDefinition:
    from definitions import defs

    return defs.resolve_job_def(name)
