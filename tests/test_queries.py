"""The twenty questions of docs/queries.md, asked of a finished home."""

import re
from pathlib import Path

import polars as pl
import pytest

from resources.lineage import tree
from resources.store import ArtifactStore
from resources.warehouse import query, rebuild_views

PAGE = Path(__file__).resolve().parent.parent / "docs" / "queries.md"
QUESTIONS = {
    int(number): (title, sql)
    for number, title, sql in re.findall(r"^## (\d+)\. (.*?)$.*?^```sql\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
}
ONLY_ONCE_RATED = {19}
UNLESS_COMMITTED = {20}  # asks for what was made from uncommitted code


@pytest.fixture
def answers(demo_copy: ArtifactStore) -> dict[int, pl.DataFrame]:
    rebuild_views(demo_copy)
    return {number: query(demo_copy, sql) for number, (_, sql) in QUESTIONS.items()}


def test_there_are_twenty_questions() -> None:
    assert list(QUESTIONS) == list(range(1, 21))


def test_every_question_has_an_answer_after_the_demo(answers: dict[int, pl.DataFrame]) -> None:
    assert {number for number, frame in answers.items() if frame.is_empty()} - UNLESS_COMMITTED == ONLY_ONCE_RATED


def test_the_answers_are_true(answers: dict[int, pl.DataFrame], demo_copy: ArtifactStore) -> None:
    store = demo_copy

    def children(node: dict) -> list[dict]:
        return [node, *(one for child in node["children"] for one in children(child))]

    made_of = {(one["asset"], one["partition"]) for one in children(tree(store, "rlhf/policy", "v2", "micro"))}
    first = answers[1]
    batches = {("preferences/batches", part) for part in first.filter(pl.col("relation") == "batch")["parent_partition"]}
    assert batches == {one for one in made_of if one[0] == "preferences/batches"} and len(batches) == 2
    assert {"week-1.jsonl", "week-2.jsonl"} <= set(first.filter(pl.col("relation") == "file")["parent"])

    stands_on = set(answers[2].rows())
    assert {("rlhf/policy", "v1"), ("rlhf/policy", "v2"), ("evaluation/report", "v2")} <= stands_on
    assert not {asset for asset, _ in stands_on} & {"sft/model", "corpus/filtered", "rlhf/prompts"}

    assert answers[3].rows() == [("v1", 1, "week-1"), ("v2", 2, "week-1, week-2")]
    violations = {name: store.current("evaluation/safety", name, "micro").metrics["violation"] for name in ("v1", "v2")}
    assert answers[4]["violations"].to_list() == [violations["v1"], violations["v2"]]
    assert answers[4]["change"].to_list() == [None, pytest.approx(violations["v2"] - violations["v1"])]

    progress = answers[5].filter(pl.col("judge") == "annotator")
    assert {"rlhf/chat_model@v1", "rlhf/policy", "rlhf/ppo_policy", "rlhf/chat_model"} == set(progress["model"])
    main = answers[6].filter((pl.col("judge") == "annotator") & (pl.col("axis") == "helpfulness") & (pl.col("round") == "v2"))
    assert main["win_rate"].item() == store.current("evaluation/win_rates", "v2", "micro").metrics["helpfulness_win_rate_against_sft"]
    assert (answers[7]["excess"] - (answers[7]["reward_model"] - answers[7]["annotator"])).abs().max() < 1e-12

    accuracy = answers[10].filter((pl.col("reward_model") == "reward/safety") & (pl.col("rating") == "all"))
    assert accuracy["accuracy"].to_list() == [
        store.current("evaluation/reward_accuracy", name, "micro").metrics["safety_accuracy"] for name in ("v1", "v2")
    ]
    assert accuracy["comparisons"].to_list() == sorted(accuracy["comparisons"].to_list())
    spent = sum(one["kwh"] for one in answers[18].iter_rows(named=True))
    used = query(store, "SELECT sum(kwh) AS kwh FROM carbon")["kwh"].item()
    assert spent == pytest.approx(used) and used > 0
    assert all(answers[20]["in_use"] | ~answers[20]["in_use"])
