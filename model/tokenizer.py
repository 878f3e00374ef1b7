"""The tokenizer: SentencePiece BPE with Llama's settings (digits split, byte fallback, identity normalization, no chat tokens)."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece

# The trainer skips sentences of more bytes than this without a word; longer lines are cut at spaces instead.
MAX_SENTENCE_BYTES = 4192


def train_sentencepiece(texts: Iterable[str], directory: Path, vocab_size: int, *, character_coverage: float = 0.99995) -> Path:
    """Train on the lines of `texts`; write `tokenizer.model` and `tokenizer.vocab` (piece, tab, score); return the model's path.

    The settings are those stored in Llama's released `tokenizer.model`, except the thread count: one thread, so that the same
    texts in the same order give the same bytes. Raises ValueError if the texts cannot fill the vocabulary.
    """
    written = io.BytesIO()
    sentencepiece.set_random_generator_seed(0)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(texts),
            model_writer=written,
            model_type="bpe",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            input_sentence_size=200_000_000,
            shuffle_input_sentence=True,
            max_sentence_length=MAX_SENTENCE_BYTES,
            max_sentencepiece_length=16,
            split_by_unicode_script=True,
            split_by_whitespace=True,
            split_by_number=True,
            split_digits=True,
            treat_whitespace_as_suffix=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            hard_vocab_limit=True,
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            remove_extra_whitespaces=False,
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(f"no tokenizer of {vocab_size} pieces could be trained on these texts: {error}") from error
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "tokenizer.model"
    path.write_bytes(written.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    lines = (f"{pieces.id_to_piece(i)}\t{pieces.get_score(i):g}\n" for i in range(pieces.get_piece_size()))
    (directory / "tokenizer.vocab").write_text("".join(lines), encoding="utf-8")
    return path


def _sentences(texts: Iterable[str]) -> Iterator[str]:
    """The non-empty lines of the texts, cut at spaces (or inside a word that is itself too long) to at most MAX_SENTENCE_BYTES."""
    for text in texts:
        for line in text.splitlines():
            while len(line.encode()) > MAX_SENTENCE_BYTES:
                head = line.encode()[:MAX_SENTENCE_BYTES].decode(errors="ignore")
                cut = head.rfind(" ")
                cut = cut if cut > 0 else len(head)
                yield line[:cut]
                line = line[cut:]
            if line:
                yield line


class SentencePieceTokenizer:
    """A trained tokenizer, ours or Llama's. `encode` adds no BOS or EOS, and no text can produce them."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"there is no tokenizer at {self.path}; expected a SentencePiece tokenizer.model")
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(self.path))
        self.vocab_size: int = self.processor.get_piece_size()
        self.unk_id: int = self.processor.unk_id()
        self.bos_id: int = self.processor.bos_id()
        self.eos_id: int = self.processor.eos_id()
        if (self.unk_id, self.bos_id, self.eos_id) != (0, 1, 2):
            found = f"{self.unk_id}, {self.bos_id}, {self.eos_id}"
            raise ValueError(f"{self.path}: unk, bos and eos are {found}; a Llama tokenizer has 0, 1, 2")

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(text)

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self.processor.encode(list(texts))

    def decode(self, ids: list[int]) -> str:
        """The text of the ids; BOS and EOS have none, and ill-formed byte sequences become U+FFFD."""
        return self.processor.decode([int(i) for i in ids])
