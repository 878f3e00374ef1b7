"""What is made for corpora larger than memory gives the same rows however it is cut."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.corpus.characters import Characters, Spans
from assets.corpus.domains import checked, excluded
from assets.corpus.filtered_asset import uneven
from assets.corpus.filters import FILTERS, FilterSettings, apply_filters, filter_corpus
from assets.corpus.quality import WEB, Quality, broken_rule, measure
from assets.corpus.repeated_lines import RepeatedLines
from assets.corpus.spill import ShingleSets
from resources import parts
from resources.errors import TampuError
from resources.external_sort import ExternalSort
from resources.parts import PartWriter, batches, in_order, part_files, read_parts
from resources.sources import DOCUMENT_SCHEMA

# What Python takes for white space and the regular expressions do not.
PYTHON_ALONE = dict.fromkeys(range(0x1C, 0x20), " ")
# Characters that this Python knows; the regular expressions may know a later Unicode.
any_text = st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=40)


def documents(texts: list[str], source: str = "a", split: str = "train", urls: list[str | None] | None = None) -> pl.DataFrame:
    addresses = urls or [None] * len(texts)
    rows = [
        (f"{source}/{i:03d}", source, text, False, split, f"{source}/{i}", url)
        for i, (text, url) in enumerate(zip(texts, addresses, strict=True))
    ]
    return pl.DataFrame(rows, schema=DOCUMENT_SCHEMA, orient="row")


@settings(deadline=None)
@given(st.lists(any_text, max_size=8))
def test_words_and_lines_are_those_of_the_regular_expressions(texts: list[str]) -> None:
    series = pl.Series("text", [text.translate(PYTHON_ALONE) for text in texts], dtype=pl.String)
    found = Characters.of(series)
    for spans, pattern in ((found.words, r"\w+"), (found.visible, r"\S+")):
        assert np.diff(spans.of).tolist() == series.str.extract_all(pattern).list.len().to_list()
    joined = "".join(f"{text}\n" for text in series)
    lines = [line.strip() for text in series for line in text.split("\n") if line.strip()]
    assert [joined[a:b] for a, b in zip(found.lines.start, found.lines.end, strict=True)] == lines


def test_a_hash_depends_on_the_characters_alone_and_not_on_their_case_place_or_company() -> None:
    texts = pl.Series(["one two", "", "zero ONE, Two\nüber Über", "one"])
    found = Characters.of(texts)
    words = [text.lower() for text in texts.str.extract_all(r"\w+").explode().drop_nulls()]
    hashes = found.word_hashes.tolist()
    assert len(words) == len(hashes)
    for one, first in zip(words, hashes, strict=True):
        for two, second in zip(words, hashes, strict=True):
            assert (one == two) == (first == second)
    alone = Characters.of(pl.Series(["über"]))
    assert alone.hashes(Spans(np.array([0]), np.array([4]), np.array([0, 1])))[0] == hashes[words.index("über")]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 60), max_size=40), st.integers(1, 100), st.integers(1, 7))
def test_parts_are_cut_by_their_rows_and_not_by_the_calls(lengths: list[int], limit: int, call: int) -> None:
    frame = pl.DataFrame({"text": ["x" * length for length in lengths]}, schema={"text": pl.String})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART_BYTES", limit)
        patch.setattr(parts, "PART_ROWS", 5)
        written = []
        for step in (call, max(len(lengths), 1)):
            with TemporaryDirectory() as folder:
                with PartWriter(Path(folder), frame.schema) as writer:
                    for begin in range(0, len(lengths), step):
                        writer.write(frame[begin : begin + step])
                assert writer.rows == frame.height
                written.append([pl.read_parquet(file)["text"].to_list() for file in part_files(Path(folder))])
                assert pl.concat(read_parts(Path(folder))).equals(frame)
        assert written[0] == written[1]
        assert all(sum(map(len, part[:-1])) < limit and len(part) <= 5 for part in written[0])


def test_batches_hold_all_rows_in_order_and_at_least_one() -> None:
    frame = pl.DataFrame({"text": ["x" * n for n in (5, 1, 1, 30, 2, 2, 2)]})
    found = list(batches([frame[:2], frame[2:]], limit=5))
    assert [part["text"].str.len_bytes().to_list() for part in found] == [[5], [1], [1], [30], [2, 2], [2]]


def test_work_is_given_back_in_order_and_an_error_passes() -> None:
    assert list(in_order(lambda number: number * 2, range(50), 3)) == list(range(0, 100, 2))
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda number: 1 // (number - 7), range(50), 3))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.text("abc", min_size=1, max_size=4), st.integers(0, 40)), max_size=60), st.integers(1, 300))
def test_sorting_on_the_disk_is_sorting(rows: list[tuple[str, int]], run_bytes: int) -> None:
    frame = pl.DataFrame([(key, "x" * size) for key, size in rows], schema={"document_id": pl.String, "text": pl.String}, orient="row")
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("resources.external_sort.GROUP_BYTES", 16)
        patch.setattr("resources.external_sort.RANGE_BYTES", 64)
        sort = ExternalSort(Path(folder), run_bytes=run_bytes)
        for begin in range(0, frame.height, 7):
            sort.add(frame[begin : begin + 7])
        pieces = list(sort.sorted())
        found = pl.concat([frame.clear(), *pieces])
    assert found["document_id"].to_list() == sorted(frame["document_id"])
    assert found.sort("document_id", "text").equals(frame.sort("document_id", "text"))


words = st.sampled_from(
    ["hello", "how", "are", "you", "the", "lake", "rain", "a@b.example", "!!!!!!", "\n", "and we talk about it here all day\n"]
)
chat = st.lists(words, max_size=25).map(" ".join)


@settings(deadline=None, max_examples=15)
@given(st.lists(st.tuples(chat, st.sampled_from(["train", "validation", "test"])), min_size=1, max_size=14), st.integers(1, 400))
def test_the_chain_gives_the_same_rows_whatever_the_batch_and_the_threads(rows: list[tuple[str, str]], batch_bytes: int) -> None:
    frame = pl.concat(
        documents([text], source=f"s{i % 2}", split=split).with_columns(document_id=pl.lit(f"s{i % 2}/{i}"))
        for i, (text, split) in enumerate(rows)
    )
    chain = FilterSettings(repeated_lines=RepeatedLines(words_min=3, documents_max=1))
    one = apply_filters(frame, chain)
    other = apply_filters(frame.reverse(), chain, batch_bytes=batch_bytes, workers=2)
    for table in ("frame", "rejects", "counts", "personal_data"):
        assert getattr(one, table).equals(getattr(other, table)), table


FOOTER = "All rights reserved by the lake society, write to the office."


def test_a_line_of_many_documents_stays_in_the_first_held_out_one_and_counts_are_kept() -> None:
    texts = [f"This is the story number {i} about the lake.\n{FOOTER}\nIt ends here, with word {i}." for i in range(4)]
    frame = pl.concat([documents([*texts[:3], FOOTER]), documents(texts[3:], source="b", split="test")])
    chain = FilterSettings(repeated_lines=RepeatedLines(documents_max=2))
    found = apply_filters(frame, chain)
    kept = dict(found.frame.select("document_id", "text").iter_rows())
    assert FOOTER in kept["b/000"]
    assert kept["a/000"] == "This is the story number 0 about the lake.\nIt ends here, with word 0."
    assert found.rejects.select("document_id", "filter", "value").rows() == [("a/003", "repeated_across_documents", 1.0)]
    counts = found.counts.filter(pl.col("filter") == "repeated_across_documents").row(0, named=True)
    assert (counts["documents_in"], counts["documents_out"]) == (4, 3)
    assert counts["bytes_in"] - counts["bytes_out"] == 3 * (len(FOOTER) + 1) + len(FOOTER)
    talk = apply_filters(frame, FilterSettings(repeated_lines=RepeatedLines(documents_max=2), dialogues=frozenset({"a", "b"})))
    assert all(FOOTER in text for text in talk.frame["text"])


def test_documents_of_excluded_sites_are_rejected_with_the_site() -> None:
    talk = "I went to the lake with my brother and we had to walk back because of the rain."
    urls = ["https://www.WhitePages.com/name/x", "http://me@mail.spokeo.com:8080/a?b", "https://notspokeo.com", None, "spokeo.com:8080/x"]
    texts = [f"{talk} Then we met {name}." for name in ("Anna", "Bertha Maria", "Carl August Otto", "Dora", "Emil the third")]
    found = apply_filters(documents(texts, urls=urls))
    rejects = found.rejects.filter(pl.col("filter") == "excluded_domain").select("document_id", "detail").rows()
    assert rejects == [("a/000", "whitepages.com"), ("a/001", "spokeo.com"), ("a/004", "spokeo.com")]
    assert excluded(pl.Series(["https://a.b.c.example.co.uk/x"]), frozenset({"example.co.uk"})).to_list() == ["example.co.uk"]
    with pytest.raises(TampuError, match=r"excluded domain 'https://x\.example': expected a name"):
        checked(["https://x.example"])


def test_documents_out_of_order_are_refused_by_name(tmp_path: Path) -> None:
    frame = documents(["one", "two"])
    for work, (wrong, why) in enumerate(((frame.reverse(), "is out of order"), (frame[[0, 0]], "comes more than once"))):
        folder = tmp_path / str(work)
        folder.mkdir()
        with pytest.raises(TampuError, match=f"The document_id 'a/000' {why}"):
            filter_corpus([wrong], FilterSettings(), kept=print, rejected=print, work=folder)


def test_uneven_counts_are_found_to_the_row() -> None:
    found = apply_filters(documents(["one two three four five six", "one", "two"]))
    rejected = Counter((row["source"], row["filter"]) for row in found.rejects.iter_rows(named=True))
    assert uneven(found.counts, {"a": 3}, Counter({"a": 1}), rejected) == []
    assert uneven(found.counts, {"a": 4}, Counter({"a": 1}), rejected) == ["a at normalise (3 in of 4, 3 out, 0 rejects)"]
    assert uneven(found.counts, {"a": 3}, Counter({"a": 2}), rejected) == ["a at the end (1 counted, 2 written)"]
    rejected["a", "words"] -= 1
    assert uneven(found.counts, {"a": 3}, Counter({"a": 1}), rejected) == ["a at words (3 in of 3, 1 out, 1 rejects)"]
    assert [name for (name,) in found.counts.select("filter").iter_rows()] == list(FILTERS)


def test_shingle_sets_are_read_back_also_when_the_cache_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("assets.corpus.spill.CACHED_BYTES", 64)
    numbers = np.array([3, 8, 9])
    with ShingleSets(tmp_path / "sets", numbers) as sets:
        for number in numbers:
            sets.append(np.arange(number, dtype=np.uint64))
        sets.finish()
        for number in (9, 3, 8, 9, 3):
            assert sets(number).tolist() == list(range(number))


def test_the_web_limits_reject_lists_and_headlines() -> None:
    sentence = "The people of the town have to walk to the lake and be back with that bread by night"
    frame = documents([f"- {sentence}."]).with_columns(language=pl.lit("en"))
    limits = Quality(**{**vars(WEB), "words_min": 5})
    assert broken_rule(measure(frame, limits), limits).to_list() == ["bullet_lines"]
    ending = [f"{sentence}...", f"{sentence} …", f"{sentence}", f"{sentence}."]
    rules = broken_rule(measure(documents(ending).with_columns(language=pl.lit("en")), limits), limits).to_list()
    assert rules == ["ellipsis_lines", "ellipsis_lines", "terminal_punctuation", None]
    again = documents(["so it is " * 20 + "."]).with_columns(language=pl.lit("fr"))
    loose = Quality(**{**vars(limits), "repeated_ngrams_max": 1.0, "mean_word_length_min": 1.0})
    measured = measure(again, loose)
    assert broken_rule(measured, loose).to_list() == ["top_2grams"]
    assert measured["top_3grams"][0] == pytest.approx(20 * 3 / 60)
