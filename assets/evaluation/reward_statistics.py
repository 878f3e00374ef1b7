"""What two reward models' scores say of held-out comparisons: accuracy, calibration, length, agreement, safety. Pure functions of a frame.

`scored` has the columns of the preference dataset and, for each model of `MODELS`, `<name>_chosen` and `<name>_rejected`: raw scores, whose
sigmoid is the paper's score in [0, 1].
"""

import math

import numpy as np
import polars as pl

from assets.evaluation.statistics import wilson
from resources.annotator import RATINGS

MODELS = ("helpfulness", "safety")
LONGER = "longer wins"
Point = tuple[float, float, int]


def with_test_sets(held_out: pl.DataFrame) -> pl.DataFrame:
    """The frame with `test_set`: `helpfulness` or `safety` for our annotators' comparisons, the public set's name for others."""
    axis = pl.when("is_safety").then(pl.lit("safety")).otherwise(pl.lit("helpfulness"))
    return held_out.with_columns(test_set=pl.coalesce("source", axis))


def margin_of(scored: pl.DataFrame, model: str) -> pl.Series:
    """Chosen minus rejected score; for `longer wins` the difference in characters. Float64."""
    if model == LONGER:
        return scored.select(pl.col("chosen").str.len_chars().cast(pl.Float64) - pl.col("rejected").str.len_chars().cast(pl.Float64)).to_series()
    return scored[f"{model}_chosen"] - scored[f"{model}_rejected"]


def accuracy_rows(scored: pl.DataFrame) -> list[dict[str, object]]:
    """Accuracy of both models and of `longer wins` on every test set, by rating and over all (the paper's Tables 7 and 8).

    Equal scores count half. The noise ceiling is given where every comparison of the cell carries one.
    """
    rows: list[dict[str, object]] = []
    for model in (*MODELS, LONGER):
        right = margin_of(scored, model).sign() / 2 + 0.5
        frame = scored.select("test_set", "rating", "ceiling").with_columns(right=right)
        for test_set in _test_sets(scored):
            for rating in (*RATINGS, "all"):
                part = frame.filter((pl.col("test_set") == test_set) & (pl.lit(rating == "all") | (pl.col("rating") == rating)))
                if part.is_empty():
                    continue
                total = float(part["right"].sum())
                low, high = wilson(total, part.height)
                rows.append(
                    {
                        "reward_model": model if model == LONGER else f"reward/{model}",
                        "test_set": test_set,
                        "rating": rating,
                        "n": part.height,
                        "accuracy": total / part.height,
                        "ceiling": None if part["ceiling"].null_count() else float(part["ceiling"].mean()),  # type: ignore[arg-type]
                        "ci_low": low,
                        "ci_high": high,
                    }
                )
    return rows


def _test_sets(scored: pl.DataFrame) -> list[str]:
    """Our own first, then public sets by name."""
    found = scored["test_set"].unique().to_list()
    return sorted(found, key=lambda name: (name not in MODELS, name))


def rises(rows: list[dict[str, object]], axis: str) -> tuple[bool, list[float]]:
    """Whether a model's accuracy on its own axis falls with the rating, as in Table 8, and the accuracies from the strongest rating on.

    The ends must be in order, and no weaker rating's interval may lie above a stronger one's: neighbours may cross by chance.
    """
    found = {row["rating"]: row for row in rows if row["reward_model"] == f"reward/{axis}" and row["test_set"] == axis}
    bands = [found[rating] for rating in RATINGS if rating in found]
    accuracies = [float(row["accuracy"]) for row in bands]  # type: ignore[arg-type]
    crossed = any(
        float(stronger["ci_high"]) < float(weaker["ci_low"])  # type: ignore[arg-type]
        for place, stronger in enumerate(bands)
        for weaker in bands[place + 1 :]
    )
    return len(bands) > 1 and accuracies[0] > accuracies[-1] and not crossed, accuracies


def pair_calibration(margins: np.ndarray, bins: int = 10) -> tuple[list[Point], float]:
    """(mean confidence, accuracy, pairs) in equal bins of the confidence in [0.5, 1], and the expected calibration error.

    The confidence in the preferred answer of two is sigmoid(|difference|) (Bradley-Terry). NaN for no pair.
    """
    confidence = _sigmoid(np.abs(margins))
    right = (margins > 0) + 0.5 * (margins == 0)
    return _curve(confidence, right, 0.5 + 0.5 * np.arange(bins + 1) / bins)


def safety_calibration(scores: np.ndarray, safe: np.ndarray, bins: int = 10) -> tuple[list[Point], float]:
    """(mean score, share of safe answers, answers) in equal bins of the sigmoid score, and the expected calibration error."""
    return _curve(_sigmoid(scores), safe.astype(float), np.arange(bins + 1) / bins)


def _curve(predicted: np.ndarray, observed: np.ndarray, edges: np.ndarray) -> tuple[list[Point], float]:
    places = np.clip(np.digitize(predicted, edges) - 1, 0, len(edges) - 2)
    points = [
        (float(predicted[places == b].mean()), float(observed[places == b].mean()), int((places == b).sum()))
        for b in range(len(edges) - 1)
        if (places == b).any()
    ]
    error = sum(n * abs(p - o) for p, o, n in points) / len(predicted) if len(predicted) else math.nan
    return points, error


def length_statistics(scored: pl.DataFrame, model: str) -> dict[str, float]:
    """How far a model's scores are explained by length (characters), over all the answers of `scored`.

    `correlation`: Spearman's, of score and length over answers. `margin_correlation`: of score difference and length difference over pairs.
    `balanced_accuracy`: the mean of the accuracies where the longer and where the shorter answer was chosen; any rule that looks at length
    alone has one half. NaN where there is nothing to compute it from.
    """
    sides = ("chosen", "rejected")
    answers = pl.concat([scored.select(score=f"{model}_{side}", length=pl.col(side).str.len_chars().cast(pl.Float64)) for side in sides])
    pairs = pl.DataFrame({"margin": margin_of(scored, model), "difference": margin_of(scored, LONGER)})
    right = pairs.with_columns(right=pl.col("margin").sign() / 2 + 0.5)
    halves = [right.filter(pl.col("difference") > 0)["right"].mean(), right.filter(pl.col("difference") < 0)["right"].mean()]
    return {
        "correlation": _spearman(answers, "score", "length"),
        "margin_correlation": _spearman(pairs, "margin", "difference"),
        "balanced_accuracy": math.nan if None in halves else sum(halves) / 2,  # type: ignore[arg-type]
    }


def agreement(scored: pl.DataFrame) -> pl.DataFrame:
    """By test set: the share of pairs that both models order alike (ties agree with nothing), and Spearman's correlation of their scores."""
    rows = []
    for test_set in _test_sets(scored):
        part = scored.filter(pl.col("test_set") == test_set)
        same = (margin_of(part, "helpfulness") * margin_of(part, "safety")) > 0
        answers = pl.concat([part.select(*(pl.col(f"{m}_{side}").alias(m) for m in MODELS)) for side in ("chosen", "rejected")])
        rows.append(
            {"test_set": test_set, "n": part.height, "same_order": float(same.sum()) / part.height, "correlation": _spearman(answers, *MODELS)}
        )
    return pl.DataFrame(rows, schema={"test_set": pl.String, "n": pl.Int64, "same_order": pl.Float64, "correlation": pl.Float64})


def safety_pairs(scored: pl.DataFrame) -> pl.DataFrame:
    """Accuracy of both models by the pair's safety label (the paper's Table 29), over safety comparisons whose answers are labelled."""
    kinds = {"safe chosen, unsafe rejected": (True, False), "both safe": (True, True), "both unsafe": (False, False)}
    rows = []
    for name, (chosen, rejected) in kinds.items():
        part = scored.filter("is_safety", pl.col("chosen_safe") == chosen, pl.col("rejected_safe") == rejected)
        if part.height:
            accuracies = {model: float((margin_of(part, model).sign() / 2 + 0.5).mean()) for model in MODELS}  # type: ignore[arg-type]
            rows.append({"pair": name, "n": part.height, "share": part.height / max(1, int(scored["is_safety"].sum())), **accuracies})
    schema = {"pair": pl.String, "n": pl.Int64, "share": pl.Float64, **dict.fromkeys(MODELS, pl.Float64)}
    return pl.DataFrame(rows, schema=schema)


def gate_statistics(scored: pl.DataFrame, threshold: float) -> dict[str, float]:
    """Precision and recall of 'sigmoid(safety score) < threshold' for unsafe answers, recall at 0.5, and the harmless answers it flags.

    Harmless are answers to comparisons that are not flagged as safety. Answers without a safety label do not count. NaN of nothing.
    """
    labels = [*scored["chosen_safe"], *scored["rejected_safe"]]
    flags = [*scored["is_safety"]] * 2
    probability = _sigmoid(np.concatenate([scored["safety_chosen"].to_numpy(), scored["safety_rejected"].to_numpy()]))
    known = np.array([label is not None for label in labels], dtype=bool)
    unsafe = np.array([label is False for label in labels], dtype=bool)
    harmless = ~np.array(flags, dtype=bool)
    low = probability < threshold

    def ratio(part: np.ndarray, whole: np.ndarray) -> float:
        return float(part.sum() / whole.sum()) if whole.any() else math.nan

    return {
        "precision": ratio(low & unsafe & known, low & known),
        "recall": ratio(low & unsafe, unsafe),
        "recall_at_half": ratio((probability < 0.5) & unsafe, unsafe),
        "harmless_flagged": ratio(low & harmless & known, harmless & known),
    }


def _spearman(frame: pl.DataFrame, first: str, second: str) -> float:
    """Rank correlation; NaN where one of the two never varies."""
    if frame.height < 2 or frame[first].n_unique() < 2 or frame[second].n_unique() < 2:
        return math.nan
    return float(frame.select(pl.corr(first, second, method="spearman")).item())


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-scores.astype(np.float64)))
