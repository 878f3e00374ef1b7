"""The tokenizer has Llama's settings."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.tokenizer import MAX_SENTENCE_BYTES, SentencePieceTokenizer, train_sentencepiece


def texts() -> list[str]:
    choose = random.Random(0)
    syllables = ["ka", "lo", "mi", "ta", "ru", "se", "no", "pi", "wan", "chay"]
    words = ["".join(choose.choices(syllables, k=choose.randint(1, 3))) for _ in range(300)]
    return [" ".join(choose.choices(words, k=12)) + f" in {choose.randint(0, 9999)}." for _ in range(200)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_sentencepiece(texts(), tmp_path_factory.mktemp("tokenizer"), 400))


def piece(tokenizer: SentencePieceTokenizer, index: int) -> str:
    return tokenizer.processor.id_to_piece(index)


def test_special_ids_and_the_byte_pieces_lie_where_llamas_do(tokenizer: SentencePieceTokenizer) -> None:
    assert (tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.vocab_size) == (0, 1, 2, 400)
    assert tokenizer.processor.pad_id() == -1
    assert [piece(tokenizer, i) for i in (0, 1, 2, 3, 258)] == ["<unk>", "<s>", "</s>", "<0x00>", "<0xFF>"]


def test_numbers_are_split_into_digits(tokenizer: SentencePieceTokenizer) -> None:
    assert [piece(tokenizer, i) for i in tokenizer.encode("2024")] == ["▁", "2", "0", "2", "4"]
    assert not any(len(p.strip("▁")) > 1 and any(c.isdigit() for c in p) for p in (piece(tokenizer, i) for i in range(259, 400)))


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁\0")))
def test_any_text_comes_back_from_its_tokens(tokenizer: SentencePieceTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not {0, 1, 2} & set(ids)


def test_text_is_neither_normalized_nor_trimmed(tokenizer: SentencePieceTokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("  ﬁne  Ⅳ ")) == "  ﬁne  Ⅳ "


def test_special_tokens_written_in_text_stay_text(tokenizer: SentencePieceTokenizer) -> None:
    assert not {1, 2} & set(tokenizer.encode("<s>hello</s>"))
    assert tokenizer.decode([1, *tokenizer.encode("kalo"), 2]) == "kalo"


def test_a_batch_is_encoded_as_its_texts_are(tokenizer: SentencePieceTokenizer) -> None:
    some = ["kalo mi", "", "ta 12"]
    assert tokenizer.encode_batch(some) == [tokenizer.encode(text) for text in some]


def test_the_same_texts_give_the_same_bytes(tmp_path: Path, tokenizer: SentencePieceTokenizer) -> None:
    path = train_sentencepiece(iter(texts()), tmp_path, 400)
    assert path.read_bytes() == tokenizer.path.read_bytes()
    lines = (tmp_path / "tokenizer.vocab").read_text().splitlines()
    assert len(lines) == 400
    assert lines[1] == "<s>\t0"


def test_lines_too_long_for_the_trainer_are_cut_and_not_skipped(tmp_path: Path) -> None:
    long = " ".join(["quyllurpa"] * 2000)
    assert len(long) > MAX_SENTENCE_BYTES
    tokenizer = SentencePieceTokenizer(train_sentencepiece([*texts(), long], tmp_path, 400))
    assert "▁quyllurpa" in [piece(tokenizer, i) for i in tokenizer.encode("quyllurpa")]


def test_a_vocabulary_that_the_texts_cannot_fill_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vocab_size 100000 .* they support \d+ pieces at most"):
        train_sentencepiece(texts(), tmp_path, 100_000)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.model"):
        SentencePieceTokenizer(tmp_path / "absent.model")
