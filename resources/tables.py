"""The warehouse's tables as data: which columns each has, and of which type. One row is one fact.

Every table also has the `COMMON` columns, which the store fills in. A column that is added here later is null in rows
that were written before. Times are UTC. `NOT_NULL` are the columns that make a row a fact at all.
"""

import numbers
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import polars as pl

from resources.errors import TampuError

TEXT, INTEGER, NUMBER, FLAG, TIME = pl.String(), pl.Int64(), pl.Float64(), pl.Boolean(), pl.Datetime("us")

KINDS: dict[pl.DataType, type] = {
    TEXT: str,
    INTEGER: numbers.Integral,
    NUMBER: numbers.Real,
    FLAG: bool,
    TIME: datetime,
}

COMMON: dict[str, pl.DataType] = {
    "asset": TEXT,
    "key": TEXT,
    "data_version": TEXT,
    "profile": TEXT,
    "round": TEXT,
}

TABLES: dict[str, dict[str, pl.DataType]] = {
    "artifacts": {
        "partition": TEXT,
        "code_version": TEXT,
        "git_commit": TEXT,
        "git_dirty": FLAG,
        "created_at": TIME,
        "seconds": NUMBER,
        "bytes": INTEGER,
        "applied": FLAG,
        "path": TEXT,
    },
    "lineage": {
        "child": TEXT,
        "child_partition": TEXT,
        "child_version": TEXT,
        "relation": TEXT,
        "parent": TEXT,
        "parent_partition": TEXT,
        "parent_key": TEXT,
        "parent_version": TEXT,
    },
    "training_metrics": {"step": INTEGER, "tokens": INTEGER, "metric": TEXT, "value": NUMBER},
    "corpus_filters": {
        "source": TEXT,
        "filter": TEXT,
        "documents_in": INTEGER,
        "documents_out": INTEGER,
        "bytes_in": INTEGER,
        "bytes_out": INTEGER,
    },
    "corpus_investigation": {
        "investigation": TEXT,
        "source": TEXT,
        "kind": TEXT,
        "term": TEXT,
        "metric": TEXT,
        "value": NUMBER,
    },
    "preference_batches": {
        "batch": TEXT,
        "source": TEXT,
        "comparisons": INTEGER,
        "turns": NUMBER,
        "tokens_example": NUMBER,
        "tokens_prompt": NUMBER,
        "tokens_response": NUMBER,
        "quarantined": INTEGER,
    },
    "reward_accuracy": {
        "reward_model": TEXT,
        "test_set": TEXT,
        "rating": TEXT,
        "n": INTEGER,
        "accuracy": NUMBER,
        "ceiling": NUMBER,
        "ci_low": NUMBER,
        "ci_high": NUMBER,
    },
    "win_rates": {
        "model": TEXT,
        "opponent": TEXT,
        "model_version": TEXT,
        "opponent_version": TEXT,
        "judge": TEXT,
        "axis": TEXT,
        "wins": INTEGER,
        "ties": INTEGER,
        "losses": INTEGER,
        "n": INTEGER,
        "win_rate": NUMBER,
        "ci_low": NUMBER,
        "ci_high": NUMBER,
        "inconsistent": INTEGER,
        "first_share": NUMBER,
        "failed": INTEGER,
    },
    "safety": {
        "model": TEXT,
        "suite": TEXT,
        "category": TEXT,
        "metric": TEXT,
        "value": NUMBER,
        "n": INTEGER,
        "ci_low": NUMBER,
        "ci_high": NUMBER,
    },
    "benchmarks": {
        "model": TEXT,
        "task": TEXT,
        "task_group": TEXT,
        "shots": INTEGER,
        "metric": TEXT,
        "value": NUMBER,
        "stderr": NUMBER,
        "n": INTEGER,
    },
    "reward_hacking": {
        "model": TEXT,
        "judge": TEXT,
        "probe": TEXT,
        "metric": TEXT,
        "value": NUMBER,
        "n": INTEGER,
        "ci_low": NUMBER,
        "ci_high": NUMBER,
    },
    "ghost_attention": {"model": TEXT, "turn": INTEGER, "variant": TEXT, "recall": NUMBER, "n": INTEGER},
    "contamination": {
        "dataset": TEXT,
        "subset": TEXT,
        "min_length": INTEGER,
        "n": INTEGER,
        "contamination": NUMBER,
        "mean": NUMBER,
        "z": NUMBER,
    },
    "human_ratings": {
        "item": TEXT,
        "rater": TEXT,
        "model": TEXT,
        "opponent": TEXT,
        "rating": TEXT,
        "axis": TEXT,
        "question": TEXT,
    },
    "rater_agreement": {
        "question": TEXT,
        "model": TEXT,
        "opponent": TEXT,
        "coefficient": TEXT,
        "value": NUMBER,
        "ci_low": NUMBER,
        "ci_high": NUMBER,
        "items": INTEGER,
        "raters": INTEGER,
        "ratings": INTEGER,
    },
    "red_team": {
        "person": TEXT,
        "model": TEXT,
        "dialogues": INTEGER,
        "hours": NUMBER,
        "prompts": INTEGER,
        "violations": INTEGER,
        "gamma": NUMBER,
        "ci_low": NUMBER,
        "ci_high": NUMBER,
    },
    "carbon": {"device": TEXT, "device_hours": NUMBER, "watts": NUMBER, "kwh": NUMBER, "tco2e": NUMBER},
}

FROM_MANIFEST = ("artifacts", "lineage", "carbon")
NOT_NULL = {
    "training_metrics": ("step", "metric"),
    "corpus_filters": ("source", "filter"),
    "corpus_investigation": ("investigation", "source", "metric"),
    "preference_batches": ("batch", "source", "comparisons"),
    "reward_accuracy": ("reward_model", "test_set", "rating", "n"),
    "win_rates": ("model", "opponent", "judge", "axis", "n"),
    "safety": ("model", "suite", "category", "metric", "n"),
    "benchmarks": ("model", "task", "metric"),
    "reward_hacking": ("model", "probe", "metric", "n"),
    "ghost_attention": ("model", "turn", "variant", "n"),
    "contamination": ("dataset", "subset", "n"),
    "human_ratings": ("item", "rater", "model", "rating", "axis"),
    "rater_agreement": ("question", "coefficient", "items", "raters", "ratings"),
    "red_team": ("person", "model", "prompts", "violations"),
}


def rows_of(table: str, rows: pl.DataFrame | Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """`rows` with exactly the table's own columns, in order and of their types.

    Raises TampuError naming the table and the column when a column is unknown, missing, of another kind (a text is
    never read as a number, a fraction never cut to an integer), or null where a fact needs it.
    """
    if table not in TABLES or table in FROM_MANIFEST:
        known = ", ".join(name for name in TABLES if name not in FROM_MANIFEST)
        raise TampuError(f"there is no table {table!r} to write rows to: the tables are {known}")
    frame = rows if isinstance(rows, pl.DataFrame) else _from_dicts(table, rows)
    return conform(table, frame, TABLES[table], late_columns=False)


def conform(table: str, frame: pl.DataFrame, schema: Mapping[str, pl.DataType], *, late_columns: bool) -> pl.DataFrame:
    """`frame` cast to `schema`; with `late_columns`, columns that it lacks are null: it is older than they are."""
    missing = _check_columns(table, frame.columns, schema)
    if missing and not late_columns:
        raise TampuError(f"rows for table {table} lack the column {missing[0]!r}: give it, as null where it is not known")
    columns = []
    for name, wanted in schema.items():
        if name in missing:
            columns.append(pl.Series(name, [None] * frame.height, dtype=wanted))
        else:
            columns.append(_cast(table, frame[name], wanted))
    result = pl.DataFrame(columns) if columns else pl.DataFrame()
    for name in NOT_NULL.get(table, ()):
        if name in result.columns and name not in missing and result[name].null_count():
            raise TampuError(f"table {table} has a row without {name!r}, which every row of it needs")
    return result


def _check_columns(table: str, names: Sequence[str], schema: Mapping[str, pl.DataType]) -> list[str]:
    """Columns of the table that are not among `names`. Raises TampuError for a name that is not a column of it."""
    if unknown := [name for name in names if name not in schema]:
        hint = " (asset, key, data_version, profile and round are filled in by the store)"
        raise TampuError(
            f"table {table} has no column {unknown[0]!r}: its columns are {', '.join(schema)}" + (hint if unknown[0] in COMMON else "")
        )
    return [name for name in schema if name not in names]


def _from_dicts(table: str, rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """A frame of dictionaries that all have the same columns."""
    schema = TABLES[table]
    for number, row in enumerate(rows):
        if missing := _check_columns(table, list(row), schema):
            raise TampuError(f"row {number} for table {table} lacks {missing[0]!r}: give it, None where it is not known")
        for name, value in row.items():
            kind, wanted = KINDS[schema[name]], schema[name]
            if value is not None and (not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)):
                raise TampuError(f"row {number} for table {table} has {value!r} in {name!r}, which holds {wanted}: convert it first")
    return pl.DataFrame({name: pl.Series(name, [row[name] for row in rows], dtype=kind) for name, kind in schema.items()})


def _cast(table: str, series: pl.Series, wanted: pl.DataType) -> pl.Series:
    """A column in the wanted type, where nothing is lost by that."""
    given = series.dtype
    text = given == pl.String or isinstance(given, pl.Categorical | pl.Enum)
    allowed = (
        given in (wanted, pl.Null)
        or (wanted == TEXT and text)
        or (wanted == INTEGER and given.is_integer())
        or (wanted == NUMBER and given.is_numeric())
        or (wanted == TIME and isinstance(given, pl.Datetime))
    )
    if not allowed:
        raise TampuError(f"column {series.name!r} of table {table} holds {wanted}, not {given}: convert it first")
    try:
        return series.cast(wanted, strict=True)
    except pl.exceptions.InvalidOperationError as error:
        raise TampuError(f"column {series.name!r} of table {table} holds {wanted}: {error}") from None
