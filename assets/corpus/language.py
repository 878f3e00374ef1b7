"""The language of a text, by py3langid: a naive Bayes model over byte n-grams, shipped with its package."""

from functools import cache
from typing import Any

import polars as pl

UNKNOWN = "unknown"


@cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def identify(frame: pl.DataFrame, *, threshold: float = 0.5, characters: int = 500) -> pl.DataFrame:
    """`frame` with `language` (ISO 639 code, or "unknown" below `threshold`) and `language_probability`.

    Recipe section 15: the threshold is 0.5. Only the first `characters` of a text are read (our choice: speed).
    The probability is py3langid's, made comparable over lengths by a temperature that grows with the square root of the
    text's bytes; so a greeting of a few words comes out as unknown rather than as a wrong language.
    """
    identifier = _identifier()
    heads = frame["text"].str.head(characters).str.replace_all("\n", " ", literal=True)
    found: dict[str, tuple[str, float]] = {head: identifier.classify(head) for head in heads.unique()}
    languages, probabilities = [], []
    for head in heads:
        language, probability = found[head]
        languages.append(language if probability >= threshold else UNKNOWN)
        probabilities.append(probability)
    return frame.with_columns(
        language=pl.Series(languages, dtype=pl.String),
        language_probability=pl.Series(probabilities, dtype=pl.Float64),
    )
