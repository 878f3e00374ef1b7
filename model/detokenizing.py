"""The text of an answer while its tokens come: for streaming, and for stop strings, which lie in the text and not in the tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a decoder writes for a character of which only some bytes are there


class Detokenizer:
    """Tokens in, text out. What it gives out is, put together, the decoded text of all tokens up to the first stop string.

    `decode` gives the text of a list of tokens. Only a few are decoded at a time: the new ones behind those before them, since a
    piece's text depends on what stands before it (SentencePiece drops the space that a text begins with). Held back are characters
    whose bytes are not all there yet, and an end that may become a stop string.
    """

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self.decode, self.stop = decode, tuple(stop)
        self.stopped: str | None = None
        self.text = ""
        self._tokens: list[int] = []
        self._context = self._settled = self._given = 0

    def push(self, token: int) -> str:
        """The text that is certain after this token and was not before. `stopped` is then the stop string that it completed, or None."""
        self._tokens.append(token)
        new = self._new()
        if not new or new.endswith(INCOMPLETE):
            return ""
        self._context, self._settled = self._settled, len(self._tokens)
        self._add(new)
        return self._give(len(self.text) - self._possible_stop())

    def close(self) -> str:
        """What was held back, when no token follows."""
        if self.stopped is None:
            self._add(self._new())
        self._context = self._settled = len(self._tokens)
        return self._give(len(self.text))

    def _new(self) -> str:
        known = self.decode(self._tokens[self._context : self._settled])
        return self.decode(self._tokens[self._context :])[len(known) :]

    def _add(self, new: str) -> None:
        searched = max((len(stop) for stop in self.stop), default=1) - 1
        start = max(0, len(self.text) - searched)
        self.text += new
        places = [(place, stop) for stop in self.stop if (place := self.text.find(stop, start)) >= 0]
        if places:
            place, self.stopped = min(places)
            self.text = self.text[:place]

    def _possible_stop(self) -> int:
        """The length of the longest end of the text that begins a stop string."""
        if self.stopped is not None:
            return 0
        lengths = (length for stop in self.stop for length in range(1, len(stop)) if self.text.endswith(stop[:length]))
        return max(lengths, default=0)

    def _give(self, until: int) -> str:
        new = self.text[self._given : until]
        self._given = max(self._given, until)
        return new
