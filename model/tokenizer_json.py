"""Tokenizers of the `tokenizers` library: reading an imported `tokenizer.json`, and writing one that splits as SentencePiece does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from model.optional import optional
from model.tokenizer import SentencePieceTokenizer, well_formed

NORMAL, UNKNOWN, CONTROL, BYTE = "normal", "unknown", "control", "byte"


class JsonTokenizer:
    """A `tokenizer.json`, as `tokenizers` runs it.

    `settings` are those of a tokenizer_config.json: `bos_token`, `eos_token` and `pad_token` as text. `marks` maps the added tokens, which
    only a chat template may write, to their ids. Raises ValueError for a file that is none, or whose EOS is not stated.
    """

    def __init__(self, content: bytes, settings: Mapping[str, Any], where: str) -> None:
        library = optional("tokenizers", "import", "a tokenizer.json")
        text = content.decode("utf-8", errors="replace")
        try:
            self._plain, self._marked = library.Tokenizer.from_str(text), library.Tokenizer.from_str(text)
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{where}: tokenizer.json can not be read ({error})") from None
        for tokenizer in (self._plain, self._marked):
            tokenizer.no_padding()
            tokenizer.no_truncation()
        self._plain.encode_special_tokens = True
        self.vocab_size: int = max(self._plain.get_vocab(with_added_tokens=True).values()) + 1
        self.marks = {token.content: number for number, token in self._plain.get_added_tokens_decoder().items() if token.special}
        eos_id, bos_id, pad_id = (self._id(settings, name, where) for name in ("eos_token", "bos_token", "pad_token"))
        if eos_id is None:
            raise ValueError(f"{where}: tokenizer_config.json has no eos_token; it must name the token that ends an answer")
        self.eos_id: int = eos_id
        self.bos_id: int = eos_id if bos_id is None else bos_id
        self.pad_id: int | None = None if pad_id == eos_id else pad_id
        self.adds_bos = bos_id is not None and self._marked.encode("a").ids[:1] == [bos_id]

    def _id(self, settings: Mapping[str, Any], name: str, where: str) -> int | None:
        token = settings.get(name)
        if token is None:
            return None
        number = self._plain.token_to_id(token)
        if number is None:
            raise ValueError(f"{where}: tokenizer_config.json has the {name} {token!r}, which tokenizer.json does not have")
        return int(number)

    def encode(self, text: str) -> list[int]:
        return self._plain.encode(well_formed(text), add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [one.ids for one in self._plain.encode_batch([well_formed(text) for text in texts], add_special_tokens=False)]

    def encode_marked(self, text: str) -> list[int]:
        """As `encode`, but special tokens that are written in the text become themselves: for what a chat template wrote."""
        return self._marked.encode(well_formed(text), add_special_tokens=False).ids

    def encode_marked_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """`encode_marked`, and the character of `text` at which each token begins."""
        found = self._marked.encode(well_formed(text), add_special_tokens=False)
        return found.ids, [start for start, _ in found.offsets]

    def piece(self, number: int) -> str:
        return str(self._plain.id_to_token(number))

    def decode(self, ids: list[int]) -> str:
        """The text of the ids; special tokens have none, and ill-formed byte sequences become U+FFFD."""
        return self._plain.decode([int(i) for i in ids], skip_special_tokens=True)


def from_sentencepiece(tokenizer: SentencePieceTokenizer) -> bytes:
    """A `tokenizer.json` with the ids of a SentencePiece tokenizer, which is Llama's (identity normalization, a space before the text).

    The pieces' merges are not in the model; they are all pairs of pieces that give a piece, in the order of its score, as
    transformers' converter has it. Raises ValueError for a tokenizer that normalizes text.
    """
    processor = tokenizer.processor
    if processor.normalize(" a  ﬁ ") != "▁▁a▁▁ﬁ▁":
        raise ValueError(f"{tokenizer.path} normalizes text, which Llama's tokenizer does not; it can not be written as tokenizer.json")
    ids = range(tokenizer.vocab_size)
    kinds = [
        UNKNOWN if processor.is_unknown(i) else CONTROL if processor.is_control(i) else BYTE if processor.is_byte(i) else NORMAL for i in ids
    ]
    pieces = [processor.id_to_piece(i) for i in ids]
    return llama_json(pieces, [processor.get_score(i) for i in ids], kinds, bos=pieces[tokenizer.bos_id])


def llama_json(pieces: Sequence[str], scores: Sequence[float], kinds: Sequence[str], bos: str | None) -> bytes:
    """The `tokenizer.json` of a Llama 2 vocabulary; `kinds` are NORMAL, UNKNOWN, CONTROL or BYTE. A `bos` precedes every text."""
    ids = {piece: i for i, piece in enumerate(pieces)}
    normal = {piece for piece, kind in zip(pieces, kinds, strict=True) if kind == NORMAL}
    ranked = sorted(normal, key=lambda piece: (-scores[ids[piece]], ids[piece]))
    merges = []
    for piece in ranked:
        cuts = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        pairs = [(left, right) for left, right in cuts if left in normal and right in normal]
        merges += sorted(pairs, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": next((piece for piece, kind in zip(pieces, kinds, strict=True) if kind == UNKNOWN), None),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": True,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": ids,
        "merges": [f"{left} {right}" for left, right in merges],
    }
    steps = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    normalizers = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    special = [(i, piece) for i, piece in enumerate(pieces) if kinds[i] in (UNKNOWN, CONTROL)]
    normalizer = {"type": "Sequence", "normalizers": normalizers}
    return tokenizer_json(model, special, normalizer, None, {"type": "Sequence", "decoders": steps}, (bos, ids[bos]) if bos else None)


def tokenizer_json(
    model: Mapping[str, Any],
    special: Sequence[tuple[int, str]],
    normalizer: Mapping[str, Any] | None,
    pre_tokenizer: Mapping[str, Any] | None,
    decoder: Mapping[str, Any],
    bos: tuple[str, int] | None,
) -> bytes:
    """The file with these parts; equal parts give equal bytes."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    values = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": content, **flags} for i, content in special],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None if bos is None else _before(*bos),
        "decoder": decoder,
        "model": model,
    }
    return (json.dumps(values, indent=1, ensure_ascii=False) + "\n").encode()


def _before(token: str, number: int) -> dict[str, Any]:
    """The post-processor that puts one token before every text."""
    mark = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}
    second_mark = {"SpecialToken": {"id": token, "type_id": 1}}
    tokens = {token: {"id": token, "ids": [number], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": [mark, first], "pair": [mark, first, second_mark, second], "special_tokens": tokens}
