"""The warehouse: Parquet files that assets write, and a duckdb file with nothing in it but views over them.

    $TAMPU_HOME/warehouse/<table>/<asset with __>@<partition or _>@<profile>@<key>.parquet
    $TAMPU_HOME/warehouse/current/<asset with __>@<partition or _>@<profile>@<key>.parquet    when it was last made
    $TAMPU_HOME/warehouse.duckdb                                                              views only

Every Parquet file appears by a rename, so a query during a run sees a file whole or not at all, and nobody ever holds a
lock. What is current is the key that was made last; its file comes after its rows' files, none is ever taken away, and the
views look for it before they look for rows: so a query always finds the rows of what it takes for current.
Every file can be derived from artifacts and pointers again, and a materialization puts right what differs.
One artifact can stand for two rounds or two profiles (nothing in its inputs differed): each has its own file with
its own `round` and `profile`, so both find their rows. `<table>_current` keeps the rows whose key is the one that is
current for their profile, asset and round. Energy alone is counted once, where the work was done.
"""

import tempfile
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from resources.disk import disk_troubles, parquet_bytes, write_whole
from resources.environment import carbon
from resources.errors import TampuError
from resources.manifests import Artifact
from resources.store import ArtifactStore
from resources.tables import COMMON, FROM_MANIFEST, TABLES, TEXT, TIME, conform

CURRENT: dict[str, pl.DataType] = {
    "profile": TEXT,
    "asset": TEXT,
    "partition": TEXT,
    "round": TEXT,
    "key": TEXT,
    "data_version": TEXT,
    "materialized_at": TIME,
}
# duckdb's names for statements that only read; SHOW, DESCRIBE, SUMMARIZE and FROM are SELECT, PIVOT is MULTI.
READS = frozenset(("SELECT", "MULTI"))
_viewed: set[Path] = set()  # homes whose views this process has written
SQL_TYPES = {"String": "VARCHAR", "Int64": "BIGINT", "Float64": "DOUBLE", "Boolean": "BOOLEAN", "Datetime": "TIMESTAMP"}


def publish(store: ArtifactStore, artifact: Artifact, profile: str) -> list[str]:
    """Write the artifact's rows where they are missing or other than they should be, and what is current.

    Returns the tables that were written.
    """
    written = []
    with disk_troubles(store.root):
        for table in published_tables(artifact, profile):
            path = published_file(store, table, artifact, profile)
            content = parquet_bytes(published_rows(artifact, table, profile))
            if not path.exists() or path.read_bytes() != content:
                write_whole(path, content, durable=False)
                written.append(table)
        write_whole(current_file(store, artifact, profile), parquet_bytes(current_row(store, profile, artifact)), durable=False)
    _ensure_views(store)
    return written


def published_tables(artifact: Artifact, profile: str) -> list[str]:
    """The tables in which an artifact has rows."""
    tables = [table for table in FROM_MANIFEST if table != "carbon" or _did_the_work(artifact, profile)]
    return [*tables, *artifact.manifest["tables"]]


def published_file(store: ArtifactStore, table: str, artifact: Artifact, profile: str) -> Path:
    """The warehouse file of one artifact in one table."""
    return store.root / "warehouse" / table / _file_name(artifact, profile)


def published_rows(artifact: Artifact, table: str, profile: str) -> pl.DataFrame:
    """What the warehouse holds of an artifact in one table."""
    if table in FROM_MANIFEST:
        rows = pl.DataFrame(_MANIFEST_ROWS[table](artifact), schema=TABLES[table])
    else:
        rows = artifact.frame(f"rows/{table}.parquet")
    common = {
        "asset": artifact.asset,
        "key": artifact.key,
        "data_version": artifact.data_version,
        "profile": profile,
        "round": artifact.round,
    }
    frame = conform(table, rows, TABLES[table], late_columns=True)
    filled = frame.with_columns(pl.lit(value, dtype=TEXT).alias(name) for name, value in common.items())
    return filled.select(*COMMON, *TABLES[table])


def current_file(store: ArtifactStore, artifact: Artifact, profile: str) -> Path:
    """The file that says when the artifact was last made."""
    return store.root / "warehouse" / "current" / _file_name(artifact, profile)


def current_row(store: ArtifactStore, profile: str, artifact: Artifact) -> pl.DataFrame:
    """The one row that says what the pointer of this asset and partition says."""
    pointer = store.pointer(artifact.asset, artifact.partition, profile)
    if pointer is None:
        raise TampuError(f"{artifact.label} is not current under {profile!r}: make it again")
    row = {
        "profile": profile,
        "asset": artifact.asset,
        "partition": artifact.partition,
        "round": artifact.round,
        "key": pointer["key"],
        "data_version": pointer["data_version"],
        "materialized_at": datetime.fromisoformat(pointer["materialized_at"]).replace(tzinfo=None),
    }
    return pl.DataFrame([row], schema=CURRENT)


def _file_name(artifact: Artifact, profile: str) -> str:
    """The name of an artifact's files."""
    return f"{artifact.asset.replace('/', '__')}@{artifact.partition or '_'}@{profile}@{artifact.key}.parquet"


def _did_the_work(artifact: Artifact, profile: str) -> bool:
    """Whether the artifact was made for this very profile and partition: its energy is counted there and once."""
    manifest = artifact.manifest
    return manifest["applied"] and (manifest["profile"], manifest["partition"]) == (profile, artifact.partition)


def _artifact_row(artifact: Artifact) -> list[dict[str, Any]]:
    """The row of table `artifacts`; the path is relative to the home, so that a moved home stays right."""
    manifest = artifact.manifest
    return [
        {
            "partition": artifact.partition,
            "code_version": manifest["code_version"],
            "git_commit": manifest["git"]["commit"],
            "git_dirty": manifest["git"]["dirty"],
            "created_at": datetime.fromisoformat(manifest["created_at"]).replace(tzinfo=None),
            "seconds": manifest["seconds"],
            "bytes": sum(entry["bytes"] for entry in manifest["files"]),
            "applied": manifest["applied"],
            "path": f"artifacts/{artifact.asset}/{artifact.key}",
        }
    ]


def _lineage_rows(artifact: Artifact) -> list[dict[str, Any]]:
    """A row for each artifact that was read or cited, and for each raw file."""
    child = {
        "child": artifact.asset,
        "child_partition": artifact.partition,
        "child_version": artifact.data_version,
    }
    rows = []
    cited = [{"relation": "cited", **one} for one in artifact.manifest["cited"]]
    for one in [*artifact.manifest["inputs"], *cited]:
        parent = {
            "relation": one["relation"],
            "parent": one["asset"],
            "parent_partition": one["partition"],
            "parent_key": one["key"],
            "parent_version": one["data_version"],
        }
        rows.append(child | parent)
    for file in artifact.manifest["raw_files"]:
        parent = {
            "relation": "file",
            "parent": file["name"],
            "parent_partition": None,
            "parent_key": None,
            "parent_version": file["sha256"],
        }
        rows.append(child | parent)
    return rows


def _carbon_rows(artifact: Artifact) -> list[dict[str, Any]]:
    """A row for each kind of device that worked on the artifact."""
    return [carbon(one["device"], one["device_hours"], one["watts"]) for one in artifact.manifest["carbon"]]


_MANIFEST_ROWS = {"artifacts": _artifact_row, "lineage": _lineage_rows, "carbon": _carbon_rows}


# Views


def rebuild_views(store: ArtifactStore) -> Path:
    """Write `warehouse.duckdb` anew for where the home lies now; readers of the old file keep what they have open."""
    path = store.root / "warehouse.duckdb"
    with disk_troubles(store.root):
        for table, schema in {**TABLES, "current": CURRENT}.items():
            columns = schema if table == "current" else {**COMMON, **schema}
            content = parquet_bytes(pl.DataFrame(schema=columns))
            empty = store.root / "warehouse" / table / "schema.parquet"
            if not empty.exists() or empty.read_bytes() != content:
                write_whole(empty, content, durable=False)
        write_whole(path, _views(store.root), durable=False)
    _viewed.add(store.root)
    return path


def _ensure_views(store: ArtifactStore) -> Path:
    """The views' file, rebuilt once a process, because the home may have been moved since it was written."""
    path = store.root / "warehouse.duckdb"
    return path if store.root in _viewed and path.exists() else rebuild_views(store)


def _views(root: Path) -> bytes:
    """A duckdb file with the views, made in a place whose name duckdb cannot misread (it takes `?` for an option)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "views.duckdb"
        connection = duckdb.connect()
        try:
            # A storage version that every duckdb from 1.0 on opens.
            connection.execute(f"ATTACH {_text(str(path))} AS views (STORAGE_VERSION 'v1.0.0')")
            connection.execute("USE views")
            for statement in _view_statements(root):
                connection.execute(statement)
            connection.execute("USE memory")
            connection.execute("DETACH views")
        finally:
            connection.close()
        return path.read_bytes()


def _view_statements(root: Path) -> list[str]:
    """CREATE VIEW statements: `current`, each table, and each table's current rows."""
    made_last = 'QUALIFY row_number() OVER (PARTITION BY profile, asset, "partition" ORDER BY materialized_at DESC) = 1'
    statements = [f"{_view('current', CURRENT, root)} {made_last}"]
    for table, schema in TABLES.items():
        statements.append(_view(table, {**COMMON, **schema}, root))
        # `latest` stands first, because duckdb lists the files of what stands first before those of what follows.
        statements.append(
            f"CREATE VIEW {_name(table + '_current')} AS SELECT facts.* "
            f'FROM (SELECT DISTINCT profile, asset, key, round FROM "current") AS latest JOIN {_name(table)} AS facts '
            "ON latest.profile = facts.profile AND latest.asset = facts.asset "
            "AND latest.key = facts.key AND latest.round IS NOT DISTINCT FROM facts.round"
        )
    return statements


def _view(table: str, schema: dict[str, pl.DataType], root: Path) -> str:
    """One view over a folder of Parquet files, with stable columns and types; artifacts' paths become absolute."""
    columns = []
    for column, kind in schema.items():
        value = f"CAST({_name(column)} AS {SQL_TYPES[type(kind).__name__]})"
        if (table, column) == ("artifacts", "path"):
            value = f"{_text(str(root) + '/')} || {value}"
        columns.append(f"{value} AS {_name(column)}")
    pattern = _glob(str(root / "warehouse" / table)) + "/*.parquet"
    source = f"read_parquet({_text(pattern)}, union_by_name = true, hive_partitioning = false)"
    return f"CREATE VIEW {_name(table)} AS SELECT {', '.join(columns)} FROM {source}"


def _name(identifier: str) -> str:
    """A quoted SQL identifier."""
    return '"' + identifier.replace('"', '""') + '"'


def _text(value: str) -> str:
    """A quoted SQL text."""
    return "'" + value.replace("'", "''") + "'"


def _glob(path: str) -> str:
    """A path in which the pattern characters stand for themselves."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in path)


def query(store: ArtifactStore, sql: str, parameters: Sequence[Any] = ()) -> pl.DataFrame:
    """The rows that a SQL query over the views gives, as a frame: integers of any width as Int64, decimals as Float64.

    Only statements that read are run. Raises TampuError with duckdb's message when the query cannot be answered, and
    naming the kind of statement when it would do something else than read.
    """
    path = _ensure_views(store)
    connection = duckdb.connect(str(path), read_only=True)
    try:
        _only_reads(connection, sql)
        connection.execute("SET lock_configuration = true")
        relation = connection.sql(sql, params=list(parameters) or None)
        if relation is None:
            return pl.DataFrame()
        names, kinds, rows = relation.columns, [str(kind) for kind in relation.types], relation.fetchall()
    except duckdb.Error as error:
        raise TampuError(f"the warehouse cannot answer this query: {error}") from None
    finally:
        connection.close()
    columns = [[row[index] for row in rows] for index in range(len(names))]
    return pl.DataFrame([_series(*column) for column in zip(_distinct(names), kinds, columns, strict=True)])


def _only_reads(connection: "duckdb.DuckDBPyConnection", sql: str) -> None:
    """Refuse what a read-only database would still do outside itself: COPY ... TO, ATTACH, EXPORT, INSTALL, EXPLAIN ANALYZE of these."""
    statements = connection.extract_statements(sql)
    if not statements:
        raise TampuError("the query is empty: `SHOW TABLES` lists what there is")
    for statement in statements:
        if statement.type.name not in READS:
            kind = statement.type.name
            raise TampuError(f"the warehouse is read-only, and this is a {kind} statement: ask with SELECT, FROM, SHOW, DESCRIBE or SUMMARIZE")


def _series(name: str, kind: str, values: list[Any]) -> pl.Series:
    """A column of a query's result; kinds that a table cannot hold (intervals, lists) are left to Polars."""
    if "INT" in kind and "[" not in kind and "(" not in kind and "INTERVAL" not in kind:
        return pl.Series(name, values, dtype=pl.Int64)
    if kind in ("DOUBLE", "FLOAT") or kind.startswith("DECIMAL"):
        return pl.Series(name, [None if value is None else float(value) for value in values], dtype=pl.Float64)
    if kind in ("UUID", "VARCHAR") or kind.startswith("ENUM"):
        return pl.Series(name, [None if value is None else str(value) for value in values], dtype=pl.String)
    exact: dict[str, pl.DataType] = {"BOOLEAN": pl.Boolean(), "DATE": pl.Date(), "TIMESTAMP": pl.Datetime("us")}
    return pl.Series(name, values, dtype=exact.get(kind), strict=False)


def _distinct(names: Sequence[str]) -> list[str]:
    """Column names with a number after each repeated one: SQL may repeat them, a frame may not."""
    result: list[str] = []
    for name in names:
        tries = [name, *(f"{name}_{number}" for number in range(1, len(names) + 1))]
        result.append(next(one for one in tries if one not in result))
    return result
