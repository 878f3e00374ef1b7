"""A text classifier of the Hugging Face hub as the scorer of lines, such as the paper's HateBERT fine-tuned on ToxiGen."""

from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from assets.corpus.investigation import Scorer
from resources.errors import TampuError

# Models of the hub without a tokenizer of their own (recipe section 15). The tokenizer's commit is not pinned.
TOKENIZERS = {"tomh/toxigen_hatebert": "bert-base-uncased"}
BATCH, WORD_PIECES = 64, 512


def classifier(name: str) -> Scorer:
    """The probability of the last label (LABEL_1 of the ToxiGen models: toxic) of a folder's model, or of `<name>@<commit>` on the hub.

    TampuError if the package transformers is missing, a name has no commit, or the model cannot be had.
    """
    identifier, _, revision = (name, "", None) if Path(name).is_dir() else name.partition("@")
    if revision == "":
        raise TampuError(f"the toxicity model {name!r} can change on the hub: write {name}@<commit>, or name a folder")
    try:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ImportError:
        raise TampuError(
            f"the toxicity model {name!r} needs the package transformers: run `pip install --constraint constraints.txt transformers`"
        ) from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            TOKENIZERS.get(identifier, identifier), revision=None if identifier in TOKENIZERS else revision
        )
        model = AutoModelForSequenceClassification.from_pretrained(identifier, revision=revision).eval()
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise TampuError(f"the toxicity model {name!r} cannot be loaded: {first} Leave toxicity_model empty for the word list") from error
    return partial(_scores, tokenizer=tokenizer, model=model)


def _scores(lines: pl.Series, tokenizer: object, model: object) -> np.ndarray:
    """By line the probability of the last label: float64 [lines]. Lines of like length are scored together."""
    import torch

    scores = np.zeros(len(lines))
    order = np.argsort(-lines.str.len_chars().to_numpy().astype(np.int64), kind="stable")
    with torch.inference_mode():
        for begin in range(0, len(order), BATCH):
            part = order[begin : begin + BATCH]
            texts = lines.gather(part).to_list()
            inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=WORD_PIECES)  # type: ignore[operator]
            scores[part] = model(**inputs).logits.float().softmax(-1)[:, -1].numpy()  # type: ignore[operator]
    return scores
