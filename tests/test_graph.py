"""The whole recipe at micro size: what it makes, what it reuses, what a change recomputes, and where everything came from."""

import json
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from conftest import Demo

from assets.rlhf.safety_scaling import PERCENTS
from jobs.launch import config_keys, parse_overrides, run_assets
from jobs.stages import demonstrate, names_of, scoreboard
from resources.errors import TampuError
from resources.lineage import tree
from resources.recipe import DECLARED
from resources.store import ArtifactStore
from resources.verification import verify
from resources.warehouse import query, rebuild_views


def keys_now(store: ArtifactStore) -> dict[tuple[str, str | None], str]:
    return {(asset, part): store.current(asset, part, "micro").key for _, asset, part in store.pointers("micro")}


def nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node["children"]:
        yield from nodes(child)


def test_every_asset_is_made_in_every_round(finished_demo: Demo) -> None:
    made = set(keys_now(finished_demo.store))
    wanted = {name: one.partitions for name, one in DECLARED.items() if not name.startswith("ablations/")}
    expected = {(name, None) for name, kind in wanted.items() if kind is None}
    expected |= {(name, part) for name, kind in wanted.items() if kind == "round" for part in ("v1", "v2")}
    expected |= {("preferences/batches", "week-1"), ("preferences/batches", "week-2")}
    assert made == expected


def test_stages_that_start_later_say_so_in_the_first_round(finished_demo: Demo) -> None:
    for asset in ("rlhf/ghost_attention_data", "rlhf/context_distillation_data", "rlhf/ppo_policy"):
        assert not finished_demo.store.current(asset, "v1", "micro").applied
        assert finished_demo.store.current(asset, "v2", "micro").applied


def test_running_again_recomputes_nothing(demo_copy: ArtifactStore) -> None:
    before = {path: path.stat().st_mtime_ns for path in demo_copy.root.glob("artifacts/**/manifest.json")}
    with dg.DagsterInstance.ephemeral() as instance:
        demonstrate(demo_copy, instance, lambda line: None)
    after = {path: path.stat().st_mtime_ns for path in demo_copy.root.glob("artifacts/**/manifest.json")}
    assert after == before


def test_the_same_seed_gives_the_same_bytes(finished_demo: Demo, tmp_path: Any) -> None:
    fresh = ArtifactStore(home=str(tmp_path / "again"))
    chain = [
        "corpus/documents",
        "corpus/filtered",
        "tokenizer/sentencepiece",
        "pretraining/tokens",
        "pretraining/base_model",
        "sft/data",
        "sft/model",
    ]
    with dg.DagsterInstance.ephemeral() as instance:
        run_assets(fresh, instance, chain)
    for asset in chain:
        assert fresh.current(asset, None, "micro").data_version == finished_demo.store.current(asset, None, "micro").data_version, asset


def test_a_hyper_parameter_of_a_reward_model_recomputes_it_and_what_depends_on_it_alone(demo_copy: ArtifactStore) -> None:
    before = keys_now(demo_copy)
    overrides = parse_overrides(["reward/helpfulness.learning_rate=0.002"], config_keys())
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("rounds", ["v1", "v2"])
        run_assets(demo_copy, instance, names_of((), "v2"), partition="v2", overrides=overrides)
    after = keys_now(demo_copy)
    changed = {name for name in after if after[name] != before[name]}
    assert ("reward/helpfulness", "v2") in changed
    assert all(part == "v2" for _, part in changed)
    untouched = {"preferences/dataset", "reward/safety", "rlhf/ghost_attention_data"}
    assert not untouched & {asset for asset, _ in changed}
    assert {"rlhf/samples", "rlhf/policy", "rlhf/ppo_policy", "evaluation/reward_accuracy", "evaluation/report"} <= {
        asset for asset, _ in changed
    }


def test_lineage_of_the_report_goes_down_to_files_batches_rounds_and_the_commit(finished_demo: Demo) -> None:
    found = list(nodes(tree(finished_demo.store, "evaluation/report", "v2", "micro")))
    names = {(node["asset"], node["partition"]) for node in found}
    assert {("rlhf/chat_model", "v2"), ("rlhf/chat_model", "v1"), ("sft/model", None), ("corpus/documents", None)} <= names
    files = {file["name"] for node in found for file in node.get("files", [])}
    assert {"week-1.jsonl", "week-2.jsonl"} <= files
    assert any(name.startswith("chitchat/") for name in files)


def test_verify_finds_nothing_until_a_byte_changes(demo_copy: ArtifactStore) -> None:
    rebuild_views(demo_copy)
    assert verify(demo_copy) == []
    weights = demo_copy.current("sft/model", None, "micro").file("model.safetensors")
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert any("sft/model" in str(vars(finding)) for finding in verify(demo_copy))


def test_evaluations_can_be_queried_with_duckdb(demo_copy: ArtifactStore) -> None:
    rebuild_views(demo_copy)
    rounds = query(demo_copy, "SELECT DISTINCT round FROM win_rates_current ORDER BY round")
    assert rounds["round"].to_list() == ["v1", "v2"]
    for table in (
        "artifacts",
        "lineage",
        "training_metrics",
        "corpus_filters",
        "preference_batches",
        "reward_accuracy",
        "win_rates",
        "safety",
        "benchmarks",
        "ghost_attention",
        "contamination",
        "carbon",
    ):
        assert query(demo_copy, f"SELECT count(*) AS n FROM {table}_current")["n"][0] > 0, table


def test_the_report_names_the_artifact_behind_every_number(finished_demo: Demo) -> None:
    board = scoreboard(finished_demo.store, None)
    assert board["scores"]
    for row in board["scores"]:
        asset, _, key = row["artifact"].rpartition("/")
        assert (finished_demo.store.folder(asset) / key / "manifest.json").is_file()
    assert "scoreboard of round v2" in board["text"]


def test_test_prompts_touch_nothing_that_is_trained_on(finished_demo: Demo) -> None:
    store = finished_demo.store
    prompts = store.current("rlhf/prompts", None, "micro").frame("prompts.parquet")
    test = set(prompts.filter(prompts["split"] == "test")["prompt_id"])
    trained = set(store.current("sft/data", None, "micro").frame("examples.parquet")["prompt_id"])
    for name in ("v1", "v2"):
        trained |= set(store.current("preferences/dataset", name, "micro").frame("comparisons.parquet")["prompt_id"])
        trained |= set(store.current("rlhf/samples", name, "micro").frame("prompts.parquet")["prompt_id"])
    assert test and not test & trained


def test_a_selected_chat_model_is_one_of_its_candidates_byte_for_byte(finished_demo: Demo) -> None:
    chat = finished_demo.store.current("rlhf/chat_model", "v2", "micro")
    selection = chat.json("selection.json")
    best = max(selection["candidates"], key=lambda row: row["score"])
    assert best["candidate"] == selection["selected"]
    before = {"asset": best["asset"], "partition": "v1" if best["candidate"] == "round before" else "v2"}
    source = finished_demo.store.current(before["asset"], before["partition"], "micro")
    assert chat.file("model.safetensors").read_bytes() == source.file("model.safetensors").read_bytes()


def test_ghost_attention_rows_hold_the_instruction_in_the_first_message_only(finished_demo: Demo) -> None:
    frame = finished_demo.store.current("rlhf/ghost_attention_data", "v2", "micro").frame("examples.parquet")
    for messages, instruction in frame.select("messages", "instruction").iter_rows():
        first, *rest = json.loads(messages)
        assert first["content"].startswith(instruction)
        assert not any(instruction in message["content"] for message in rest if message["role"] == "user")


def test_overrides_name_what_they_do_not_know() -> None:
    known = config_keys()
    with pytest.raises(TampuError, match="no asset 'reward/nonsense'"):
        parse_overrides(["reward/nonsense.learning_rate=1"], known)
    with pytest.raises(TampuError, match="no config key 'rate'"):
        parse_overrides(["reward/helpfulness.rate=1"], known)
    with pytest.raises(TampuError, match=r"expected asset\.key=value"):
        parse_overrides(["reward"], known)


def test_a_value_out_of_range_is_one_clear_line(demo_copy: ArtifactStore) -> None:
    overrides = parse_overrides(["pretraining/base_model.steps=0"], config_keys())
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(TampuError, match="steps") as caught:
        run_assets(demo_copy, instance, ["pretraining/base_model"], overrides=overrides)
    assert "\n" not in str(caught.value)


def test_the_ablations_run_on_a_finished_round(demo_copy: ArtifactStore) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("rounds", ["v1", "v2"])
        run_assets(demo_copy, instance, [name for name, one in DECLARED.items() if name.startswith("ablations/") and not one.partitions])
        run_assets(
            demo_copy, instance, [name for name, one in DECLARED.items() if name.startswith("ablations/") and one.partitions], partition="v2"
        )
    rebuild_views(demo_copy)
    rows = query(demo_copy, "SELECT DISTINCT model FROM safety_current WHERE asset = 'ablations/comparison'")
    assert {"ablations/sft_without_safety", "ablations/policy_without_context_distillation"} <= set(rows["model"])
    counts = [
        demo_copy.current(f"ablations/sft_with_{percent}_percent_safety", None, "micro").metrics["safety_demonstrations"] for percent in PERCENTS
    ]
    assert counts == sorted(counts) and counts[0] == 0 < counts[-1]
    shares = query(demo_copy, "SELECT DISTINCT category FROM safety_current WHERE asset = 'ablations/safety_scaling' AND metric = 'violation'")
    assert set(shares["category"]) == {f"{percent} % safety data" for percent in (*PERCENTS, 100)}


def test_an_interrupted_training_leaves_nothing_behind_and_starts_cleanly(demo_copy: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import model.causal_lm

    before = keys_now(demo_copy)
    steps = iter(range(3))

    def interrupted(*arguments: Any) -> Any:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return original(*arguments)

    original = model.causal_lm.next_token_loss
    monkeypatch.setattr(model.causal_lm, "next_token_loss", interrupted)
    overrides = parse_overrides(["sft/model.learning_rate=0.001"], config_keys())
    with dg.DagsterInstance.ephemeral() as instance:
        with pytest.raises(KeyboardInterrupt):
            run_assets(demo_copy, instance, ["sft/model"], overrides=overrides)
        assert keys_now(demo_copy) == before
        monkeypatch.undo()
        monkeypatch.setenv("TAMPU_HOME", str(demo_copy.root))
        run_assets(demo_copy, instance, ["sft/model"], overrides=overrides)
    assert keys_now(demo_copy)["sft/model", None] != before["sft/model", None]
    assert not list(demo_copy.root.glob("artifacts/sft/model/.*.tmp"))
