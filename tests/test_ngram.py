"""Kneser-Ney against its definition, computed slowly."""

from collections import Counter

import numpy as np
import pytest

from model import ngram
from model.ngram import kneser_ney_bits, kneser_ney_probabilities

VOCAB = 5


def slow_probability(train: list[int], history: list[int], word: int, order: int, discount: float) -> float:
    grams = {n: Counter(tuple(train[i : i + n]) for i in range(len(train) - n + 1)) for n in range(1, order + 1)}

    def level(n: int) -> float:
        if n == 0:
            return 1 / VOCAB
        if n - 1 > len(history):
            return level(n - 1)
        before = tuple(history[len(history) - (n - 1) :])
        if n == order:
            counts = [grams[n][(*before, w)] for w in range(VOCAB)]
        else:
            counts = [sum(gram[1:] == (*before, w) for gram in grams[n + 1]) for w in range(VOCAB)]
        if not sum(counts):
            return level(n - 1)
        distinct = sum(count > 0 for count in counts)
        return (max(counts[word] - discount, 0) + discount * distinct * level(n - 1)) / sum(counts)

    return level(order)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("discount", [0.4, 1.0])
def test_probabilities_follow_the_definition(order: int, discount: float) -> None:
    random = np.random.default_rng(order)
    train, test = random.integers(0, 4, 60), random.integers(0, VOCAB, 25)
    ours = kneser_ney_probabilities(train, test, order, VOCAB, discount)
    theirs = [slow_probability(train.tolist(), test[:i].tolist(), test[i], order, discount) for i in range(len(test))]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert kneser_ney_bits(train, test, order, VOCAB, discount) == pytest.approx(-np.log2(theirs).sum())


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_probabilities_after_any_history_sum_to_one(order: int) -> None:
    random = np.random.default_rng(0)
    train = random.integers(0, 4, 50)
    for history in ([], [3], [0, 1], [4, 4, 4], random.integers(0, VOCAB, 6).tolist()):
        total = sum(kneser_ney_probabilities(train, np.array([*history, w]), order, VOCAB)[-1] for w in range(VOCAB))
        assert total == pytest.approx(1)


def test_counting_by_a_table_and_by_sorting_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    train, test = random.integers(0, 300, 5000), random.integers(0, 300, 500)
    by_table = kneser_ney_probabilities(train, test, 3, 300)
    monkeypatch.setattr(ngram, "TABLE", 0)
    assert np.array_equal(by_table, kneser_ney_probabilities(train, test, 3, 300))


def test_longer_histories_help_on_text_that_has_them() -> None:
    text = np.array(list(b"the quick llama eats the green grass. " * 30))
    bits = [kneser_ney_bits(text, text[:200], order, 256) for order in (1, 2, 4)]
    assert bits[0] > bits[1] > bits[2] > 0


def test_one_repeated_id_is_nearly_free() -> None:
    assert kneser_ney_bits(np.zeros(1000, int), np.zeros(100, int), 3, 4) < 3


def test_streams_that_make_no_model_are_refused() -> None:
    with pytest.raises(ValueError, match="0 training ids"):
        kneser_ney_bits(np.array([], int), np.array([1]), 2, 4)
    with pytest.raises(ValueError, match="test_ids has ids from 1 to 4"):
        kneser_ney_bits(np.array([1]), np.array([1, 4]), 2, 4)
    with pytest.raises(ValueError, match="order is 0"):
        kneser_ney_bits(np.array([1]), np.array([1]), 0, 4)
