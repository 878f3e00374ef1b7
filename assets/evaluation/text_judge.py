"""A small judge of answers, trained on labelled ones: logistic regression over hashed words and word pairs of question and answer."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import numpy as np

from resources.splits import fraction_of

BITS = 18
EPOCHS = 5
RATE = 0.1
HELD_OUT = 0.1


@dataclass(frozen=True)
class TextJudge:
    """Weights float64 [2^BITS] and a bias."""

    weights: np.ndarray
    bias: float

    def says_yes(self, question: str, answer: str) -> bool:
        features = _features(question, answer)
        return bool(self.weights[features].sum() / np.sqrt(len(features)) + self.bias > 0)


def train_judge(questions: Sequence[str], answers: Sequence[str], labels: Sequence[bool]) -> tuple[TextJudge, list[bool]]:
    """A judge and, for each row of the held-out questions (a tenth, by hash), whether it is right there.

    Adagrad (Duchi et al. 2011) on the logistic loss, one example at a time in an order drawn from a fixed seed. The judge returned is
    the one trained without the held-out questions, so that its accuracy is its own. Raises ValueError where a label never occurs.
    """
    if len(set(labels)) < 2:
        raise ValueError("a judge needs answers labelled yes and answers labelled no")
    held_out = [fraction_of(question, "text-judge") < HELD_OUT for question in questions]
    features = [_features(question, answer) for question, answer in zip(questions, answers, strict=True)]
    train = [i for i, kept in enumerate(held_out) if not kept]
    weights, squares = np.zeros(2**BITS), np.full(2**BITS, 1e-6)
    bias, bias_square = 0.0, 1e-6
    random = np.random.default_rng(0)
    for _ in range(EPOCHS):
        for i in random.permutation(train):
            own = features[i]
            scale = 1 / np.sqrt(len(own))
            slope = 1 / (1 + np.exp(-(weights[own].sum() * scale + bias))) - labels[i]
            squares[own] += (slope * scale) ** 2
            weights[own] -= RATE * slope * scale / np.sqrt(squares[own])
            bias_square += slope**2
            bias -= RATE * slope / np.sqrt(bias_square)
    judge = TextJudge(weights, float(bias))
    right = [judge.says_yes(questions[i], answers[i]) == labels[i] for i, kept in enumerate(held_out) if kept]
    return judge, right


def _features(question: str, answer: str) -> np.ndarray:
    """Indices of words and pairs of the answer, words of the question, and words that both have; unique, int64."""
    asked, said = _words(question), _words(answer)
    names = [f"a {word}" for word in said] + [f"a {one} {two}" for one, two in pairwise(said)]
    names += [f"q {word}" for word in asked] + [f"b {word}" for word in set(asked) & set(said)]
    names += [f"n {min(len(said), 12)}", f"s {' '.join(said[:2])}"]
    return np.unique([_slot(name) for name in names])


@cache
def _slot(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big") % 2**BITS


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() or letter == "'" else " " for letter in text.lower()).split()
