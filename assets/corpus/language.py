"""The language of a text, by py3langid's model: naive Bayes over byte n-grams, shipped with its package.

The package looks at one text at a time, in Python. Here its automaton walks through many texts at once, a byte of each
a step; the decision is the package's own (log counts, scores divided by the square root of the bytes, softmax).
"""

import unicodedata
from dataclasses import dataclass
from functools import cache

import numpy as np
import polars as pl

UNKNOWN = "unknown"

# Texts that are walked through together.
TOGETHER = 2048


@dataclass(frozen=True)
class _Model:
    """`move` int32 [rows * 256], `row` int32 [states] (shifted by 8), `feature` int32 [states] (-1 none), `weights` float32
    [features, classes], `prior` float32 [classes], `classes` str [classes], `first` int64 [classes]."""

    move: np.ndarray
    row: np.ndarray
    feature: np.ndarray
    weights: np.ndarray
    prior: np.ndarray
    classes: np.ndarray
    first: np.ndarray


@cache
def _model() -> _Model:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    found = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    labels = list(found.nb_classes)
    return _Model(
        move=np.array(found.tk_nextmove, dtype=np.int32),
        row=np.array(found.tk_row, dtype=np.int32) << 8,
        feature=np.array(found.tk_output, dtype=np.int32),
        weights=np.asarray(found.nb_ptc, dtype=np.float32),
        prior=np.asarray(found.nb_pc, dtype=np.float32),
        classes=np.array(labels),
        # A language that has two classes (two scripts) is scored as their sum, under the first.
        first=np.array([labels.index(label) for label in labels]),
    )


def identify(frame: pl.DataFrame, *, threshold: float = 0.5, characters: int = 500) -> pl.DataFrame:
    """`frame` with `language` (ISO 639 code, or "unknown" below `threshold`) and `language_probability`.

    Recipe section 15: the threshold is 0.5. Only the first `characters` of a text are read (our choice: speed).
    The probability is py3langid's, made comparable over lengths by a temperature that grows with the square root of the
    text's bytes; so a greeting of a few words comes out as unknown rather than as a wrong language.
    """
    heads = frame["text"].str.head(characters).str.replace_all("\n", " ", literal=True).to_list()
    encoded = [unicodedata.normalize("NFC", head.lower() if head.isupper() else head).encode() for head in heads]
    languages, probabilities = np.zeros(len(encoded), dtype=_model().classes.dtype), np.zeros(len(encoded))
    # Texts of like length together: a batch is walked through to the end of its longest.
    order = np.argsort([-len(head) for head in encoded], kind="stable")
    for begin in range(0, len(order), TOGETHER):
        part = order[begin : begin + TOGETHER]
        best, probability = _classify([encoded[index] for index in part])
        languages[part], probabilities[part] = _model().classes[best], probability
    found = pl.DataFrame({"language": pl.Series(languages.tolist(), dtype=pl.String), "language_probability": probabilities.round(6)})
    known = pl.col("language_probability") >= threshold
    return frame.with_columns(found.with_columns(language=pl.when(known).then("language").otherwise(pl.lit(UNKNOWN))))


def _classify(heads: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The best class int64 [n] and its probability float64 [n] of texts sorted by falling length."""
    model = _model()
    lengths = np.array([len(head) for head in heads])
    longest = int(lengths[0]) if len(lengths) else 0
    padded = np.frombuffer(b"".join(head.ljust(longest, b"\0") for head in heads), dtype=np.uint8)
    letters = np.ascontiguousarray(padded.reshape(len(heads), longest).T)
    features = np.full((longest, len(heads)), -1, dtype=np.int32)
    state = np.zeros(len(heads), dtype=np.int32)
    active = np.searchsorted(-lengths, -np.arange(longest), side="left")
    for place in range(longest):
        number = active[place]
        state = model.move[model.row[state[:number]] + letters[place, :number]]
        np.take(model.feature, state, out=features[place, :number])
    width = len(model.weights)
    scores = np.zeros((len(heads), len(model.classes)), dtype=np.float32)
    document, position = np.nonzero(np.ascontiguousarray(features.T) >= 0)
    keys, counts = np.unique(document * width + features[position, document], return_counts=True)
    document, feature = np.divmod(keys, width)
    amounts = np.log1p(counts.astype(np.float32))
    some, starts = np.unique(document, return_index=True)
    for index, start, end in zip(some, starts, [*starts, len(keys)][1:], strict=True):
        scores[index] = amounts[start:end] @ model.weights[feature[start:end]] + model.prior
    scores /= np.sqrt(np.maximum(lengths, 1)).astype(np.float32)[:, None]
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    for column in np.flatnonzero(model.first != np.arange(len(model.first))):
        scores[:, model.first[column]] += scores[:, column]
        scores[:, column] = 0
    best = scores.argmax(axis=1)
    return best, scores[np.arange(len(heads)), best]
