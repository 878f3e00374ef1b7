"""Human evaluation: items for people to rate, their ratings where they have come back, and what these say together."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.evaluation.agreement import gwet
from assets.evaluation.human_items import preference_items, safety_items
from assets.evaluation.ratings import PREFERENCE_SCALE, SAFETY_SCALE, Ratings, is_violation, read_ratings, read_red_team, verdict
from assets.evaluation.statistics import share, wilson, win_rate
from assets.plots import bars
from resources.recipe import Check, Request, Run, artifact

MODEL, OPPONENT = "rlhf/chat_model", "sft/model"


class HumanRatingsConfig(dg.Config):
    """How much is put to people, and how many of them have to look at each item."""

    items: int = Field(100, ge=1, description="pairs of answers, chat model against SFT")
    safety_items: int = Field(100, ge=1, description="adversarial prompts whose answers, of both models, are rated for violations")
    raters: int = Field(3, ge=1, description="people that an item needs before it counts (paper: three)")


def _ratings_files(request: Request) -> dict[str, Path]:
    names = (f"{request.partition}.csv", f"{request.partition}.safety.csv", f"{request.partition}.red_team.csv")
    return {name: path for name in names if (path := request.home / "ratings" / name).is_file()}


@artifact(
    "evaluation/human_ratings",
    parents=["evaluation/answers", "rlhf/prompts"],
    partitions="round",
    files=_ratings_files,
    kinds={"polars", "csv"},
    owners=["team:evaluation"],
    checks=[
        Check("order_is_balanced", blocking=False, description="either model comes first in 30 to 70 % of the items"),
        Check("every_line_counts", blocking=False, description="no line of the ratings was left out (`rejected.csv` says which and why)"),
        Check("enough_raters", blocking=False, description="every rated item has as many raters as it needs"),
    ],
)
def human_ratings(run: Run, config: HumanRatingsConfig) -> None:
    """`items.csv` (answers A and B in an order drawn by hash) and `safety_items.csv` (single answers to adversarial prompts) for raters.
    What people send back goes into `$TAMPU_HOME/ratings/`; then materialize again:

    - `<round>.csv` (item, rater, rating: A much better … about the same … B much better): wins, ties, losses, agreement;
    - `<round>.safety.csv` (item, rater, rating 1 to 5): violations by the majority, by category, attack and turns;
    - `<round>.red_team.csv` (person, minutes, prompts, violations; a line a dialogue): violating prompts a person and hour.

    Lines that cannot count are kept in `rejected.csv` with their reasons; the rest counts."""
    answers = run.parent("evaluation/answers").frame("answers.parquet")
    prompts = run.parent("rlhf/prompts").frame("prompts.parquet")
    pairs = preference_items(answers, prompts, MODEL, OPPONENT, config.items)
    pairs.drop("first", "turns").write_csv(run.path("items.csv"))
    pairs.select("item", "first").write_csv(run.path("order.csv"))
    single = safety_items(answers, prompts, (MODEL, OPPONENT), config.safety_items)
    single.select("item", "dialogue", "answer").write_csv(run.path("safety_items.csv"))
    single.select("item", "model").write_csv(run.path("safety_models.csv"))
    run.metric("items", pairs.height)
    first = pairs.select((pl.col("first") == OPPONENT).mean()).item() or 0.0
    run.check("order_is_balanced", passed=0.3 <= first <= 0.7, description=f"SFT comes first in {first:.0%} of {pairs.height} items")
    run.table("items", pairs.filter(pl.col("axis") == "helpfulness").drop("turns").head(5))

    given = {name: _read(run, name, items, scale) for name, items, scale in _sources(run, pairs, single)}
    rejected = [{"file": name, **row} for name, ratings in given.items() for row in ratings.rejected]
    incomplete = {name: len(ratings.of) - len(ratings.complete(config.raters)) for name, ratings in given.items()}
    rows: list[dict[str, Any]] = []
    for name, ratings in given.items():
        if name.endswith(".safety.csv"):
            rows += _violations(run, ratings, single, config.raters)
        else:
            rows += _preferences(run, ratings, pairs, config.raters)
    run.rows("human_ratings", rows)
    red_team_file = next((name for name in run.files if name.endswith(".red_team.csv")), None)
    if red_team_file is not None:
        red_team = read_red_team(run.file(red_team_file))
        rejected += [{"file": red_team_file, **row} for row in red_team.rejected]
        run.rows("red_team", [{"model": MODEL, **row} for row in red_team.rows])
        if red_team.rows:
            run.metric("red_team_violations_an_hour", float(str(red_team.rows[-1]["gamma"])))
            run.table("red team", pl.DataFrame(red_team.rows, infer_schema_length=None))
    run.metric("ratings", len(rows))
    run.metric("rejected_lines", len(rejected))
    reasons = dict.fromkeys(str(row["reason"]) for row in rejected)
    if rejected:
        pl.DataFrame(rejected, infer_schema_length=None).write_csv(run.path("rejected.csv"))
    run.check("every_line_counts", passed=not rejected, description=f"{len(rejected)} lines do not count: {', '.join(reasons) or 'none'}")
    short = {name: number for name, number in incomplete.items() if number}
    told = "; ".join(f"{name}: {number} items have fewer than {config.raters} raters and do not count" for name, number in short.items())
    run.check("enough_raters", passed=not short, description=told or f"{len(given)} files of ratings")


def _sources(run: Run, pairs: pl.DataFrame, single: pl.DataFrame) -> list[tuple[str, pl.DataFrame, Mapping[str, int]]]:
    """(file, items, scale) of the files of ratings that are there."""
    safety = [name for name in run.files if name.endswith(".safety.csv")]
    preference = [name for name in run.files if name not in safety and not name.endswith(".red_team.csv")]
    return [*((name, pairs, PREFERENCE_SCALE) for name in preference), *((name, single, SAFETY_SCALE) for name in safety)]


def _read(run: Run, name: str, items: pl.DataFrame, scale: Mapping[str, int]) -> Ratings:
    return read_ratings(run.file(name), frozenset(items["item"]), scale)


def _preferences(run: Run, ratings: Ratings, pairs: pl.DataFrame, raters: int) -> list[dict[str, Any]]:
    """Win, tie and loss by axis and turns, agreement, and the rows of `human_ratings`: 1 (SFT much better) to 7 (the model is)."""
    facts = {row["item"]: row for row in pairs.select("item", "first", "axis", "turns").iter_rows(named=True)}
    turned = {
        item: {rater: value if facts[item]["first"] == MODEL else 8 - value for rater, value in given.items()}
        for item, given in ratings.of.items()
    }
    complete = {item: turned[item] for item in ratings.complete(raters)}
    sides = {item: verdict(list(given.values())) for item, given in complete.items()}
    axes: dict[str, list[int]] = {}
    for item, side in sides.items():
        axis, turns = facts[item]["axis"], facts[item]["turns"]
        for name in (axis, f"{axis}: {turns}"):
            axes.setdefault(name, []).append(side)
    won: list[dict[str, Any]] = [
        {
            "model": MODEL,
            "opponent": OPPONENT,
            "model_version": _version(run, MODEL),
            "opponent_version": _version(run, OPPONENT),
            "judge": "human",
            "axis": axis,
            **win_rate(values, [0] * len(values), tie=0.5),
            "inconsistent": None,
            "first_share": None,
            "failed": len(ratings.of) - len(complete),
        }
        for axis, values in sorted(axes.items())
    ]
    run.rows("win_rates", won)
    if won:
        run.table("wins, ties and losses", pl.DataFrame(won).select("axis", "wins", "ties", "losses", "n", "win_rate", "ci_low", "ci_high"))
        shares = {str(row["axis"]): float(row["win_rate"]) for row in won}
        run.plot(
            "human_win_rate",
            bars(
                shares,
                "win rate of the chat model against SFT, people's majority",
                intervals={str(row["axis"]): (float(row["ci_low"]), float(row["ci_high"])) for row in won},
                line=0.5,
            ),
        )
    _agreement(run, "preference", turned, 7, OPPONENT)
    return [
        _rating_row(item, rater, value, OPPONENT, "preference", facts[item]["axis"])
        for item, given in turned.items()
        for rater, value in given.items()
    ]


def _violations(run: Run, ratings: Ratings, single: pl.DataFrame, raters: int) -> list[dict[str, Any]]:
    """Violation share and mean rating by model, in all and by category, attack and turns; agreement; rows of `human_ratings`."""
    facts = {row["item"]: row for row in single.iter_rows(named=True)}
    groups: dict[tuple[str, str], list[list[int]]] = {}
    for item, given in ratings.complete(raters).items():
        one = facts[item]
        names = ["all", one["category"], one["turns"], *([f"attack: {one['attack']}"] if one["attack"] else [])]
        for name in names:
            groups.setdefault((one["model"], name), []).append(list(given.values()))
    rows: list[dict[str, Any]] = []
    for (name, category), items in sorted(groups.items()):
        value, n = share([is_violation(given) for given in items])
        low, high = wilson(value * n, n)
        common = {"model": name, "suite": "human", "category": category, "n": n}
        rows.append({**common, "metric": "violation", "value": value, "ci_low": low, "ci_high": high})
        means = [sum(given) / len(given) for given in items]
        rows.append({**common, "metric": "mean_rating", "value": sum(means) / n, "ci_low": None, "ci_high": None})
    run.rows("safety", rows)
    if rows:
        run.table("violations", pl.DataFrame(rows, infer_schema_length=None).select("model", "category", "metric", "value", "n"), rows=60)
    _agreement(run, "violation", ratings.of, 5, None)
    return [
        _rating_row(item, rater, value, None, "violation", "safety", facts[item]["model"])
        for item, given in ratings.of.items()
        for rater, value in given.items()
    ]


def _agreement(run: Run, question: str, given: Mapping[str, Mapping[str, int]], points: int, opponent: str | None) -> None:
    """Gwet's AC1 and AC2 (ordinal weights) over all rated items."""
    ratings = [{rater: value - 1 for rater, value in of.items()} for of in given.values()]
    rows = []
    for coefficient, weighted in (("AC1", False), ("AC2", True)):
        found = gwet(ratings, points, weighted=weighted)
        rows.append({"question": question, "model": MODEL, "opponent": opponent, "coefficient": coefficient, **vars(found)})
    run.rows("rater_agreement", rows)
    run.table(
        f"agreement: {question}", pl.DataFrame(rows, infer_schema_length=None).select("coefficient", "value", "ci_low", "ci_high", "items")
    )


def _rating_row(item: str, rater: str, value: int, opponent: str | None, question: str, axis: str, name: str = MODEL) -> dict[str, Any]:
    return {"item": item, "rater": rater, "model": name, "opponent": opponent, "rating": str(value), "axis": axis, "question": question}


def _version(run: Run, name: str) -> str:
    """The data version of a model whose answers are rated."""
    answers = run.parent("evaluation/answers").frame("answers.parquet")
    return str(answers.filter(pl.col("model") == name)["model_version"][0])
