"""Much text as tokens: the same ids as one text at a time, streams in shards, and rows that a number finds."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.corpus.token_stream import EncodedDocuments, write_stream
from model.causal_lm import PackedLoader
from model.encoding import TextEncoder
from model.packing import blocks
from model.token_shards import ShardWriter, StreamBlocks, TokenShards, token_dtype
from model.tokenizer import SentencePieceTokenizer, train_sentencepiece

LINES = [
    f"the {word} lake is {word} and {other}, 12 of them." for word in "old cold blue wide deep".split() for other in "calm far still".split()
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(train_sentencepiece(LINES * 4, tmp_path_factory.mktemp("tokenizer"), 330))


pieces = st.sampled_from(["the", "lake", " ", "  ", "old", "\n", "é", "▁", "12", "🙂", "\t", "is", "x"])
texts = st.lists(
    st.one_of(st.lists(pieces, max_size=12).map("".join), st.text(st.characters(exclude_categories=["Cs"]), max_size=12)), max_size=6
)


@settings(deadline=None, max_examples=150)
@given(texts)
def test_texts_encoded_by_their_words_have_the_ids_that_they_have_alone(tokenizer: SentencePieceTokenizer, found: list[str]) -> None:
    encoder = TextEncoder(tokenizer)
    assert encoder.by_word
    for _ in range(2):  # the second time the words are known
        encoded = encoder.encode(found)
        parts = np.split(encoded.ids, np.cumsum(encoded.lengths)[:-1]) if found else []
        assert [part.tolist() for part in parts] == [tokenizer.encode(text) for text in found]


def test_a_tokenizer_with_spaces_inside_its_pieces_is_asked_for_every_text(tmp_path: Path) -> None:
    import sentencepiece

    prefix = tmp_path / "other"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES * 4),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=330,
        split_by_whitespace=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    other = SentencePieceTokenizer(f"{prefix}.model")
    encoder = TextEncoder(other)
    assert not encoder.by_word
    encoded = encoder.encode([LINES[0], "", LINES[7]])
    assert encoded.ids.tolist() == other.encode(LINES[0]) + other.encode(LINES[7])
    assert encoded.lengths[1] == 0


def write(folder: Path, documents: list[list[int]], shard_tokens: int, vocab_size: int = 400) -> TokenShards:
    writer = ShardWriter(folder, "train", vocab_size, shard_tokens=shard_tokens)
    for start in range(0, len(documents), 3):
        part = documents[start : start + 3]
        writer.write(np.array([t for d in part for t in d], dtype=np.uint32), np.array([len(d) for d in part]))
    writer.close()
    return TokenShards(folder, "train")


def some_documents(seed: int, count: int = 12) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [[1, *random.integers(3, 400, int(random.integers(0, 30))).tolist(), 2] for _ in range(count)]


@pytest.mark.parametrize("shard_tokens", [1, 7, 64, 10_000])
def test_rows_read_from_shards_are_those_of_the_stream_in_memory(tmp_path: Path, shard_tokens: int) -> None:
    documents = some_documents(0)
    stream = np.array([token for document in documents for token in document])
    shards = write(tmp_path, documents, shard_tokens)
    assert shards.all().tolist() == stream.tolist() and shards.all().dtype == np.uint16
    assert shards.lengths.tolist() == [len(document) for document in documents]
    assert {len(shard) for shard in shards.shards[:-1]} <= {shard_tokens}
    packed, rows = blocks(stream, 9), StreamBlocks(shards, 9)
    assert len(rows) == len(packed)
    for which in (slice(None), slice(3, 5), np.array([len(rows) - 1, 0, 2])):
        for column in ("tokens", "learn", "segments"):
            mine, theirs = getattr(rows, column)[which], getattr(packed, column)[which]
            assert mine.dtype == theirs.dtype and (mine == theirs).all()
    with pytest.raises(IndexError, match=f"no row {len(rows)} of"):
        rows.tokens[np.array([len(rows)])]


def test_a_step_finds_its_rows_without_the_steps_before(tmp_path: Path) -> None:
    rows = StreamBlocks(write(tmp_path, some_documents(1), 50), 9)
    loader = PackedLoader(rows, 4, seed=5)
    for step, batch in zip(range(3 * len(rows) // 4), loader, strict=False):
        assert rows.tokens[np.array(loader.rows(step))].tolist() == batch["tokens"].tolist()
    parts = next(loader.batches(2, parts=2))
    assert parts["learned_in_batch"] > 0 and parts["tokens"].tolist() == rows.tokens[np.array(loader.rows(2)[:2])].tolist()


def test_ids_take_two_bytes_where_the_vocabulary_allows() -> None:
    assert (token_dtype(1 << 16), token_dtype((1 << 16) + 1)) == (np.uint16, np.uint32)


def test_a_stream_that_is_not_there_or_does_not_add_up_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no shards train-00000"):
        TokenShards(tmp_path, "train")
    with pytest.raises(ValueError, match="add up to 3 and there are 2 tokens"):
        ShardWriter(tmp_path, "train", 400).write(np.array([1, 2]), np.array([3]))
    with pytest.raises(ValueError, match="both need at least 2 tokens"):
        StreamBlocks(write(tmp_path, [], 10), 8)


@pytest.mark.parametrize("workers", [1, 3])
def test_documents_are_written_in_the_order_asked_for_whatever_the_threads(
    tmp_path: Path, tokenizer: SentencePieceTokenizer, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("assets.corpus.token_stream.GATHERED", 40)
    monkeypatch.setattr("resources.parts.BATCH_BYTES", 60)
    (tmp_path / "documents").mkdir()
    (tmp_path / "work").mkdir()
    pl.DataFrame({"text": LINES[:8]}).write_parquet(tmp_path / "documents" / "00000.parquet")
    pl.DataFrame({"text": LINES[8:]}).write_parquet(tmp_path / "documents" / "00001.parquet")
    encoded = EncodedDocuments(tmp_path / "documents", tokenizer, tmp_path / "work", workers=workers)
    order = [3, 14, 3, 0, 9]
    number = write_stream(encoded, pl.Series(order), tmp_path, "train", tokenizer.vocab_size)
    expected = [[1, *tokenizer.encode(LINES[place]), 2] for place in order]
    shards = TokenShards(tmp_path, "train")
    assert shards.all().tolist() == [token for document in expected for token in document]
    assert shards.lengths.tolist() == [len(document) for document in expected] and number == len(shards)
