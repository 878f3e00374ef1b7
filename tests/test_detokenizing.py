"""Text that comes piece by piece is the text that comes at once, up to the first stop string."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.detokenizing import Detokenizer
from model.tokenizer import SentencePieceTokenizer, train_sentencepiece

VOCABULARY = 330


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    lines = [f"the {word} and a {other} said so" for word in ("llama", "tampu", "road") for other in ("stone", "star", "sea")]
    return SentencePieceTokenizer(train_sentencepiece(lines, tmp_path_factory.mktemp("tokenizer"), VOCABULARY))


def pieces(text: Detokenizer, tokens: list[int]) -> list[str]:
    given_out = []
    for token in tokens:
        given_out.append(text.push(token))
        if text.stopped is not None:
            break
    return [*given_out, text.close()]


# Special tokens, bytes (with halves of characters among them), and pieces.
TOKENS = st.lists(st.one_of(st.integers(1, 2), st.integers(3 + 0x80, 3 + 0xFF), st.integers(259, VOCABULARY - 1)), max_size=25)


@settings(max_examples=300)
@given(tokens=TOKENS)
def test_pieces_put_together_are_the_decoded_text(tokenizer: SentencePieceTokenizer, tokens: list[int]) -> None:
    assert "".join(pieces(Detokenizer(tokenizer.decode), tokens)) == tokenizer.decode(tokens)


@settings(max_examples=100)
@given(text=st.text(st.sampled_from("a ñ🦙日e\n"), max_size=12))
def test_characters_are_given_out_whole(tokenizer: SentencePieceTokenizer, text: str) -> None:
    given_out = pieces(Detokenizer(tokenizer.decode), tokenizer.encode(text))
    assert "".join(given_out) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in given_out)


@settings(max_examples=300)
@given(text=st.text(st.sampled_from("ab[/]"), max_size=25), stop=st.lists(st.text(st.sampled_from("ab[/]"), min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_stop_string_that_is_complete_first(text: str, stop: list[str]) -> None:
    tokens = [ord(letter) for letter in text]
    detokenizer = Detokenizer(lambda ids: "".join(map(chr, ids)), stop)
    given_out = pieces(detokenizer, tokens)
    lengths = [n for n in range(len(text) + 1) if any(one in text[:n] for one in stop)]
    if not lengths:
        assert ("".join(given_out), detokenizer.stopped) == (text, None)
        return
    place, found = min((text[: lengths[0]].find(one), one) for one in stop if one in text[: lengths[0]])
    assert ("".join(given_out), detokenizer.stopped) == (text[:place], found)
    assert len(given_out) == lengths[0] + 1


def test_what_may_become_a_stop_string_is_held_back_and_given_out_if_it_does_not() -> None:
    detokenizer = Detokenizer(lambda ids: "".join(map(chr, ids)), ["[INST]"])
    assert [detokenizer.push(ord(letter)) for letter in "a[IN x"] == ["a", "", "", "", "[IN ", "x"]
    assert [detokenizer.push(ord(letter)) for letter in "[["] == ["", "["]
    assert detokenizer.close() == "["
