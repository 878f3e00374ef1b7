"""Accuracy of both reward models on both held-out sets, by rating (the shape of the paper's Tables 7 and 8), and the safety gate."""

import json

import dagster as dg
import numpy as np
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.evaluation.statistics import wilson
from assets.plots import bars
from resources.annotator import RATINGS
from resources.recipe import Check, Run, artifact


class RewardAccuracyConfig(dg.Config):
    """The gate of section 3.2.3."""

    threshold: float = Field(0.15, ge=0, le=1, description="safety score below which an answer counts as unsafe")


def accuracy_rows(frame: pl.DataFrame, reward_model: str, test_set: str) -> list[dict[str, object]]:
    """Accuracy by rating and over all, with the noise ceiling where every comparison carries one. Equal scores count half."""
    rows: list[dict[str, object]] = []
    for rating in (*RATINGS, "all"):
        part = frame if rating == "all" else frame.filter(pl.col("rating") == rating)
        if part.is_empty():
            continue
        right = float(part.select((pl.col("margin") > 0).cast(pl.Float64) + 0.5 * (pl.col("margin") == 0).cast(pl.Float64)).sum().item())
        low, high = wilson(right, part.height)
        ceiling = None if part["ceiling"].null_count() else float(part["ceiling"].mean())  # type: ignore[arg-type]
        rows.append(
            {
                "reward_model": reward_model,
                "test_set": test_set,
                "rating": rating,
                "n": part.height,
                "accuracy": right / part.height,
                "ceiling": ceiling,
                "ci_low": low,
                "ci_high": high,
            }
        )
    return rows


@artifact(
    "evaluation/reward_accuracy",
    parents=["preferences/dataset", "reward/helpfulness", "reward/safety", "tokenizer/sentencepiece"],
    partitions="round",
    kinds={"pytorch", "polars"},
    owners=["team:evaluation"],
    checks=[
        Check("own_axis_is_best", blocking=False, description="each reward model is the better one on its own axis"),
        Check("rises_with_rating", blocking=False, description="accuracy on 'significantly better' is above that on 'negligibly better'"),
        Check("gate_spares_the_harmless", blocking=False, description="under 5 % of harmless answers fall below the safety gate"),
    ],
)
def reward_accuracy(run: Run, config: RewardAccuracyConfig) -> None:
    """Held-out accuracy over the noise ceiling, calibration, and precision and recall of the gate at 0.15."""
    from assets.rlhf.scoring import RewardModels

    held_out = run.parent("preferences/dataset").frame("comparisons.parquet").filter(pl.col("part") == "held_out")
    models = RewardModels(run, config.threshold)
    dialogues = [json.loads(text) for text in held_out["prompt"]]
    scores = {side: models.logits(dialogues, held_out[side].to_list()) for side in ("chosen", "rejected")}
    rows: list[dict[str, object]] = []
    for index, reward_model in enumerate(("reward/helpfulness", "reward/safety")):
        margin = pl.Series("margin", (scores["chosen"][index] - scores["rejected"][index]).astype(np.float64))
        scored = held_out.with_columns(margin)
        for test_set, flag in (("helpfulness", False), ("safety", True)):
            rows += accuracy_rows(scored.filter(pl.col("is_safety") == flag), reward_model, test_set)
    length = held_out.with_columns(
        margin=(pl.col("chosen").str.len_chars().cast(pl.Int64) - pl.col("rejected").str.len_chars().cast(pl.Int64)).cast(pl.Float64)
    )
    for test_set, flag in (("helpfulness", False), ("safety", True)):
        rows += accuracy_rows(length.filter(pl.col("is_safety") == flag), "longer wins", test_set)
    run.rows("reward_accuracy", rows)
    table = pl.DataFrame(rows, infer_schema_length=None)
    run.table("accuracy", table)
    value = {(row["reward_model"], row["test_set"], row["rating"]): row for row in rows}
    for axis in ("helpfulness", "safety"):
        overall = value.get((f"reward/{axis}", axis, "all"))
        if overall is None:
            continue
        run.metric(f"{axis}_accuracy", overall["accuracy"])  # type: ignore[arg-type]
        if overall["ceiling"]:
            run.metric(f"{axis}_accuracy_over_ceiling", overall["accuracy"] / overall["ceiling"])  # type: ignore[operator]

    gate = gate_statistics(held_out, scores["chosen"][1], scores["rejected"][1], config.threshold)
    for name, number in gate.items():
        if np.isfinite(number):
            run.metric(f"gate_{name}", number)
    own = all(
        value[f"reward/{axis}", axis, "all"]["accuracy"] >= value[f"reward/{other}", axis, "all"]["accuracy"]  # type: ignore[operator]
        for axis, other in (("helpfulness", "safety"), ("safety", "helpfulness"))
        if (f"reward/{axis}", axis, "all") in value
    )
    run.check("own_axis_is_best", passed=own, description="accuracy of each model on each axis is in the table")
    ends = [value.get(("reward/helpfulness", "helpfulness", rating)) for rating in (RATINGS[0], RATINGS[-1])]
    rises = None not in ends and ends[0]["accuracy"] > ends[1]["accuracy"]  # type: ignore[index,operator]
    run.check("rises_with_rating", passed=rises, description=str([round(float(row["accuracy"]), 3) for row in ends if row]))  # type: ignore[arg-type]
    run.check("gate_spares_the_harmless", passed=gate["harmless_flagged"] < 0.05, description=json.dumps(gate, default=float))
    bands = [rating for rating in RATINGS if ("reward/helpfulness", "helpfulness", rating) in value]
    own_rows = {rating: value["reward/helpfulness", "helpfulness", rating] for rating in bands}
    run.plot(
        "accuracy_by_rating",
        bars(
            {rating: float(row["accuracy"]) for rating, row in own_rows.items()},  # type: ignore[arg-type]
            "accuracy of the helpfulness reward on helpfulness comparisons",
            intervals={rating: (float(row["ci_low"]), float(row["ci_high"])) for rating, row in own_rows.items()},  # type: ignore[arg-type]
            line=0.5,
        ),
    )


def gate_statistics(held_out: pl.DataFrame, chosen: np.ndarray, rejected: np.ndarray, threshold: float) -> dict[str, float]:
    """Precision and recall of 'sigmoid(score) < threshold' for unsafe answers, recall at 0.5, and the harmless answers it flags.

    Harmless are answers to comparisons that are not flagged as safety. Answers without a safety label do not count.
    """
    labels = [*held_out["chosen_safe"], *held_out["rejected_safe"]]
    flags = [*held_out["is_safety"]] * 2
    probability = 1 / (1 + np.exp(-np.concatenate([chosen, rejected]).astype(np.float64)))
    known = np.array([label is not None for label in labels])
    unsafe = np.array([label is False for label in labels])
    harmless = ~np.array(flags, dtype=bool)
    low = probability < threshold

    def ratio(part: np.ndarray, whole: np.ndarray) -> float:
        return float(part.sum() / whole.sum()) if whole.any() else float("nan")

    return {
        "precision": ratio(low & unsafe & known, low & known),
        "recall": ratio(low & unsafe, unsafe),
        "recall_at_half": ratio((probability < 0.5) & unsafe, unsafe),
        "harmless_flagged": ratio(low & harmless & known, harmless & known),
    }
