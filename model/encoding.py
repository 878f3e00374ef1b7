"""Encoding of much text: as the tokenizer encodes it, to the id, but each distinct word of a batch only once.

In a SentencePiece vocabulary a space stands only at the beginning of a piece (training splits at white space), so no
merge crosses from the end of a word to the space behind it: a text's ids are its words' ids one after another. Words are
found and counted by NumPy on the bytes; the tokenizer sees the distinct ones. Tokenizers with other vocabularies are
asked for every text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from model.tokenizer import SentencePieceTokenizer, Tokenizer

SPACE = 0x20
# U+2581 as the tokenizer writes a space.
MARK = "▁"
BASES = (0xD1342543DE82EF95, 0xAEF17502108EF2D9)
CACHED_WORDS = 1 << 20


@dataclass(frozen=True)
class Encoded:
    """Token ids of texts one after another, uint32 [tokens], without BOS and EOS; `lengths` int64 [texts]."""

    ids: np.ndarray
    lengths: np.ndarray


@dataclass
class TextEncoder:
    """Encodes batches of texts; may be used by several threads at once."""

    tokenizer: Tokenizer
    words: dict[bytes, np.ndarray] = field(default_factory=dict)
    by_word: bool = field(init=False)

    def __post_init__(self) -> None:
        self.by_word = _splits_at_spaces(self.tokenizer)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """The ids that `tokenizer.encode` gives for each text."""
        if not self.by_word:
            return _one_by_one(self.tokenizer, texts)
        data = [text.encode() for text in texts]
        sizes = np.array([len(part) for part in data], dtype=np.int64)
        joined = b"".join(data)
        letters = np.frombuffer(joined, dtype=np.uint8)
        starts, ends, of = _words(letters, sizes)
        group = _groups(letters, starts, ends)
        if group is None:
            return _one_by_one(self.tokenizer, texts)
        members, code = group
        pieces = self._pieces([joined[a:b] for a, b in zip(starts[members].tolist(), ends[members].tolist(), strict=True)])
        lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        flat = np.concatenate([np.zeros(0, np.uint32), *pieces])
        counts = lengths[code]
        until = np.cumsum(counts)
        total = int(until[-1]) if len(until) else 0
        place = np.repeat(offsets[:-1][code] - (until - counts), counts) + np.arange(total)
        before = np.concatenate([[0], until])
        return Encoded(flat[place], before[of[1:]] - before[of[:-1]])

    def _pieces(self, words: list[bytes]) -> list[np.ndarray]:
        """The ids of each word; a word's own leading space is gone, for the tokenizer puts one before every text."""
        known = self.words
        missing = [word for word in words if word not in known]
        found = dict(zip(missing, self.tokenizer.encode_batch([word.decode() for word in missing]), strict=True))
        fresh = {word: np.array(ids, dtype=np.uint32) for word, ids in found.items()}
        result = [fresh[word] if word in fresh else known[word] for word in words]
        if len(known) < CACHED_WORDS:
            known.update(fresh)
        return result


def _one_by_one(tokenizer: Tokenizer, texts: Sequence[str]) -> Encoded:
    found = tokenizer.encode_batch(list(texts))
    ids = np.concatenate([np.zeros(0, np.uint32), *(np.array(part, dtype=np.uint32) for part in found)])
    return Encoded(ids, np.array([len(part) for part in found], dtype=np.int64))


def _splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer keeps every character, puts one space before a text, and has none inside or behind a piece."""
    if not isinstance(tokenizer, SentencePieceTokenizer):
        return False
    probe = " a  ﬁ①\tb "
    if tokenizer.processor.normalize(probe) != (MARK + probe).replace(" ", MARK):
        return False
    pieces = (tokenizer.piece(index) for index in range(tokenizer.vocab_size))
    return all(MARK not in piece.lstrip(MARK) for piece in pieces)


def _words(letters: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Words with the spaces before them but for one: starts, ends int64 [words]; those of text i are `of[i]:of[i + 1]`.

    A text's first word keeps all spaces before it, its last all behind it. Empty texts have no words.
    """
    edges = np.concatenate([[0], np.cumsum(sizes)])
    space = letters == SPACE
    begins = np.zeros(len(letters) + 1, dtype=bool)
    begins[1:-1] = space[1:] & ~space[:-1]
    begins[edges[:-1]] = True
    begins[-1] = False
    # Spaces at the end of a text belong to the word before them, and do not begin another.
    last = np.flatnonzero(begins)
    visible = np.flatnonzero(~space)
    following = np.searchsorted(visible, last)
    text = np.searchsorted(edges, last, side="right") - 1
    trailing = (
        (following == len(visible)) | (visible[np.minimum(following, max(len(visible) - 1, 0))] >= edges[text + 1]) if len(visible) else True
    )
    first = np.zeros(len(last), dtype=bool)
    first[np.searchsorted(last, edges[:-1][sizes > 0])] = True
    keep = first | ~np.asarray(trailing)
    last, first = last[keep], first[keep]
    of = np.searchsorted(last, edges)
    ends = np.concatenate([last[1:], [len(letters)]]) if len(last) else last
    return last + ~first, ends, of


def _groups(letters: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Equal words: `members` int64 [distinct], the number of one word of each kind, and `code` int64 [words], its kind.

    Words are compared by two 64-bit hashes; None in the case, never seen, that the first one alone takes two words for one.
    """
    first, second = (_hashes(letters, starts, ends, base) for base in BASES)
    same_as = np.zeros(len(first), dtype=np.int64)
    todo = np.arange(len(first))
    bits = max(len(first).bit_length(), 8)
    table = np.zeros(1 << bits, dtype=np.int64)
    turn = 0
    while len(todo):
        # Each round, every slot takes the last word that falls into it and all its equals; the others fall elsewhere.
        slot = ((first[todo] ^ np.uint64(turn)) * np.uint64(BASES[turn % 2]) >> np.uint64(64 - bits)).astype(np.int64)
        table[slot] = todo
        found = table[slot]
        same = first[found] == first[todo]
        same_as[todo[same]] = found[same]
        todo = todo[~same]
        turn += 1
    if not (second[same_as] == second).all():
        return None
    members = np.flatnonzero(same_as == np.arange(len(same_as)))
    kind = np.zeros(len(same_as), dtype=np.int64)
    kind[members] = np.arange(len(members))
    return members, kind[same_as]


def _hashes(letters: np.ndarray, starts: np.ndarray, ends: np.ndarray, base: int) -> np.ndarray:
    """A hash of the bytes of each span, and of their number: uint64 [spans]."""
    size = len(letters)
    powers, inverses = _powers(base, size + 1), _powers(pow(base, -1, 2**64), size + 1)
    sums = np.zeros(size + 1, dtype=np.uint64)
    np.cumsum((letters.astype(np.uint64) + np.uint64(1)) * powers[:size], out=sums[1:])
    value = (sums[ends] - sums[starts]) * inverses[starts] + (ends - starts).astype(np.uint64) * np.uint64(BASES[1])
    value ^= value >> np.uint64(32)
    return value * np.uint64(BASES[0])


_POWERS: dict[int, np.ndarray] = {}


def _powers(base: int, size: int) -> np.ndarray:
    """`base` to the powers 0 … at least size - 1, modulo 2^64: uint64."""
    table = _POWERS.get(base, np.ones(1, np.uint64))
    while len(table) < size:
        factor = np.uint64(pow(base, len(table), 2**64))
        table = np.concatenate([table, table * factor])
    if size <= 1 << 23:
        _POWERS[base] = table
    return table
