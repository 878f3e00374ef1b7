"""The tokenizer: SentencePiece BPE with Llama's settings (digits split, byte fallback, identity normalization, no chat tokens)."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

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
        supported = re.search(r"value <= (\d+)", str(error))
        why = f"they support {supported[1]} pieces at most" if supported else str(error)
        raise ValueError(f"no tokenizer of vocab_size {vocab_size} could be trained on these texts: {why}") from error
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


class Tokenizer(Protocol):
    """What the rest needs of a tokenizer, SentencePiece's or an imported one. `encode` adds no special token, and no text can produce one.

    `bos_id` is the EOS for a tokenizer without BOS, and `adds_bos` says whether its model is used to a BOS before a text. `pad_id` is an id
    that no text has, None where there is none. `encode` raises ValueError for a lone surrogate, which is no text.
    """

    vocab_size: int
    bos_id: int
    eos_id: int
    pad_id: int | None
    adds_bos: bool

    def encode(self, text: str) -> list[int]: ...

    def encode_batch(self, texts: list[str]) -> list[list[int]]: ...

    def decode(self, ids: list[int]) -> str: ...

    def piece(self, number: int) -> str: ...


class SentencePieceTokenizer:
    """A trained tokenizer, ours or Llama's. `encode` adds no BOS or EOS, and no text can produce them.

    `content` is the file's content where it is not to be read from `path`.
    """

    adds_bos = True

    def __init__(self, path: Path | str, content: bytes | None = None) -> None:
        self.path = Path(path)
        if content is None and not self.path.is_file():
            raise ValueError(f"there is no tokenizer at {self.path}; expected a SentencePiece tokenizer.model")
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=self.path.read_bytes() if content is None else content)
        except RuntimeError:
            raise ValueError(f"{self.path} is no SentencePiece model; Llama 3's tokenizer comes as tokenizer.json") from None
        self.vocab_size: int = self.processor.get_piece_size()
        self.unk_id: int = self.processor.unk_id()
        self.bos_id: int = self.processor.bos_id()
        self.eos_id: int = self.processor.eos_id()
        self.pad_id: int | None = self.unk_id  # no text has it: unknown characters become bytes
        if (self.unk_id, self.bos_id, self.eos_id) != (0, 1, 2):
            found = f"{self.unk_id}, {self.bos_id}, {self.eos_id}"
            raise ValueError(f"{self.path}: unk, bos and eos are {found}; a Llama tokenizer has 0, 1, 2")

    def encode(self, text: str) -> list[int]:
        return self.processor.encode(well_formed(text))

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return self.processor.encode([well_formed(text) for text in texts])

    def decode(self, ids: list[int]) -> str:
        """The text of the ids; BOS and EOS have none, and ill-formed byte sequences become U+FFFD."""
        return self.processor.decode([int(i) for i in ids])

    def piece(self, number: int) -> str:
        return self.processor.id_to_piece(number)


def well_formed(text: str) -> str:
    """The text. Raises ValueError for a lone surrogate (half of a UTF-16 pair, as JSON may spell it), which no tokenizer can encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has a lone surrogate, {text[error.start]!r}, at character {error.start}; it is not valid Unicode") from None
    return text
