"""The warehouse: one row a fact, current views, and readers that never wait or see half a file."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import polars as pl
import pytest
from homes import Home, artifact, start
from recipes import GRAPH, drop, foundation, next_round

from resources import tables
from resources.disk import temporary_name
from resources.errors import TampuError
from resources.recipe import Run
from resources.store import ArtifactStore
from resources.tables import TABLES, rows_of
from resources.warehouse import SQL_TYPES, query, rebuild_views

METRIC = {"step": 1, "tokens": 8, "metric": "train_loss", "value": 2.5}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


class Loss(dg.Config):
    """The number to report, and how often."""

    value: float = 2.5
    steps: int = 1


@artifact("sft/model")
def sft(run: Run, config: Loss) -> None:
    """One number."""
    rows = [METRIC | {"step": step, "value": config.value} for step in range(1, config.steps + 1)]
    run.rows("training_metrics", rows)


def make(home: Home, value: float = 2.5, steps: int = 1) -> None:
    """Materialize a model whose loss is `value`."""
    home.make(sft, config={"sft/model": {"value": value, "steps": steps}})


def ask(home: Home, sql: str) -> list[tuple[Any, ...]]:
    return query(home.store, sql).rows()


# Rows


def test_rows_are_published_with_the_version_that_they_belong_to(home: Home) -> None:
    make(home)
    made = home.current("sft/model")
    facts = "asset, key, data_version, profile, round, step, tokens, metric, value"
    expected = ("sft/model", made.key, made.data_version, "tiny", None, 1, 8, "train_loss", 2.5)
    assert ask(home, f"SELECT {facts} FROM training_metrics") == [expected]


def test_every_table_of_the_design_can_be_queried_before_anything_was_made(home: Home) -> None:
    for table, schema in TABLES.items():
        for name in (table, f"{table}_current"):
            frame = query(home.store, f"SELECT * FROM {name}")
            assert frame.columns == [*tables.COMMON, *schema] and frame.height == 0
            assert [frame.schema[column] for column in schema] == list(schema.values())


def test_artifacts_lineage_and_carbon_come_from_the_manifest(home: Home) -> None:
    foundation(home)
    drop(home, "w1")
    next_round(home)
    made = home.current("rlhf/chat_model", "v1")
    sql = "SELECT partition, round, code_version, seconds, bytes, path FROM artifacts WHERE asset = 'rlhf/chat_model'"
    ((partition, round_name, code, seconds, size, path),) = ask(home, sql)
    assert (partition, round_name, code, path) == ("v1", "v1", made.manifest["code_version"], str(made.path))
    assert seconds == made.manifest["seconds"] and size == sum(one["bytes"] for one in made.manifest["files"])
    facts = "relation, parent, parent_partition, parent_version"
    sql = f"SELECT {facts} FROM lineage WHERE child = 'rlhf/chat_model' ORDER BY ALL"
    samples, sft = home.current("rlhf/samples", "v1"), home.current("sft/model")
    assert ask(home, sql) == [
        ("parent", "rlhf/samples", "v1", samples.data_version),
        ("parent", "sft/model", None, sft.data_version),
        ("previous", "sft/model", None, sft.data_version),
    ]
    sql = "SELECT relation, parent, length(parent_version) FROM lineage WHERE child = 'preferences/batches'"
    assert ask(home, sql) == [("file", "w1.jsonl", 64)]
    ((kwh, tco2e),) = ask(home, "SELECT kwh, tco2e FROM carbon WHERE asset = 'sft/model'")
    used = home.current("sft/model").manifest["carbon"][0]
    assert kwh == pytest.approx(used["device_hours"] * used["watts"] * 1.1 / 1000)
    assert tco2e == pytest.approx(kwh * 0.385 / 1000)


def test_the_energy_of_an_artifact_that_two_rounds_share_is_counted_once(home: Home) -> None:
    foundation(home)
    drop(home, "w1")
    next_round(home)
    next_round(home)
    sql = "SELECT count(*), count(DISTINCT key) FROM {} WHERE asset = 'preferences/dataset'"
    assert ask(home, sql.format("artifacts")) == [(2, 1)]
    assert ask(home, sql.format("carbon")) == [(1, 1)]


def test_two_rounds_that_share_an_artifact_each_find_its_rows(home: Home) -> None:
    foundation(home)
    drop(home, "w1")
    next_round(home)
    next_round(home)
    sql = "SELECT round, comparisons FROM preference_batches_current ORDER BY round"
    assert ask(home, sql) == [("v1", 3), ("v2", 3)]


def test_current_views_show_the_latest_version_of_each_fact_and_tables_keep_all(home: Home) -> None:
    make(home, 2.5)
    make(home, 1.5)
    assert sorted(ask(home, "SELECT value FROM training_metrics")) == [(1.5,), (2.5,)]
    assert ask(home, "SELECT value FROM training_metrics_current") == [(1.5,)]
    make(home, 2.5)
    assert ask(home, "SELECT value FROM training_metrics_current") == [(2.5,)]


def test_when_one_round_moves_on_from_a_shared_artifact_the_other_keeps_its_rows(home: Home) -> None:
    foundation(home)
    drop(home, "w1")
    next_round(home)
    next_round(home)

    @artifact("preferences/dataset", partitions="round", parents=["preferences/batches"])
    def changed(run: Run) -> None:
        """Counts otherwise."""
        counts = {"turns": 1.0, "tokens_example": 2, "tokens_prompt": None, "tokens_response": None, "quarantined": 0}
        run.rows("preference_batches", [{"batch": "all", "source": "people", "comparisons": 99, **counts}])

    home.make(changed, *GRAPH[:2], only=[changed], partition="v2")
    sql = "SELECT round, comparisons FROM preference_batches_current ORDER BY round"
    assert ask(home, sql) == [("v1", 3), ("v2", 99)]


def test_profiles_have_their_own_current_rows(home: Home) -> None:
    make(home, 2.5)
    home.profile = "smol"
    make(home, 2.5)
    make(home, 1.5)
    sql = "SELECT profile, value FROM training_metrics_current ORDER BY profile"
    assert ask(home, sql) == [("smol", 1.5), ("tiny", 2.5)]


def test_missing_warehouse_files_are_written_again_when_the_artifact_is_reused(home: Home) -> None:
    make(home)
    before = ask(home, "SELECT * FROM training_metrics_current")
    shutil.rmtree(home.store.root / "warehouse")
    (home.store.root / "warehouse.duckdb").unlink()
    make(home)
    assert ask(home, "SELECT * FROM training_metrics_current") == before


# Types


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([METRIC | {"lr": 1}], "table training_metrics has no column 'lr': its columns are step, tokens"),
        ([METRIC | {"asset": "a"}], "no column 'asset'.*filled in by the store"),
        ([{"step": 1, "metric": "a", "value": 1.0}], "row 0 for table training_metrics lacks 'tokens'"),
        ([METRIC, {"step": 1}], "row 1 for table training_metrics lacks 'tokens'"),
        ([METRIC | {"step": 1.5}], "row 0 for table training_metrics has 1.5 in 'step', which holds Int64"),
        ([METRIC | {"step": True}], "has True in 'step'"),
        ([METRIC | {"value": "2.5"}], "has '2.5' in 'value', which holds Float64"),
        ([METRIC | {"metric": None}], "table training_metrics has a row without 'metric'"),
        (pl.DataFrame([METRIC | {"step": 1.0}]), "column 'step' of table training_metrics holds Int64, not Float64"),
        (pl.DataFrame([METRIC | {"value": "x"}]), "column 'value' of table training_metrics holds Float64, not String"),
        (pl.DataFrame([METRIC]).drop("tokens"), "rows for table training_metrics lack the column 'tokens'"),
        (pl.DataFrame([METRIC]).with_columns(step=pl.lit(2**63, pl.UInt64)), "column 'step' .* holds Int64: "),
    ],
)
def test_rows_that_do_not_fit_their_table_are_refused_by_column(rows: Any, message: str) -> None:
    with pytest.raises(TampuError, match=message):
        rows_of("training_metrics", rows)


def test_rows_take_the_tables_types_and_order_whatever_they_came_in() -> None:
    import numpy

    mixed = [
        {"value": 2, "metric": "a", "tokens": None, "step": numpy.int32(1)},
        {"step": 2, "tokens": 5, "metric": "b", "value": numpy.float32(0.5)},
    ]
    frame = rows_of("training_metrics", mixed)
    assert frame.schema == pl.Schema(TABLES["training_metrics"])
    assert frame.rows() == [(1, None, "a", 2.0), (2, 5, "b", 0.5)]
    small = pl.DataFrame(mixed[1:]).with_columns(pl.col("step").cast(pl.Int8), pl.col("metric").cast(pl.Categorical))
    assert rows_of("training_metrics", small).rows() == [(2, 5, "b", 0.5)]
    assert rows_of("training_metrics", []).schema == frame.schema


def test_rows_of_several_calls_add_up(home: Home) -> None:
    @artifact("sft/model")
    def twice(run: Run) -> None:
        """Reports in two goes."""
        run.rows("training_metrics", [METRIC])
        run.rows("training_metrics", pl.DataFrame([METRIC | {"step": 2}]))

    home.make(twice)
    assert ask(home, "SELECT step FROM training_metrics ORDER BY step") == [(1,), (2,)]


def test_a_column_that_a_table_got_later_is_null_in_rows_written_before(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    make(home)
    later = {**TABLES["training_metrics"], "seed": pl.Int64()}
    monkeypatch.setitem(TABLES, "training_metrics", later)
    rebuild_views(home.store)
    assert ask(home, "SELECT step, seed FROM training_metrics_current") == [(1, None)]
    shutil.rmtree(home.store.root / "warehouse")
    make(home)
    assert ask(home, "SELECT step, seed FROM training_metrics_current") == [(1, None)]


def test_every_type_of_a_column_has_a_type_in_sql() -> None:
    kinds = {type(kind).__name__ for schema in TABLES.values() for kind in schema.values()}
    assert kinds <= set(SQL_TYPES)


# Places and readers


@pytest.mark.parametrize("name", ["it's a home", "x[1]*?", 'quote"d', "profile=tiny"])
def test_a_home_may_have_any_name(tmp_path: Path, name: str) -> None:
    home = Home(tmp_path / name)
    make(home)
    assert ask(home, "SELECT value FROM training_metrics_current") == [(2.5,)]
    assert ask(home, "SELECT path FROM artifacts") == [(str(home.current("sft/model").path),)]


def test_a_home_that_was_moved_heals_with_the_next_command(home: Home, tmp_path: Path) -> None:
    make(home)
    query(home.store, "SELECT 1")
    shutil.move(home.store.root, tmp_path / "moved")
    moved = Home(tmp_path / "moved")
    rebuild_views(moved.store)
    with duckdb.connect(str(moved.store.root / "warehouse.duckdb"), read_only=True) as connection:
        assert connection.sql("SELECT value FROM training_metrics_current").fetchall() == [(2.5,)]
        assert connection.sql("SELECT path FROM artifacts").fetchall() == [(str(moved.current("sft/model").path),)]


def test_the_views_survive_under_any_name_of_the_file_and_hold_no_rows(home: Home, tmp_path: Path) -> None:
    make(home)
    shutil.copy(home.store.root / "warehouse.duckdb", tmp_path / "other.duckdb")
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{tmp_path / 'other.duckdb'}' AS elsewhere (READ_ONLY)")
        connection.execute("USE elsewhere")
        assert connection.sql("SELECT count(*) FROM training_metrics_current").fetchall() == [(1,)]
        sql = "SELECT count(*) FROM duckdb_tables() WHERE database_name = 'elsewhere'"
        assert connection.sql(sql).fetchall() == [(0,)]
        ((tags,),) = connection.sql("SELECT tags FROM duckdb_databases() WHERE database_name = 'elsewhere'").fetchall()
    assert "v1.0.0" in str(tags), tags


def test_a_bad_query_is_one_clear_error(home: Home) -> None:
    make(home)
    for sql in ("SELECT nothing FROM nowhere", "SELEC"):
        with pytest.raises(TampuError, match="the warehouse cannot answer this query"):
            query(home.store, sql)
    with pytest.raises(TampuError, match="the query is empty"):
        query(home.store, "-- nothing")
    assert query(home.store, "SELECT value FROM training_metrics WHERE value > ?", [1]).height == 1


@pytest.mark.parametrize(
    "sql",
    [
        "DROP VIEW training_metrics",
        "CREATE TABLE t (a INTEGER)",
        "COPY (SELECT 1) TO '{folder}/out.csv'",
        "SELECT 1; COPY (SELECT 1) TO '{folder}/out.csv'",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{folder}/out.csv'",
        "ATTACH '{folder}/out.duckdb'",
        "EXPORT DATABASE '{folder}/out'",
        "INSTALL httpfs",
        "SET threads = 1",
        "PRAGMA enable_profiling",
        "PREPARE p AS SELECT 1",
    ],
)
def test_a_query_that_would_do_more_than_read_is_refused_and_leaves_no_file(home: Home, tmp_path: Path, sql: str) -> None:
    make(home)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    with pytest.raises(TampuError, match=r"the warehouse is read-only, and this is a [A-Z_]+ statement: ask with SELECT"):
        query(home.store, sql.format(folder=folder))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    "sql",
    [
        "SHOW TABLES",
        "DESCRIBE win_rates",
        "FROM training_metrics",
        "SUMMARIZE training_metrics",
        "WITH a AS (SELECT 1 AS one) FROM a",
        "VALUES (1)",
    ],
)
def test_every_way_to_read_is_open(home: Home, sql: str) -> None:
    make(home)
    assert query(home.store, sql).height >= 1


def test_a_query_gives_plain_types_also_for_sums_decimals_and_repeated_names(home: Home) -> None:
    make(home)
    frame = query(home.store, "SELECT sum(step) AS n, 0.5 AS half, count(*) AS n, [1, 2] AS many FROM training_metrics")
    assert frame.columns == ["n", "half", "n_1", "many"]
    assert frame.dtypes == [pl.Int64, pl.Float64, pl.Int64, pl.List(pl.Int64)]


def test_a_query_leaves_no_noise_on_the_terminal(home: Home, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom resources.store import ArtifactStore\nfrom resources.warehouse import query\n"
        "print(query(ArtifactStore(home=sys.argv[1]), 'SELECT 1 AS one').item())"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", script, str(home.store.root)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert (done.stdout, done.stderr) == ("1\n", "")


READER = """
import sys, duckdb
from pathlib import Path

connection = duckdb.connect(sys.argv[1], read_only=True)
seen = []
stopping = False
while not stopping:
    stopping = Path(sys.argv[2]).exists()
    for table in ("training_metrics", "training_metrics_current"):
        connection.execute(f"SELECT count(*), count(value), count(DISTINCT key) FROM {table}")
        seen.append(connection.fetchone())
    if len(seen) == 2:
        print("reading", flush=True)
assert all(rows == values == 500 * keys for rows, values, keys in seen), seen
assert [seen[0][2], seen[1][2], seen[-2][2], seen[-1][2]] == [1, 1, 9, 1], seen
"""


def test_a_reader_in_another_process_sees_every_file_whole_while_a_run_writes(home: Home, tmp_path: Path) -> None:
    make(home, 0, steps=500)
    (tmp_path / "reader.py").write_text(READER)
    reader = start(tmp_path / "reader.py", str(home.store.root / "warehouse.duckdb"), str(tmp_path / "stop"))
    assert reader.stdout is not None and reader.stdout.readline() == "reading\n"
    for value in range(1, 9):
        make(home, value, steps=500)
        rebuild_views(home.store)
    (tmp_path / "stop").touch()
    _, error = reader.communicate()
    assert reader.returncode == 0, error


CLIENT = """
import sys, duckdb
from pathlib import Path
from resources.store import ArtifactStore
from resources.warehouse import query, rebuild_views

# A client that opens the file anew for every question, as scripts and notebooks do, or asks through `tampu query`'s own function.
file, stop, way = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
store = ArtifactStore(home=str(file.parent))
asked = 0
sql = "SELECT count(*), count(value), count(DISTINCT key) FROM training_metrics_current"
while asked < 2 or not stop.exists():
    if way == "query":
        rebuild_views(store)
        row = query(store, sql).row(0)
    else:
        with duckdb.connect(str(file), read_only=True) as connection:
            row = connection.execute(sql).fetchone()
    assert row == (300, 300, 1), row
    asked += 1
    if asked == 1:
        print("reading", flush=True)
"""


def test_many_readers_meet_no_lock_and_always_one_whole_current_version_while_runs_write(home: Home, tmp_path: Path) -> None:
    make(home, 0, steps=300)
    (tmp_path / "client.py").write_text(CLIENT)
    arguments = (str(home.store.root / "warehouse.duckdb"), str(tmp_path / "stop"))
    readers = [start(tmp_path / "client.py", *arguments, way) for way in ("query", "connect", "query", "connect")]
    for reader in readers:
        assert reader.stdout is not None and reader.stdout.readline() == "reading\n"
    for value in range(1, 6):
        make(home, value, steps=300)
        rebuild_views(home.store)
    (tmp_path / "stop").touch()
    for reader in readers:
        _, error = reader.communicate()
        assert reader.returncode == 0, error


def test_what_a_killed_writer_left_behind_is_not_seen(home: Home) -> None:
    make(home)
    folder = home.store.root / "warehouse" / "training_metrics"
    whole = next(path for path in folder.glob("sft__model@*.parquet"))
    temporary_name(whole).write_bytes(whole.read_bytes()[:100])
    temporary_name(home.store.root / "warehouse.duckdb").write_bytes(b"half")
    assert ask(home, "SELECT value FROM training_metrics_current") == [(2.5,)]
    rebuild_views(home.store)
    assert ask(home, "SELECT value FROM training_metrics_current") == [(2.5,)]


def test_a_store_that_nobody_wrote_to_answers_with_no_rows(tmp_path: Path) -> None:
    store = ArtifactStore(home=str(tmp_path / "new"))
    assert query(store, "SELECT * FROM win_rates_current").height == 0
