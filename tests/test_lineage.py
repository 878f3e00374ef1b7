"""Lineage down to files and commits, and `verify`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from homes import Home, artifact
from recipes import drop, foundation, next_round

from resources import environment
from resources.errors import TampuError
from resources.lineage import Node, render, tree, verify
from resources.recipe import Run


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two rounds, made once; tests get copies of it."""
    made = Home(tmp_path_factory.mktemp("two_rounds") / "home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "git_state", lambda: {"commit": "abcdef0123456789", "dirty": True})
        foundation(made)
        for name, text in (("w1", "a b"), ("w2", "c")):
            drop(made, name, text)
            next_round(made)
    return made.store.root


@pytest.fixture
def home(two_rounds: Path, tmp_path: Path) -> Home:
    shutil.copytree(two_rounds, tmp_path / "home")
    return Home(tmp_path / "home")


def nodes(node: Node) -> list[Node]:
    return [node, *(below for child in node["children"] for below in nodes(child))]


def test_lineage_goes_down_to_files_rounds_before_and_the_commit(home: Home) -> None:
    root = tree(home.store, "rlhf/ppo_policy", "v2", "tiny")
    found = nodes(root)
    assert {(one["asset"], one["partition"]) for one in found} == {
        ("rlhf/ppo_policy", "v2"),
        ("rlhf/chat_model", "v2"),
        ("rlhf/samples", "v2"),
        ("preferences/dataset", "v2"),
        ("preferences/batches", "w1"),
        ("preferences/batches", "w2"),
        ("rlhf/chat_model", "v1"),
        ("rlhf/samples", "v1"),
        ("preferences/dataset", "v1"),
        ("sft/model", None),
    }
    files = {file["name"]: file["sha256"] for one in found for file in one["files"]}
    assert set(files) == {"w1.jsonl", "w2.jsonl"} and all(len(digest) == 64 for digest in files.values())
    assert {one["git_commit"] for one in found} == {"abcdef0123456789"}
    for one in found:
        assert home.store.open(one["asset"], one["key"]).data_version == one["data_version"]


def test_what_was_shown_once_is_not_shown_again(home: Home) -> None:
    found = nodes(tree(home.store, "rlhf/chat_model", "v2", "tiny"))
    in_full = [(one["asset"], one["key"]) for one in found if not one.get("repeated")]
    assert len(in_full) == len(set(in_full))
    assert all(not one["children"] for one in found if one.get("repeated"))
    assert any(one.get("repeated") for one in found)


def test_without_a_round_the_latest_is_taken_and_an_unknown_asset_is_refused(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMPU_PROFILE", "tiny")
    assert tree(home.store, "rlhf/chat_model")["partition"] == "v2"
    assert tree(home.store, "sft/model")["partition"] is None
    with pytest.raises(TampuError, match="rlhf/nothing has not been made yet"):
        tree(home.store, "rlhf/nothing")


def test_the_text_is_a_tree_that_a_person_can_read(home: Home) -> None:
    lines = render(tree(home.store, "rlhf/chat_model", "v1", "tiny")).split("\n")
    assert lines[0].startswith("rlhf/chat_model[v1]  data ") and "commit abcdef0123 with changes" in lines[0]
    assert [line.split("  ")[0].split(" data")[0] for line in lines if "file w1.jsonl" in line] == ["│"]
    assert lines[-1].startswith("└─ previous sft/model") and lines[-1].endswith("(see above)")
    json.dumps(tree(home.store, "rlhf/chat_model", "v1", "tiny"))


def test_models_that_a_preference_file_names_are_part_of_the_lineage(home: Home) -> None:
    chat = home.current("rlhf/chat_model", "v1")

    @artifact("evaluation/human_ratings")
    def ratings(run: Run) -> None:
        """Answers of two models were rated."""
        run.cite("rlhf/chat_model", chat.data_version)
        run.cite("rlhf/chat_model", chat.data_version)
        run.cite("rlhf/policy", "0" * 64)

    home.make(ratings)
    known, unknown = tree(home.store, "evaluation/human_ratings", None, "tiny")["children"]
    assert known["relation"] == "cited" and (known["key"], known["partition"]) == (chat.key, "v1")
    assert known["children"] and unknown["problem"] == "not in this store"
    from resources.warehouse import query

    sql = "SELECT parent, parent_version FROM lineage WHERE child = 'evaluation/human_ratings' AND relation = 'cited'"
    assert sorted(query(home.store, sql).rows()) == [("rlhf/chat_model", chat.data_version), ("rlhf/policy", "0" * 64)]


def test_lineage_names_a_parent_that_is_gone(home: Home) -> None:
    shutil.rmtree(home.current("sft/model").path)
    problems = [one["problem"] for one in nodes(tree(home.store, "rlhf/chat_model", "v1", "tiny")) if "problem" in one]
    assert problems and "has no manifest.json" in problems[0]


# Verify


def test_nothing_differs_after_two_rounds(home: Home) -> None:
    assert verify(home.store) == []


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def rehash(path: Path, **changes: Any) -> None:
    """Edit a manifest as somebody would who also knows how its own hash is made."""
    from resources.disk import canonical_json, sha256_text

    manifest = json.loads((path / "manifest.json").read_text()) | changes
    del manifest["manifest_sha256"]
    manifest["manifest_sha256"] = sha256_text(canonical_json(manifest))
    (path / "manifest.json").write_text(json.dumps(manifest))


def warehouse_file(home: Home, table: str, asset: str) -> Path:
    (path, *_) = sorted((home.store.root / "warehouse" / table).glob(f"{asset}@*"))
    return path


def with_other_rows(path: Path) -> None:
    frame = pl.read_parquet(path)
    frame.with_columns(value=pl.col("value") + 1).write_parquet(path)


def model(home: Home) -> Path:
    return home.current("sft/model").path


def later(path: Path) -> None:
    """Another key's file that says it was made an hour after."""
    rows = pl.read_parquet(path, glob=False).with_columns(pl.col("materialized_at") + pl.duration(hours=1), key=pl.lit("0" * 20))
    rows.write_parquet(path.with_name(path.name.replace(path.stem.split("@")[-1], "0" * 20)))


DAMAGES: list[tuple[Callable[[Home], object], str, str]] = [
    (lambda home: flip(model(home) / "model.json"), "sft/model/", "has other bytes in model.json"),
    (lambda home: (model(home) / "model.json").unlink(), "sft/model/", "lacks its file model.json"),
    (lambda home: (model(home) / "new").write_text(""), "sft/model/", "has a file new that the manifest"),
    (lambda home: (model(home) / "manifest.json").unlink(), "sft/model/", "has no manifest.json"),
    (lambda home: shutil.rmtree(model(home)), "sft/model", "no such artifact is in the store"),
    (lambda home: rehash(model(home), data_version="0" * 64), "sft/model/", "has a data version that"),
    (lambda home: rehash(model(home), config={"a": 1}), "sft/model/", "has a key that is not that of"),
    (lambda home: flip(home.store.root / "inbox/w1.jsonl"), "inbox/w1.jsonl", "it has other bytes than pref"),
    (lambda home: flip(home.store.root / "rounds/tiny/v1.json"), "rounds/tiny/v1.json", "v1.json"),
    (lambda home: (home.store.root / "current/tiny/sft/model/_.json").write_text("{"), "sft/", "it cannot be read"),
    (lambda home: warehouse_file(home, "artifacts", "sft__model").unlink(), "artifacts/sft__", "it is missing from"),
    (lambda home: warehouse_file(home, "lineage", "rlhf__chat_model").write_text("x"), "lineage/", "cannot be read"),
    (
        lambda home: with_other_rows(warehouse_file(home, "training_metrics", "sft__model")),
        "training_metrics/sft__model@",
        "its rows are not those of the artifact",
    ),
    (
        lambda home: shutil.copy(
            warehouse_file(home, "artifacts", "sft__model"),
            home.store.root / "warehouse/artifacts/sft__model@_@tiny@00000000000000000000.parquet",
        ),
        "@00000000000000000000.parquet",
        "it comes from no artifact of this store",
    ),
    (
        lambda home: shutil.copy(
            warehouse_file(home, "current", "sft__model"),
            home.store.root / "warehouse/current/sft__data@_@tiny@00000000000000000000.parquet",
        ),
        "current/sft__data@_@tiny@",
        "there is no pointer that it stands for",
    ),
    (
        lambda home: later(warehouse_file(home, "current", "sft__model")),
        "current/sft__model@_@tiny@",
        "it is later than what the pointer says",
    ),
]


@pytest.mark.parametrize(("damage", "thing", "problem"), DAMAGES, ids=[problem for _, _, problem in DAMAGES])
def test_verify_names_what_differs_and_the_way_out(home: Home, damage: Callable[[Home], object], thing: str, problem: str) -> None:
    damage(home)
    findings = verify(home.store)
    named = [one for one in findings if thing in one.thing and problem in f"{one.thing} {one.problem}"]
    assert named, [str(one) for one in findings]
    assert all(one.way_out for one in findings)


def test_the_way_out_of_changed_bytes_works(home: Home) -> None:
    from recipes import sft

    made = home.current("sft/model")
    flip(made.file("model.json"))
    (finding,) = [one for one in verify(home.store) if "has other bytes" in one.problem]
    assert "`tampu run --select sft/model --force` moves it aside and makes it again" in finding.way_out
    home.make(sft, force=True)
    assert verify(home.store) == [] and home.current("sft/model").data_version == made.data_version
