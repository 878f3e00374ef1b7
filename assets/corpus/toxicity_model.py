"""A text classifier of the Hugging Face hub as the scorer of lines, such as the paper's HateBERT fine-tuned on ToxiGen."""

from functools import partial

import numpy as np
import polars as pl

from assets.corpus.investigation import Scorer
from resources.errors import TampuError

# Models of the hub without a tokenizer of their own (recipe section 15).
TOKENIZERS = {"tomh/toxigen_hatebert": "bert-base-uncased"}
BATCH, WORD_PIECES = 64, 512


def classifier(name: str) -> Scorer:
    """The probability of the last label (LABEL_1 of the ToxiGen models: toxic) of the model `name`, or of a folder.

    TampuError if the package transformers is missing or the model cannot be had.
    """
    try:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer
    except ImportError:
        raise TampuError(f"the toxicity model {name!r} needs the package transformers: run `pip install transformers`") from None
    try:
        tokenizer = AutoTokenizer.from_pretrained(TOKENIZERS.get(name, name))
        model = AutoModelForSequenceClassification.from_pretrained(name, use_safetensors=None).eval()
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
