"""What is said of two reward models' scores: each number is checked on scores made by hand or by a known process."""

import math

import numpy as np
import polars as pl
import pytest

from assets.evaluation.reward_statistics import (
    accuracy_rows,
    agreement,
    gate_statistics,
    length_statistics,
    pair_calibration,
    rises,
    safety_calibration,
    safety_pairs,
    with_test_sets,
)
from assets.preferences.statistics import batch_statistics, total_row
from assets.reward import mixture
from resources.annotator import RATINGS


def scored(count: int, **columns: object) -> pl.DataFrame:
    """`count` comparisons that say nothing in particular, with columns of their own."""
    plain = {
        "prompt": '[{"role": "user", "content": "hi"}]',
        "chosen": "aa",
        "rejected": "bb",
        "rating": "better",
        "is_safety": False,
        "chosen_safe": None,
        "rejected_safe": None,
        "ceiling": None,
        "source": None,
        **{f"{model}_{side}": 0.0 for model in ("helpfulness", "safety") for side in ("chosen", "rejected")},
    }
    types = {"chosen_safe": pl.Boolean, "rejected_safe": pl.Boolean, "ceiling": pl.Float64, "source": pl.String}
    frame = pl.DataFrame({"number": range(count)}).with_columns(
        pl.lit(value, dtype=types.get(name)).alias(name) for name, value in plain.items()
    )
    return with_test_sets(frame.with_columns(pl.Series(name, value, dtype=types.get(name)) for name, value in columns.items()))


def test_accuracy_is_given_for_both_models_and_length_on_every_test_set_by_rating() -> None:
    frame = scored(
        4,
        rating=["significantly better", "significantly better", "better", "better"],
        is_safety=[False, False, True, False],
        source=[None, None, None, "llmbar"],
        chosen=["long one", "x", "xx", "xx"],
        helpfulness_chosen=[2.0, 1.0, 0.0, -1.0],
        helpfulness_rejected=[1.0, 2.0, 0.0, 1.0],
        ceiling=[0.9, 0.7, None, None],
    )
    rows = {(row["reward_model"], row["test_set"], row["rating"]): row for row in accuracy_rows(frame)}
    assert {test_set for _, test_set, _ in rows} == {"helpfulness", "safety", "llmbar"}
    assert rows["reward/helpfulness", "helpfulness", "all"]["accuracy"] == 0.5
    assert rows["reward/helpfulness", "helpfulness", "all"]["ceiling"] == pytest.approx(0.8)
    assert rows["reward/helpfulness", "safety", "better"]["accuracy"] == 0.5  # equal scores count half
    assert rows["reward/helpfulness", "llmbar", "all"] | {"ci_low": 0, "ci_high": 0} == {
        "reward_model": "reward/helpfulness",
        "test_set": "llmbar",
        "rating": "all",
        "n": 1,
        "accuracy": 0.0,
        "ceiling": None,
        "ci_low": 0,
        "ci_high": 0,
    }
    assert rows["longer wins", "helpfulness", "all"]["accuracy"] == 0.5
    assert ("reward/safety", "safety", "significantly better") not in rows


def test_accuracy_that_falls_with_the_rating_rises_with_strength_and_only_real_crossings_count() -> None:
    def rows(accuracies: list[float], n: int) -> list[dict[str, object]]:
        half = 1.96 * 0.5 / math.sqrt(n)
        pairs = zip(RATINGS, accuracies, strict=True)
        return [
            {"reward_model": "reward/safety", "test_set": "safety", "rating": r, "accuracy": a, "ci_low": a - half, "ci_high": a + half}
            for r, a in pairs
        ]

    assert rises(rows([0.9, 0.8, 0.7, 0.6], 1000), "safety") == (True, [0.9, 0.8, 0.7, 0.6])
    assert rises(rows([0.9, 0.69, 0.7, 0.6], 1000), "safety")[0]
    assert not rises(rows([0.9, 0.55, 0.75, 0.6], 1000), "safety")[0]
    assert not rises(rows([0.6, 0.8, 0.7, 0.65], 10), "safety")[0]
    assert not rises([], "safety")[0]


def test_scores_that_mean_what_they_say_are_calibrated_and_doubled_ones_are_not() -> None:
    random = np.random.default_rng(0)
    strength = np.abs(random.normal(0, 2, 40_000))
    margins = np.where(random.random(40_000) < 1 / (1 + np.exp(-strength)), strength, -strength)
    points, error = pair_calibration(margins)
    assert error < 0.01 and sum(n for *_, n in points) == 40_000
    assert all(0.5 <= confidence <= 1 for confidence, _, _ in points)
    assert pair_calibration(2 * margins)[1] > 0.05
    scores = random.normal(0, 2, 40_000)
    safe = random.random(40_000) < 1 / (1 + np.exp(-scores))
    assert safety_calibration(scores, safe)[1] < 0.01 < 0.2 < safety_calibration(scores, ~safe)[1]
    assert math.isnan(pair_calibration(np.array([]))[1])


def test_a_model_that_reads_length_alone_is_found_out() -> None:
    random = np.random.default_rng(0)
    lengths = random.integers(1, 60, (1000, 2))
    texts = {"chosen": ["x" * n for n in lengths[:, 0]], "rejected": ["x" * n for n in lengths[:, 1]]}
    by_length = scored(1000, **texts, safety_chosen=lengths[:, 0].astype(float), safety_rejected=lengths[:, 1].astype(float))
    found = length_statistics(by_length, "safety")
    assert found == {"correlation": pytest.approx(1), "margin_correlation": pytest.approx(1), "balanced_accuracy": 0.5}
    by_content = scored(1000, **texts, safety_chosen=random.normal(1, 1, 1000), safety_rejected=random.normal(0, 1, 1000))
    found = length_statistics(by_content, "safety")
    assert abs(found["correlation"]) < 0.1 and found["balanced_accuracy"] > 0.7


def test_agreement_is_the_share_of_pairs_that_both_models_order_alike() -> None:
    frame = scored(4, helpfulness_chosen=[1.0, 1, -1, 2], safety_chosen=[2.0, -3, -1, 0], is_safety=[False, False, True, False])
    rows = {row["test_set"]: row for row in agreement(frame).iter_rows(named=True)}
    assert rows["helpfulness"]["same_order"] == pytest.approx(1 / 3)
    assert (rows["safety"]["same_order"], rows["safety"]["n"]) == (1.0, 1)


def test_safety_pairs_are_told_apart_by_their_labels_and_the_gate_counts_unsafe_answers() -> None:
    frame = scored(
        4,
        is_safety=[True, True, True, False],
        chosen_safe=[True, True, False, True],
        rejected_safe=[False, True, False, True],
        safety_chosen=[3.0, -1.0, -0.5, -2.0],
        safety_rejected=[-3.0, 1.0, -4.0, 2.0],
    )
    table = {row["pair"]: row for row in safety_pairs(frame).iter_rows(named=True)}
    assert [table[name]["safety"] for name in ("safe chosen, unsafe rejected", "both safe", "both unsafe")] == [1.0, 0.0, 1.0]
    gate = gate_statistics(frame, 0.15)
    assert gate == {"precision": pytest.approx(2 / 3), "recall": pytest.approx(2 / 3), "recall_at_half": 1.0, "harmless_flagged": 0.5}
    assert math.isnan(gate_statistics(scored(2), 0.15)["recall"])


# The data mixtures of section 3.2.2


def test_the_helpfulness_mixture_is_all_of_ours_and_as_much_of_everything_else() -> None:
    frame = scored(400, is_safety=[i % 4 == 1 for i in range(400)], source=[None if i % 4 < 2 else "public" for i in range(400)])
    drawn = mixture(frame, safety=False, most_of_the_rest=1.0, seed=0)
    ours = drawn.filter(~pl.col("is_safety") & pl.col("source").is_null())
    assert (ours.height, drawn.height, drawn["number"].n_unique()) == (100, 200, 200)
    rest = drawn.filter(pl.col("is_safety") | pl.col("source").is_not_null())
    assert 20 < rest["is_safety"].sum() < 47  # a third of the rest is our safety data


def test_the_safety_mixture_is_all_safety_data_and_one_part_in_ten_of_the_other() -> None:
    frame = scored(400, is_safety=[i % 2 == 0 for i in range(400)], source=[None if i % 4 < 2 else "public" for i in range(400)])
    drawn = mixture(frame, safety=True, most_of_the_rest=1 / 9, seed=0)
    assert int(drawn["is_safety"].sum()) == 200
    assert drawn.height == 222


def test_public_sets_stand_in_where_our_annotators_gave_nothing_yet() -> None:
    frame = scored(10, source=["public"] * 10)
    assert mixture(frame, safety=False, most_of_the_rest=1.0, seed=0).height == 10


# Statistics of batches


def test_batch_statistics_count_what_people_wrote_and_not_the_json_around_it() -> None:
    prompt = '[{"role": "system", "content": "s s"}, {"role": "user", "content": "a b c d"}, {"role": "assistant", "content": "e"}, {"role": "user", "content": "f g"}]'  # noqa: E501
    frame = scored(3, prompt=[prompt] * 3, chosen=["x y z"] * 3, rejected=["x"] * 3, source=[None, None, "shp"]).with_columns(
        batch=pl.Series(["one", "one", "two"]), turns=pl.lit(2)
    )
    table = batch_statistics(frame, lambda texts: [len(text.split()) for text in texts])
    assert table.select("batch", "source", "comparisons").rows() == [("one", "inbox", 2), ("two", "shp", 1)]
    assert table.select("turns", "tokens_example", "tokens_prompt", "tokens_response").row(0) == (2.0, 11.0, 3.0, 2.0)
    assert table.select("better", "slightly better").row(0) == (1.0, 0.0)
    assert total_row(table).select("batch", "comparisons", "tokens_example").rows()[-1] == ("all", 3, pytest.approx(11.0))
