"""The first three assets on text that is not what it should be: counted and kept aside, or one clear error."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from homes import Home

from assets.corpus.documents_asset import documents
from assets.corpus.filtered_asset import filtered
from assets.tokenizer import sentencepiece
from resources.errors import TampuError

NAMES = ("lake", "river", "hill", "forest", "village", "garden", "harbour", "market", "bridge", "meadow")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def story(number: int) -> dict[str, Any]:
    random = np.random.default_rng(number)
    a, b, c = (str(name) for name in random.choice(NAMES, 3, replace=False))
    text = f"We went from the {a} to the {b} on day {number}, and it was {c} weather.\nThen they said that the {c} was far from here."
    return {"id": f"row-{number}", "text": text}


def lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def read(home: Home, path: Path, *, allowed: float = 0.05, check: bool = True, **more: Any) -> dict[str, bool]:
    """Makes `corpus/documents` and `corpus/filtered` of one source; the checks by name."""
    source = {"name": "mine", "reader": "jsonl", "licence": "CC0-1.0", "path": str(path), "id_field": "id", **more}
    config = {"corpus/documents": {"sources": [source], "bad_rows_max": allowed, "validation_share": 0.2, "test_share": 0.2}}
    result = home.make(documents, filtered, config=config, check=check)
    return {one.check_name: one.passed for one in result.get_asset_check_evaluations()}


def parts(home: Home, asset: str, name: str) -> pl.DataFrame:
    return pl.read_parquet(home.current(asset).file(name), glob=False)


def test_every_row_is_a_document_or_in_the_quarantine_and_every_document_kept_or_rejected_once(home: Home, tmp_path: Path) -> None:
    stories = [story(number) for number in range(40)]
    bad = [b'{"id": "latin", "text": "caf\xe9"}', b'{"id": "nul", "text": "a\\u0000b"}', b"\0\0\0", b"no json", b'{"id": "x", "text": " "}']
    again = lines([{"id": "row-3", "text": "Another text of the same id."}])
    short = lines([{"id": "short", "text": "too short"}])
    long = json.dumps({"id": "long", "text": "a" * (17 << 20)}).encode() + b"\n"
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(stories) + b"\n".join(bad) + b"\n" + again + short + long)
    checks = read(home, path, allowed=0.2)
    assert all(checks.values()) and {"rows_add_up", "counts_add_up", "few_bad_rows"} <= set(checks)
    quarantine = parts(home, "corpus/documents", "quarantine.parquet")
    assert sorted(quarantine["line"]) == [*sorted({41, 42, 43, 44, 45, *quarantine["line"]} - {48}), 48]
    assert Counter(reason.split(" ")[0] for reason in quarantine["reason"])["invalid"] == 1
    assert quarantine.height == 7 and set(quarantine["file"]) == {"rows.jsonl"} and quarantine["reason"].null_count() == 0
    kept, rejects = (parts(home, "corpus/filtered", name) for name in ("documents.parquet", "rejects.parquet"))
    read_in = parts(home, "corpus/documents", "documents.parquet")["document_id"].to_list()
    assert sorted([*kept["document_id"], *rejects["document_id"]]) == read_in and len(read_in) == 41
    assert rejects.filter(pl.col("document_id") == "mine/short").select("filter", "value").row(0) == ("words", 2.0)


def test_too_many_bad_rows_stop_the_run_and_name_the_source(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines([story(number) for number in range(18)]) + b"no json\n")
    checks = read(home, path, check=False)
    assert not checks["few_bad_rows"] and "counts_add_up" not in checks
    assert read(home, path, allowed=0.06)["few_bad_rows"]


def test_a_source_of_which_every_document_is_rejected_stops_the_run(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines([{"id": number, "text": f"only {number}"} for number in range(9)]))
    checks = read(home, path, check=False)
    assert checks["counts_add_up"] and not checks["every_source_left"] and not checks["every_split_left"]


def test_a_source_without_a_readable_row_is_one_error_with_the_first_reason(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\0\0\0\n")
    with pytest.raises(TampuError, match="The source mine gave no document; the first of 1 quarantined rows: not JSON"):
        read(home, path)
    path.write_bytes(b"")
    with pytest.raises(TampuError, match=r"The source mine gave no document$"):
        read(home, path)


def test_a_vocabulary_that_the_corpus_can_not_fill_names_the_size_that_it_can(home: Home, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines([story(number) for number in range(40)]))
    read(home, path)
    with pytest.raises(TampuError, match=r"tokenizer/sentencepiece: .*vocab_size 100000 .* \d+ pieces at most; set a smaller"):
        home.make(documents, filtered, sentencepiece, only=[sentencepiece], config={"tokenizer/sentencepiece": {"vocab_size": 100_000}})


def test_the_order_of_rows_and_files_changes_no_document(home: Home, tmp_path: Path) -> None:
    rows = lines([story(number) for number in range(40)]).splitlines(keepends=True)
    found = []
    for name, order in (("one", rows), ("two", rows[::-1])):
        folder = tmp_path / name
        folder.mkdir()
        for part in range(2):
            (folder / f"{part}.jsonl").write_bytes(b"".join(order[part::2]))
        read(home, folder)
        found.append(home.current("corpus/filtered").data_version)
    assert found[0] == found[1]
