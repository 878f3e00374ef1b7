"""Rounds: immutable records, pinned inputs, and the loop that closes outside the graph."""

import json
from pathlib import Path

import dagster as dg
import pytest
from homes import Home, artifact, metadata, reused
from recipes import GRAPH, ROUND, batches, chat, dataset, drop, finish, foundation, next_round, ppo, samples, sft

from resources.errors import TampuError
from resources.recipe import Check, Run
from resources.rounds import ROUNDS, load_round, open_round, round_names
from resources.store import ArtifactStore


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "home")
    foundation(made)
    return made


def test_a_round_without_preferences_is_refused_with_the_command_that_makes_some(home: Home) -> None:
    with pytest.raises(TampuError, match="there is no preference batch yet under 'tiny': `tampu collect` makes one"):
        open_round(home.store, "tiny")


def test_a_round_is_refused_until_the_one_before_has_a_chat_model(home: Home) -> None:
    drop(home, "w1")
    open_round(home.store, "tiny")
    with pytest.raises(TampuError, match=r"round v1 has no chat model yet.*`tampu run --round v1`"):
        open_round(home.store, "tiny")
    assert round_names(home.store, "tiny") == ["v1"]


def test_the_first_round_stands_on_the_sft_model_and_all_batches(home: Home) -> None:
    drop(home, "w2")
    drop(home, "w1")
    record = next_round(home)
    assert (record.round, record.number, record.previous["round"]) == ("v1", 1, None)
    assert [batch["batch"] for batch in record.batches] == ["w1", "w2"]
    assert record.pinned("rlhf/chat_model") == home.current("sft/model").reference()
    assert home.current("rlhf/samples", "v1").json("from.json")["asset"] == "sft/model"
    assert home.current("preferences/dataset", "v1").json("rows.json") == ["a", "b", "c"] * 2


def test_a_later_round_stands_on_the_one_before_and_on_the_samples_of_all(home: Home) -> None:
    drop(home, "w1")
    next_round(home)
    drop(home, "w2")
    next_round(home)
    drop(home, "w3")
    record = next_round(home)
    assert record.round == "v3" and record.previous["round"] == "v2"
    assert home.current("rlhf/samples", "v3").json("from.json") == home.current("rlhf/chat_model", "v2").reference()
    assert home.current("rlhf/chat_model", "v3").json("model.json") == {"round": "v3", "history": ["v1", "v2"]}
    relations = [one["relation"] for one in home.current("rlhf/chat_model", "v3").manifest["inputs"]]
    assert relations == ["parent", "parent", "previous", "history", "history"]


def test_a_new_batch_and_a_new_round_touch_nothing_older(home: Home) -> None:
    drop(home, "w1")
    next_round(home)
    names = ("preferences/dataset", "rlhf/samples", "rlhf/chat_model")
    before = {one: home.current(one, "v1").reference() for one in names}
    drop(home, "w2", "d e")
    assert set(reused(finish(home, "v1")).values()) == {True}
    next_round(home)
    assert set(reused(finish(home, "v1")).values()) == {True}
    assert before == {one: home.current(one, "v1").reference() for one in before}
    assert home.current("preferences/dataset", "v2").json("rows.json") == ["a", "b", "c", "d", "e"]


def test_a_round_keeps_the_artifacts_it_pinned_when_newer_ones_become_current(home: Home) -> None:
    drop(home, "w1")
    record = next_round(home)

    @artifact("sft/model")
    def retrained(run: Run) -> None:
        """Another first model."""
        run.write_json("model.json", "sft, again")

    home.make(retrained)
    assert record.pinned("rlhf/chat_model") != home.current("sft/model").reference()
    result = home.make(retrained, *GRAPH[1:], only=[dataset, samples], partition="v1")
    assert set(reused(result).values()) == {True}


def test_a_batch_that_fails_its_blocking_check_is_left_out_by_name(home: Home) -> None:
    drop(home, "w1", "broken")
    with pytest.raises(TampuError, match="every batch failed a blocking check under 'tiny'"):
        open_round(home.store, "tiny")
    drop(home, "w2")
    record = open_round(home.store, "tiny")
    assert [batch["batch"] for batch in record.batches] == ["w2"]
    assert [(batch["batch"], batch["check"]) for batch in record.left_out] == [("w1", "readable")]


def test_a_round_can_stand_on_named_batches_and_refuses_an_unsound_or_unknown_one(home: Home) -> None:
    drop(home, "w1")
    drop(home, "w2")
    drop(home, "w3", "broken")
    with pytest.raises(TampuError, match=r"preferences/batches\[w3\] .* failed its check 'readable'"):
        open_round(home.store, "tiny", ["w1", "w3"])
    with pytest.raises(TampuError, match=r"preferences/batches\[w9\] has not been made yet"):
        open_round(home.store, "tiny", ["w9"])
    record = open_round(home.store, "tiny", ["w2"])
    assert [batch["batch"] for batch in record.batches] == ["w2"]
    finish(home, "v1")
    assert [one["partition"] for one in home.current("preferences/dataset", "v1").manifest["inputs"]] == ["w2"]


def test_a_partition_without_a_record_is_refused(home: Home) -> None:
    drop(home, "w1")
    next_round(home)
    with pytest.raises(TampuError, match=r"round 'v7' has no record under the profile 'tiny' \(opened so far: v1\)"):
        home.make(*GRAPH, only=[dataset], partition="v7")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace('"number": 1', '"number": 2'), "was edited after the round was opened"),
        (lambda text: text[:40], "is damaged: restore it from a copy"),
        (lambda text: json.dumps({"round": "v1"}), "is damaged"),
        (lambda text: "[]", "is damaged"),
    ],
)
def test_a_record_that_was_edited_is_refused(home: Home, edit, message: str) -> None:  # type: ignore[no-untyped-def]
    drop(home, "w1")
    open_round(home.store, "tiny")
    path = home.store.root / "rounds/tiny/v1.json"
    path.write_text(edit(path.read_text()))
    with pytest.raises(TampuError, match=message):
        load_round(home.store, "tiny", "v1")


def test_a_record_is_never_overwritten(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(home, "w1")
    record = open_round(home.store, "tiny")
    monkeypatch.setattr("resources.rounds.round_names", lambda store, profile: [])
    with pytest.raises(TampuError, match="round v1 was opened by another process just now"):
        open_round(home.store, "tiny")
    assert load_round(home.store, "tiny", "v1") == record


def test_rounds_of_profiles_do_not_see_each_other(home: Home) -> None:
    drop(home, "w1")
    open_round(home.store, "tiny")
    assert round_names(home.store, "smol") == []
    with pytest.raises(TampuError, match="under 'smol'"):
        open_round(home.store, "smol")


def test_a_round_does_not_stand_on_a_chat_model_whose_blocking_check_failed(home: Home) -> None:
    @artifact("sft/model", checks=[Check("finite", blocking=True)])
    def broken(run: Run) -> None:
        """Diverged."""
        run.check("finite", passed=False)

    home.make(broken, check=False)
    drop(home, "w1")
    with pytest.raises(TampuError, match="failed its check 'finite', so no round can stand on it"):
        open_round(home.store, "tiny")


def test_an_asset_that_starts_later_says_so_and_passes_its_checks_until_then(home: Home) -> None:
    drop(home, "w1")
    open_round(home.store, "tiny")
    result = finish(home, "v1")
    made = home.current("rlhf/ppo_policy", "v1")
    assert not made.applied and made.json("applied.json")["reason"] == "rlhf/ppo_policy starts at round v2"
    assert metadata(result, "rlhf/ppo_policy")["applied"] is False and made.manifest["inputs"] == []
    (check,) = result.get_asset_check_evaluations()
    assert check.passed and check.description == "not in this round"
    drop(home, "w2")
    next_round(home)
    assert home.current("rlhf/ppo_policy", "v2").applied
    assert home.current("rlhf/ppo_policy", "v2").json("model.json")["round"] == "v2"


def test_two_rounds_with_the_same_inputs_share_one_artifact_and_each_is_current(home: Home) -> None:
    drop(home, "w1")
    next_round(home)
    next_round(home)
    one, two = home.current("preferences/dataset", "v1"), home.current("preferences/dataset", "v2")
    assert one.path == two.path and (one.partition, two.partition) == ("v1", "v2")
    assert home.store.keys_of("preferences/dataset") == [one.key]
    assert len(home.store.keys_of("rlhf/samples")) == 2


def test_what_the_round_before_did_not_have_is_absent_and_asking_for_it_says_so(home: Home) -> None:
    drop(home, "w1")
    next_round(home)
    assert home.current("rlhf/chat_model", "v1").json("previous.json") == {"safety": False}

    @artifact("reward/safety", partitions="round", previous=["reward/safety"])
    def safety(run: Run) -> None:
        """Asks for what is not there."""
        run.previous("reward/safety")

    with pytest.raises(TampuError, match="the record of v1 pins no reward/safety of a round before"):
        home.make(safety, partition="v1")


def test_an_asset_without_rounds_reads_all_partitions_of_a_parent_that_has_them(home: Home) -> None:
    @artifact("evaluation/human_ratings", parents=["preferences/batches"])
    def ratings(run: Run) -> None:
        """Reads every batch."""
        run.write_json("batches.json", [one.partition for one in run.parents("preferences/batches")])

    drop(home, "b10")
    drop(home, "b9")
    home.make(*GRAPH, ratings, only=[ratings])
    assert home.current("evaluation/human_ratings").json("batches.json") == ["b9", "b10"]


def test_a_batch_name_that_is_no_file_name_is_refused(home: Home) -> None:
    with pytest.raises(TampuError, match=r"has a partition '\.\./w1': a name begins with a letter or a digit"):
        home.make(*GRAPH, only=[batches], partition="../w1")


def test_dagster_sees_the_edges_inside_a_round_and_from_all_batches() -> None:
    graph = dg.Definitions(assets=list(GRAPH), resources={"store": ArtifactStore(home="unused")}).resolve_asset_graph()
    dataset_key, batches_key = dg.AssetKey(["preferences", "dataset"]), dg.AssetKey(["preferences", "batches"])
    edges = graph.get(dg.AssetKey(["rlhf", "chat_model"])).parent_keys
    assert {"/".join(key.path) for key in edges} == {"rlhf/samples", "sft/model"}
    assert set(graph.get(dataset_key).parent_keys) == {batches_key}
    assert isinstance(graph.get_partition_mapping(dataset_key, batches_key), dg.AllPartitionMapping)
    assert all(asset.partitions_def == ROUNDS for asset in ROUND)
    assert sft.partitions_def is None and chat.partitions_def == ppo.partitions_def
