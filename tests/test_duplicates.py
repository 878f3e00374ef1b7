"""Exact and near duplicates, and that held-out documents never leave for a training one."""

from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.corpus.duplicates import (
    SPLIT_RANK,
    NearDuplicates,
    exact_duplicates,
    jaccard,
    near_duplicates,
    signatures,
)
from assets.corpus.shingles import repeated_share, word_shingles
from resources.errors import TampuError

ONE_ROW_BANDS = NearDuplicates(bands=64, rows=1, similarity=0.5)


def documents(texts: list[str], splits: list[str] | None = None) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "document_id": [f"a/{i:04d}" for i in range(len(texts))],
            "text": texts,
            "split": splits or ["train"] * len(texts),
        },
        schema={"document_id": pl.String, "text": pl.String, "split": pl.String},
    )


def some_words(rng: np.random.Generator, count: int) -> list[str]:
    return [f"w{number}" for number in rng.integers(0, 5000, count)]


def with_changes(rng: np.random.Generator, words: list[str], changes: int) -> list[str]:
    changed = list(words)
    for place in rng.choice(len(words), changes, replace=False):
        changed[place] = f"x{rng.integers(0, 10**6)}"
    return changed


def components(ids: list[str], edges: set[frozenset[str]]) -> dict[str, str]:
    """By id, the smallest id of its connected component: a plain search, to compare with."""
    label = {name: name for name in ids}
    changed = True
    while changed:
        changed = False
        for a, b in map(sorted, edges):
            low = min(label[a], label[b])
            changed |= label[a] != low or label[b] != low
            label[a] = label[b] = low
    return label


splits = st.sampled_from(sorted(SPLIT_RANK))
texts = st.lists(st.sampled_from("one two three four five six".split()), min_size=0, max_size=9).map(" ".join)


@settings(deadline=None)
@given(st.lists(st.tuples(texts, splits), min_size=1, max_size=14), st.randoms(use_true_random=False))
def test_one_of_each_equal_text_stays_and_held_out_ones_come_first(rows: list[tuple[str, str]], random) -> None:  # type: ignore[no-untyped-def]
    frame = documents([text for text, _ in rows], [split for _, split in rows])
    removed = exact_duplicates(frame)
    kept = frame.join(removed, on="document_id", how="anti")
    assert sorted(kept["text"]) == sorted(set(frame["text"]))
    for text, split in kept.select("text", "split").iter_rows():
        best = min(SPLIT_RANK[s] for t, s in rows if t == text)
        assert SPLIT_RANK[split] == best
    order = list(range(len(rows)))
    random.shuffle(order)
    assert exact_duplicates(frame[order]).equals(removed)
    assert exact_duplicates(kept).height == 0


@settings(deadline=None)
@given(st.lists(st.tuples(texts, splits), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_near_duplicates_are_the_components_of_a_brute_force_comparison(rows: list[tuple[str, str]], random) -> None:  # type: ignore[no-untyped-def]
    frame = documents([text for text, _ in rows], [split for _, split in rows])
    # With 64 bands of one row a pair at 0.5 is missed with probability 2^-64.
    removed = near_duplicates(frame, ONE_ROW_BANDS)
    shingles = word_shingles(frame["text"], ONE_ROW_BANDS.shingle_words)
    ids = frame["document_id"].to_list()
    edges = {frozenset((ids[a], ids[b])) for a, b in combinations(range(len(ids)), 2) if jaccard(shingles.of(a), shingles.of(b)) >= 0.5}
    label, split_of = components(ids, edges), dict(zip(ids, frame["split"], strict=True))
    expected = {}
    for name in ids:
        members = [other for other in ids if label[other] == label[name]]
        best = min(members, key=lambda other: (SPLIT_RANK[split_of[other]], other))
        if best != name:
            expected[name] = best
    assert dict(removed.select("document_id", "representative").iter_rows()) == expected

    order = list(range(len(rows)))
    random.shuffle(order)
    assert near_duplicates(frame[order], ONE_ROW_BANDS).equals(removed)
    kept = frame.join(removed, on="document_id", how="anti")
    assert near_duplicates(kept, ONE_ROW_BANDS).height == 0


@pytest.mark.parametrize("held_out", ["validation", "test"])
def test_a_training_document_near_a_held_out_one_is_removed_and_never_the_other_way(held_out: str) -> None:
    rng = np.random.default_rng(0)
    words = [some_words(rng, 200) for _ in range(30)]
    near = [with_changes(rng, text, 2) for text in words]
    frame = documents([" ".join(text) for text in words + near], ["train"] * 30 + [held_out] * 30)
    removed = near_duplicates(frame)
    assert removed["document_id"].to_list() == frame["document_id"][:30].to_list()
    assert removed["representative"].to_list() == frame["document_id"][30:].to_list()
    assert (removed["similarity"] > 0.85).all()


def test_unlike_documents_and_those_below_the_threshold_stay() -> None:
    rng = np.random.default_rng(1)
    words = [some_words(rng, 100) for _ in range(50)]
    far = [with_changes(rng, text, 12) for text in words]
    assert near_duplicates(documents([" ".join(text) for text in words + far])).height == 0


def test_case_and_punctuation_do_not_hide_a_duplicate() -> None:
    removed = near_duplicates(documents(["Hello, how are you?", "hello how are YOU", "how are you, hello?"]))
    assert removed["document_id"].to_list() == ["a/0001"]
    assert removed["similarity"].to_list() == [1.0]


def test_documents_without_words_are_no_duplicates_of_one_another() -> None:
    assert near_duplicates(documents(["!!!", "???", ""])).height == 0
    assert near_duplicates(documents([])).height == 0


def test_signatures_estimate_the_jaccard_similarity() -> None:
    rng = np.random.default_rng(2)
    words = [some_words(rng, 150) for _ in range(200)]
    changed = [with_changes(rng, text, int(rng.integers(0, 15))) for text in words]
    shingles = word_shingles(pl.Series([" ".join(text) for text in words + changed]), 5)
    signature = signatures(shingles, NearDuplicates())
    exact = np.array([jaccard(shingles.of(i), shingles.of(i + 200)) for i in range(200)])
    estimate = (signature[:200] == signature[200:]).mean(axis=1)
    assert abs((estimate - exact).mean()) < 0.01
    # 112 hashes: the standard deviation is at most sqrt(1/4/112) = 0.047
    assert np.abs(estimate - exact).max() < 5 * 0.047
    assert np.array_equal(signatures(shingles, NearDuplicates(), batch=100), signature)


def test_shingles_of_a_text_depend_on_its_words_alone() -> None:
    alone = word_shingles(pl.Series(["one two three four five six"]), 5)
    among = word_shingles(pl.Series(["", "zero", "One, two three four FIVE six!", "one two three four five"]), 5)
    assert np.diff(among.offsets).tolist() == [0, 1, 2, 1]
    assert np.array_equal(among.of(2), alone.of(0))
    assert among.of(3)[0] == alone.of(0)[0]
    # fixed bytes: keys of artifacts rest on them
    assert f"{int(alone.of(0)[0]):016x}" == "6e98b741e03087da"


def test_repeated_ngrams_are_counted_within_a_document_only() -> None:
    shingles = word_shingles(pl.Series(["a b c d e a b c d e", "a b c d e", "", "f g h i j f g h i j f g h i j"]), 5)
    assert repeated_share(shingles).tolist() == [1 / 6, 0, 0, 6 / 11]


def test_settings_out_of_range_are_refused() -> None:
    for wrong in ({"bands": 0}, {"rows": 0}, {"shingle_words": 0}, {"similarity": 0.0}, {"similarity": 1.1}):
        with pytest.raises(TampuError, match=f"near duplicates: {next(iter(wrong))}"):
            NearDuplicates(**wrong)  # type: ignore[arg-type]
