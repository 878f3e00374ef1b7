"""Both reward models on every held-out set (the shape of the paper's Tables 7, 8 and 29), their calibration, and the safety gate."""

import json
import math
from typing import TYPE_CHECKING

import dagster as dg
import numpy as np
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.evaluation.reward_statistics import (
    MODELS,
    accuracy_rows,
    agreement,
    gate_statistics,
    length_statistics,
    margin_of,
    pair_calibration,
    rises,
    safety_calibration,
    safety_pairs,
    with_test_sets,
)
from assets.plots import bars, calibration, grid, histograms
from resources.annotator import RATINGS
from resources.errors import TampuError
from resources.recipe import Check, Run, artifact

if TYPE_CHECKING:
    from assets.rlhf.scoring import RewardModels


SIDES = ("chosen", "rejected")


class RewardAccuracyConfig(dg.Config):
    """The gate of section 3.2.3."""

    threshold: float = Field(0.15, ge=0, le=1, description="safety score below which an answer counts as unsafe")


@artifact(
    "evaluation/reward_accuracy",
    parents=["preferences/dataset", "reward/helpfulness", "reward/safety", "tokenizer/sentencepiece"],
    partitions="round",
    kinds={"pytorch", "polars"},
    owners=["team:evaluation"],
    checks=[
        Check("own_axis_is_best", blocking=False, description="each reward model is the better one on its own axis"),
        Check("rises_with_rating", blocking=False, description="the more one answer is preferred, the more often the model agrees"),
        Check("not_length_alone", blocking=False, description="each model is right above one half when long and short choices count alike"),
        Check("gate_spares_the_harmless", blocking=False, description="under 5 % of harmless answers fall below the safety gate"),
    ],
)
def reward_accuracy(run: Run, config: RewardAccuracyConfig) -> None:
    """Accuracy of both models on every held-out set by rating, over the noise ceiling; calibration, length, agreement, the gate at 0.15."""
    from assets.rlhf.scoring import RewardModels

    held_out = run.parent("preferences/dataset").frame("comparisons.parquet").filter(pl.col("part") == "held_out")
    scored = with_test_sets(_scored(run, RewardModels(run, config.threshold), held_out))
    run.write_frame("scores.parquet", scored.select("comparison_id", "batch", "test_set", *(f"{m}_{s}" for m in MODELS for s in SIDES)))
    rows = accuracy_rows(scored)
    run.rows("reward_accuracy", rows)
    value = {(row["reward_model"], row["test_set"], row["rating"]): row for row in rows}
    for axis in MODELS:
        overall = value.get((f"reward/{axis}", axis, "all"))
        if overall is None:
            continue
        run.metric(f"{axis}_accuracy", overall["accuracy"])  # type: ignore[arg-type]
        if overall["ceiling"]:
            run.metric(f"{axis}_accuracy_over_ceiling", overall["accuracy"] / overall["ceiling"])  # type: ignore[operator]
    _accuracy_tables(run, rows)
    _calibration(run, scored)
    _length(run, scored)
    together = agreement(scored)
    run.table("agreement of the two models", together)
    run.metric("models_agree", float(together.select((pl.col("same_order") * pl.col("n")).sum() / pl.col("n").sum()).item()))
    run.table("safety pairs (Table 29)", safety_pairs(scored))

    gate = gate_statistics(scored, config.threshold)
    for name, number in gate.items():
        if np.isfinite(number):
            run.metric(f"gate_{name}", number)
    own = all(
        value[f"reward/{axis}", axis, "all"]["accuracy"] >= value[f"reward/{other}", axis, "all"]["accuracy"]  # type: ignore[operator]
        for axis, other in (MODELS, MODELS[::-1])
        if (f"reward/{axis}", axis, "all") in value
    )
    run.check("own_axis_is_best", passed=own, description="accuracy of each model on each axis is in the table")
    order = {axis: rises(rows, axis) for axis in MODELS if (f"reward/{axis}", axis, "all") in value}
    said = {axis: [round(accuracy, 3) for accuracy in accuracies] for axis, (_, accuracies) in order.items()}
    run.check("rises_with_rating", passed=all(passed for passed, _ in order.values()), description=f"from the strongest rating on: {said}")
    run.check("gate_spares_the_harmless", passed=gate["harmless_flagged"] < 0.05, description=json.dumps(gate, default=float))


def _scored(run: Run, models: "RewardModels", held_out: pl.DataFrame) -> pl.DataFrame:
    """The comparisons with both models' raw scores; those longer than the models' context are counted and left out."""
    longest = models.longest
    dialogues = [json.loads(text) for text in held_out["prompt"]]
    fits = [
        max(models.length(messages, answer) for answer in answers) <= longest
        for messages, answers in zip(dialogues, held_out.select(SIDES).iter_rows(), strict=True)
    ]
    run.metric("longer_than_context", len(fits) - sum(fits))
    kept = held_out.filter(pl.Series(fits, dtype=pl.Boolean))
    if kept.is_empty():
        raise TampuError(f"{run.label}: none of {held_out.height} held-out comparisons fits into the models' context of {longest} tokens")
    dialogues = [messages for messages, fit in zip(dialogues, fits, strict=True) if fit]
    columns = {}
    for side in SIDES:
        for name, logits in zip(MODELS, models.logits(dialogues, kept[side].to_list()), strict=True):
            columns[f"{name}_{side}"] = pl.Series(logits.astype(np.float64))
    return kept.with_columns(**columns)


def _accuracy_tables(run: Run, rows: list[dict[str, object]]) -> None:
    table = pl.DataFrame(rows, infer_schema_length=None)
    run.table("accuracy", table)
    overall = table.filter(pl.col("rating") == "all").pivot("test_set", index="reward_model", values="accuracy")
    run.table("accuracy by test set (Table 7)", overall)
    banded = table.pivot("rating", index=["reward_model", "test_set"], values="accuracy")
    run.table("accuracy by rating (Table 8)", banded)
    columns = [*(rating for rating in RATINGS if rating in banded.columns), "all"]
    values = [[math.nan if cell is None else float(cell) for cell in row] for row in banded.select(columns).iter_rows()]
    names = [f"{name}, {test_set}" for name, test_set in banded.select("reward_model", "test_set").iter_rows()]
    run.plot("accuracy_by_test_set", grid(names, columns, values))
    for axis in MODELS:
        own = [row for row in rows if row["reward_model"] == f"reward/{axis}" and row["test_set"] == axis and row["rating"] != "all"]
        if own:
            run.plot(
                "accuracy_by_rating" if axis == "helpfulness" else f"accuracy_by_rating_{axis}",
                bars(
                    {str(row["rating"]): float(row["accuracy"]) for row in own},  # type: ignore[arg-type]
                    f"accuracy of the {axis} reward on {axis} comparisons",
                    intervals={str(row["rating"]): (float(row["ci_low"]), float(row["ci_high"])) for row in own},  # type: ignore[arg-type]
                    line=0.5,
                ),
            )


def _calibration(run: Run, scored: pl.DataFrame) -> None:
    """How often the preferred of two is right, by confidence, each model on its own axis; and how often a score's answer is safe."""
    curves = {}
    for axis in MODELS:
        own = scored.filter(pl.col("is_safety") == (axis == "safety"))
        if own.height:
            curves[axis], error = pair_calibration(margin_of(own, axis).to_numpy())
            run.metric(f"{axis}_calibration_error", error)
        sides = {side: 1 / (1 + np.exp(-scored[f"{axis}_{side}"].to_numpy())) for side in SIDES}
        run.plot(f"{axis}_scores", histograms(sides, f"{axis} score of held-out answers (sigmoid)"))
    run.plot("calibration", calibration(curves, "confidence in the preferred answer", "accuracy"))
    labelled = pl.concat([scored.select(score=f"safety_{side}", safe=f"{side}_safe") for side in SIDES]).drop_nulls()
    if labelled.height:
        points, error = safety_calibration(labelled["score"].to_numpy(), labelled["safe"].to_numpy())
        run.metric("safe_answers_calibration_error", error)
        run.plot("safety_calibration", calibration({"safety": points}, "safety score (sigmoid)", "share of safe answers"))
        kinds = {name: labelled.filter(pl.col("safe") == safe)["score"].to_numpy() for name, safe in (("safe", True), ("unsafe", False))}
        probabilities = {name: 1 / (1 + np.exp(-scores)) for name, scores in kinds.items()}
        run.plot("safety_scores_by_label", histograms(probabilities, "safety score of labelled answers (sigmoid)"))


def _length(run: Run, scored: pl.DataFrame) -> None:
    """What length explains, and the check on it."""
    found = {}
    for axis in MODELS:
        own = scored.filter(pl.col("is_safety") == (axis == "safety"))
        if own.is_empty():
            continue
        found[axis] = length_statistics(own, axis)
        for name, number in found[axis].items():
            if math.isfinite(number):
                run.metric(f"{axis}_length_{name}", number)
    run.table("scores and length", pl.DataFrame([{"model": axis, **row} for axis, row in found.items()]))
    balanced = {axis: row["balanced_accuracy"] for axis, row in found.items() if math.isfinite(row["balanced_accuracy"])}
    run.check(
        "not_length_alone",
        passed=bool(balanced) and all(number > 0.5 for number in balanced.values()),
        description=f"accuracy, pairs with the longer and with the shorter answer chosen counting alike: {balanced}",
    )
