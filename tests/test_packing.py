"""Rows for training hold every example or token exactly once."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.causal_lm import PackedLoader, packed_and_alone
from model.dialogue import Example
from model.llama import Llama, LlamaConfig
from model.packing import MaskFaults, Packed, blocks, mask_faults, pack


def examples(lengths: list[int]) -> list[Example]:
    return [Example([1000 * i + j for j in range(n)], [(i + j) % 3 == 0 for j in range(n)]) for i, n in enumerate(lengths, start=1)]


@given(lengths=st.lists(st.integers(1, 16), min_size=1, max_size=40), seed=st.integers(0, 5))
def test_every_example_is_in_one_row_whole_and_with_its_mask(lengths: list[int], seed: int) -> None:
    given_examples = examples(lengths)
    packed = pack(given_examples, 16, seed=seed)
    found = []
    for tokens, learn, segments in zip(packed.tokens, packed.learn, packed.segments, strict=True):
        assert (np.diff(segments[segments > 0]) >= 0).all()
        assert not learn[segments == 0].any()
        for segment in range(1, segments.max() + 1):
            inside = segments == segment
            assert (np.diff(np.flatnonzero(inside)) == 1).all()
            found.append(Example(tokens[inside].tolist(), learn[inside].tolist()))
    assert sorted(found, key=lambda e: e.tokens) == sorted(given_examples, key=lambda e: e.tokens)
    assert packed.learned() == sum(sum(e.learn[1:]) for e in given_examples)


def test_rows_are_nearly_full() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, 500).tolist()
    packed = pack(examples(lengths), 128, seed=0)
    assert (packed.segments > 0).mean() > 0.95
    assert packed.tokens.dtype == packed.segments.dtype == np.int32
    assert packed.learn.dtype == bool


def test_the_seed_decides_the_rows() -> None:
    some = examples(list(range(1, 13)))
    assert np.array_equal(pack(some, 16, seed=1).tokens, pack(some, 16, seed=1).tokens)
    assert not np.array_equal(pack(some, 16, seed=1).tokens, pack(some, 16, seed=2).tokens)


@pytest.mark.parametrize("length", [0, 17])
def test_examples_that_fit_no_row_are_refused_by_number(length: int) -> None:
    with pytest.raises(ValueError, match=f"example 1 has {length} tokens"):
        pack([*examples([3]), Example([5] * length, [True] * length)], 16, seed=0)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), context=st.integers(2, 11))
def test_blocks_predict_every_token_but_bos_exactly_once(lengths: list[int], context: int) -> None:
    """Each document is BOS and ids that name it, so that a predicted pair shows where it came from."""
    stream = np.concatenate([[1, *range(100 * i, 100 * i + n)] for i, n in enumerate(lengths, start=1)])
    packed = blocks(stream, context)
    predicted = []
    for tokens, learn, segments in zip(packed.tokens, packed.learn, packed.segments, strict=True):
        for j in range(1, context):
            if learn[j] and segments[j] == segments[j - 1]:
                predicted.append((int(tokens[j - 1]), int(tokens[j])))
    expected = [(int(a), int(b)) for a, b in pairwise(stream) if b != 1]
    assert sorted(predicted) == sorted(expected)
    assert packed.learned() == len(expected) == len(stream) - len(lengths)
    assert not packed.learn[packed.segments == 0].any()


def test_a_stream_without_two_tokens_has_no_blocks() -> None:
    with pytest.raises(ValueError, match=r"\(1,\)"):
        blocks(np.array([1]), 8)


def test_the_loader_shows_every_row_equally_often_in_seeded_orders() -> None:
    packed = pack(examples([16] * 10), 16, seed=0)
    stream = iter(PackedLoader(packed, 4, seed=3))
    seen = [row for _ in range(5) for row in next(stream)["tokens"][:, 0].tolist()]
    assert sorted(seen[:10]) == sorted(seen[10:]) == sorted(packed.tokens[:, 0].tolist())
    assert seen[:10] != seen[10:]
    again = iter(PackedLoader(packed, 4, seed=3))
    assert [row for _ in range(5) for row in next(again)["tokens"][:, 0].tolist()] == seen
    assert PackedLoader(packed, 4, seed=3).steps(2) == 5


def test_masks_that_broke_are_counted_by_invariant() -> None:
    random = np.random.default_rng(0)

    def example(learn: str) -> Example:
        return Example([1, *random.integers(3, 40, len(learn) - 2).tolist(), 2], [letter == "x" for letter in learn])

    good = [example("..xx"), example(".....xx...x"), example("...x")]
    assert mask_faults(pack(good, 16, seed=0), 2) == MaskFaults(examples=3, all_ones=0, all_zeros=0, eos_not_learned=0)
    broken = [example("xxxx"), example(".xxxxx"), example("......"), example("..xx..")]
    assert mask_faults(pack(good + broken, 16, seed=0), 2) == MaskFaults(examples=7, all_ones=2, all_zeros=1, eos_not_learned=2)
    cut = Example([1, 7, 8, 9], [False, False, True, True])
    assert mask_faults(pack([cut], 16, seed=0), 2) == MaskFaults(examples=1, all_ones=0, all_zeros=0, eos_not_learned=1)
    lost = pack(good, 16, seed=0)
    assert mask_faults(Packed(lost.tokens, lost.segments > 0, lost.segments), 2).all_ones == 3
    assert mask_faults(Packed(lost.tokens, np.zeros_like(lost.learn), lost.segments), 2).all_zeros == 3


def test_the_loss_of_packed_examples_is_their_loss_alone_and_not_if_they_see_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Llama(LlamaConfig(vocab_size=40, dim=32, layers=2, heads=4, kv_heads=2, multiple_of=16, max_context=64))
    model.init_weights(torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        parameter.data.mul_(3)
    random = np.random.default_rng(0)
    examples = [Example([1, *random.integers(3, 40, n).tolist(), 2], [False] * 3 + [True] * (n - 1)) for n in random.integers(4, 20, 30)]
    packed, alone = packed_and_alone(model, examples, 64)
    assert packed == pytest.approx(alone, rel=1e-6)
    hidden = Llama.hidden
    monkeypatch.setattr(Llama, "hidden", lambda self, tokens, segments_bt=None: hidden(self, tokens))
    mixed, same = packed_and_alone(model, examples, 64)
    assert same == pytest.approx(alone, rel=1e-6)
    assert abs(mixed - alone) > 1e-3
