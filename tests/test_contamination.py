"""Contamination: exact against a comparison of every pair of positions, and the paper's own Z values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.corpus.contamination import (
    MIN_LENGTHS,
    SUBSETS,
    CorpusTokens,
    affected,
    contaminated_share,
    contamination,
    find_matches,
    subset_statistics,
)
from resources.errors import TampuError


def by_brute_force(sample: np.ndarray, corpus: np.ndarray, min_length: int, skip_budget: int) -> float:
    covered = np.zeros(len(sample), dtype=bool)
    for i in range(len(sample)):
        for j in range(len(corpus)):
            skipped = length = 0
            for k in range(min(len(sample) - i, len(corpus) - j)):
                if corpus[j + k] < 0:
                    break
                if sample[i + k] == corpus[j + k]:
                    length = k + 1
                elif k < 10 or skipped == skip_budget:
                    break
                else:
                    skipped += 1
            if length > min_length:
                covered[i : i + length] = True
    return float(covered.mean()) if len(sample) else 0.0


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[np.ndarray], np.ndarray]:
    """A corpus with document borders, and samples cut from it with changes, beside unlike ones."""
    vocabulary = draw(st.integers(1, 3))
    corpus = np.array(draw(st.lists(st.integers(0, vocabulary), max_size=70)), dtype=np.int64)
    for border in draw(st.lists(st.integers(0, max(len(corpus) - 1, 0)), max_size=2)):
        corpus[border : border + 1] = -1
    samples = [np.array(draw(st.lists(st.integers(0, vocabulary), max_size=30)), dtype=np.int64)]
    begin = draw(st.integers(0, max(len(corpus) - 1, 0)))
    copied = np.maximum(corpus[begin : begin + 45], 0)
    for place in draw(st.lists(st.integers(0, 44), max_size=6)):
        copied[place : place + 1] = 9
    return [*samples, copied], corpus


@settings(deadline=None, max_examples=120)
@given(cases(), st.sampled_from([10, 11, 15, 20]), st.integers(0, 5), st.sampled_from([8, 1 << 20]))
def test_shares_equal_those_of_a_comparison_of_all_positions(  # type: ignore[no-untyped-def]
    case, min_length: int, skip_budget: int, batch: int
) -> None:
    samples, corpus = case
    expected = [by_brute_force(sample, corpus, min_length, skip_budget) for sample in samples]
    found = find_matches(samples, corpus, skip_budget=skip_budget, batch=batch)
    assert contaminated_share(found, min_length).tolist() == expected
    assert contamination(samples, corpus, min_length=min_length, skip_budget=skip_budget).tolist() == expected


def corpus_of(*documents: np.ndarray) -> np.ndarray:
    return np.concatenate([part for document in documents for part in (document, [-1])])


SAMPLE = np.arange(100, 140)


def share(corpus: np.ndarray, min_length: int = 10, sample: np.ndarray = SAMPLE) -> float:
    return float(contamination([sample], corpus, min_length=min_length)[0])


def test_a_match_must_be_longer_than_the_minimum() -> None:
    assert share(corpus_of(SAMPLE[5:15])) == 0
    assert share(corpus_of(SAMPLE[5:16])) == 11 / 40
    assert share(corpus_of(SAMPLE), min_length=39) == 1
    assert share(corpus_of(SAMPLE), min_length=40) == 0


def changed(*places: int) -> np.ndarray:
    copy = SAMPLE.copy()
    copy[list(places)] = 7
    return copy


def test_four_tokens_may_differ_but_none_of_the_first_ten_and_not_the_last() -> None:
    assert share(corpus_of(changed(10, 20, 30, 35))) == 1
    # the fifth unlike token ends the match before it, and the unlike one just before that does not trail
    assert share(corpus_of(changed(12, 13, 20, 30, 31))) == 30 / 40
    # nothing begins within ten tokens of an unlike one; here the match begins behind it
    assert share(corpus_of(changed(9))) == 30 / 40
    assert share(corpus_of(changed(*range(9, 40, 10)))) == 0
    assert share(corpus_of(changed(39))) == 39 / 40


def test_no_match_crosses_the_border_of_two_documents() -> None:
    assert share(corpus_of(SAMPLE[:20], SAMPLE[20:]), min_length=20) == 0
    assert share(np.concatenate([SAMPLE[:20], SAMPLE[20:]]), min_length=20) == 1


def test_matches_of_several_documents_join_their_tokens() -> None:
    assert share(corpus_of(SAMPLE[:15], SAMPLE[10:26])) == 26 / 40


def test_repetitive_text_is_measured_without_running_away() -> None:
    same = np.zeros(3000, dtype=np.int64)
    assert share(corpus_of(same), sample=np.zeros(2000, dtype=np.int64), min_length=50) == 1


def test_nothing_to_compare_is_not_contaminated() -> None:
    empty = np.zeros(0, dtype=np.int64)
    assert contamination([], SAMPLE, min_length=10).tolist() == []
    assert contamination([empty, SAMPLE, SAMPLE[:5]], empty, min_length=10).tolist() == [0, 0, 0]


def test_the_share_falls_as_the_minimum_length_grows() -> None:
    rng = np.random.default_rng(0)
    corpus = rng.integers(0, 3, 3000)
    samples = [np.concatenate([corpus[i : i + n], rng.integers(0, 3, 40)]) for i, n in enumerate(range(5, 80, 5))]
    matches = find_matches(samples, corpus)
    shares = np.array([contaminated_share(matches, length) for length in MIN_LENGTHS])
    assert (np.diff(shares, axis=0) <= 0).all() and (shares[0] > shares[-1]).any()


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(TampuError, match="min_length is 9"):
        share(SAMPLE, min_length=9)
    with pytest.raises(TampuError, match="skip_budget is -1"):
        contamination([SAMPLE], SAMPLE, min_length=10, skip_budget=-1)
    with pytest.raises(TampuError, match="negative token"):
        contamination([np.array([1, -1])], SAMPLE, min_length=10)
    with pytest.raises(TampuError, match="do not go with"):
        subset_statistics(np.zeros(2), np.zeros(3))
    with pytest.raises(TampuError, match="from 0 to 1"):
        subset_statistics(np.zeros(1), np.array([2.0]))


# Table 51 of the Llama 2 paper, HellaSwag at L = 40, 70B: n, mean, expected mean, Z. The four n fix the sizes of the
# groups below 20 %, between 20 and 80 %, and from 80 %; the means, given to a tenth of a per cent, the right answers.
PUBLISHED = {
    "clean": (7391, 0.800, -5.73),
    "not clean": (2651, 0.895, 9.56),
    "not dirty": (9194, 0.816, -2.27),
    "dirty": (848, 0.922, 7.42),
}


def test_z_values_match_those_that_the_paper_printed() -> None:
    sizes = {"low": 7391, "middle": 9194 - 7391, "high": 848}
    right = {"low": round(7391 * 0.800), "high": round(848 * 0.922)}
    right["middle"] = round(2651 * 0.895) - right["high"]
    shares = np.repeat([0.0, 0.5, 0.9], [sizes["low"], sizes["middle"], sizes["high"]])
    correct = np.concatenate([np.arange(sizes[part]) < right[part] for part in ("low", "middle", "high")])
    rows = subset_statistics(shares, correct.astype(float))
    assert [row["subset"] for row in rows] == [name for name, _, _ in SUBSETS]
    for found in rows:
        n, mean, z = PUBLISHED[str(found["subset"])]
        assert found["n"] == n
        assert found["mean"] == pytest.approx(mean, abs=0.001)
        # the printed means have three digits: half of the last one is 0.0005 / sigma
        assert found["z"] == pytest.approx(z, abs=0.25)
    assert affected(rows)


def test_subsets_overlap_and_an_even_score_shows_no_benefit() -> None:
    shares = np.array([0.0, 0.1999, 0.2, 0.79, 0.8, 1.0])
    rows = subset_statistics(shares, np.array([1, 0, 1, 0, 1, 0]))
    assert [row["n"] for row in rows] == [2, 4, 4, 2]
    assert [row["z"] for row in rows] == [0.0] * 4
    assert not affected(rows)


def test_an_empty_subset_or_a_set_all_right_has_no_z_value() -> None:
    rows = subset_statistics(np.zeros(3), np.array([1, 0, 1]))
    assert [row["z"] is None for row in rows] == [False, True, False, True]
    assert [row["mean"] is None for row in rows] == [False, True, False, True]
    assert not affected(rows)
    assert all(row["z"] is None for row in subset_statistics(np.array([0.0, 1.0]), np.ones(2)))


def test_memory_mapped_parts_give_what_one_array_gives(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(3)
    documents = [rng.integers(3, 6, int(size)) for size in rng.integers(0, 60, 40)]
    samples = [*(document[5:40] for document in documents[::3]), rng.integers(3, 6, 50)]
    marked = np.concatenate([part for document in documents for part in ([-1], document)])
    stream = np.where(marked < 0, 1, marked).astype(np.uint16)
    files = []
    for number, part in enumerate(np.array_split(stream, 7)):
        np.save(tmp_path / f"{number}.npy", part)
        files.append(np.load(tmp_path / f"{number}.npy", mmap_mode="r"))
    expected, found = find_matches(samples, marked), find_matches(samples, CorpusTokens([*files, stream[:0]], border=1), batch=100)
    for length in MIN_LENGTHS:
        assert contaminated_share(found, length).tolist() == contaminated_share(expected, length).tolist()
    assert len(found.length) > 0
