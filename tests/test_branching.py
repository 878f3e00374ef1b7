"""Shared prefixes: the same numbers as one sequence at a time, and no token of a prefix twice."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.branching import LONGEST_ROW, share_prefixes
from model.llama import LlamaConfig
from model.reward import RewardModel, pad, score

CONFIG = LlamaConfig(vocab_size=40, dim=16, layers=2, heads=2, kv_heads=1, multiple_of=16, max_context=512)


def reward_model() -> RewardModel:
    torch.manual_seed(0)
    model = RewardModel(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.dim() > 1 else torch.nn.init.ones_(parameter)
    return model


MODEL = reward_model()
tokens = st.lists(st.integers(0, 39), min_size=1, max_size=12)
families = st.lists(st.tuples(st.lists(st.integers(0, 39), max_size=20), st.lists(tokens, min_size=1, max_size=6)), min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(families, st.integers(1, 300))
def test_scores_are_those_of_each_sequence_alone(made: list[tuple[list[int], list[list[int]]]], budget: int) -> None:
    sequences = [prefix + tail for prefix, tails in made for tail in tails]
    with torch.inference_mode():
        alone = torch.cat([MODEL(*pad([sequence])) for sequence in sequences]).numpy()
    np.testing.assert_allclose(score(MODEL, sequences, budget), alone, rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(families, st.integers(1, 300))
def test_every_sequence_is_in_one_row_and_can_be_read_back(made: list[tuple[list[int], list[list[int]]]], budget: int) -> None:
    sequences = [prefix + tail for prefix, tails in made for tail in tails]
    read = {}
    computed = 0
    for batch in share_prefixes(sequences, budget):
        assert batch.tokens.numel() <= budget or len(batch.tokens) == 1
        computed += batch.token_count
        for index, row, column in zip(batch.sequences.tolist(), batch.rows.tolist(), batch.columns.tolist(), strict=True):
            family = batch.segments[row] == batch.segments[row, column]
            branches = batch.branches[row][family]
            mine = (branches == 0) | (branches == batch.branches[row, column])
            assert index not in read
            read[index] = batch.tokens[row][family][mine].tolist()
    assert [read[index] for index in range(len(sequences))] == sequences
    assert computed <= sum(map(len, sequences))


def test_a_prompt_with_eight_answers_is_computed_once() -> None:
    prompt = list(range(20))
    sequences = [[*prompt, 30 + answer, 2] for answer in range(8)]
    (batch,) = share_prefixes(sequences, 1000)
    assert batch.tokens.shape == (1, 64)
    assert batch.token_count == 36
    assert batch.positions[0, :36].tolist() == [*range(20), *[20, 21] * 8] and not batch.segments[0, 36:].any()


def test_short_families_share_a_row_and_positions_begin_again_in_each() -> None:
    lengths = (30, 14, 18, 16, 3)
    (batch,) = share_prefixes([[length] * length for length in lengths], 1000)
    assert batch.tokens.shape == (3, 32) and batch.token_count == sum(lengths)
    assert batch.segments[1].tolist() == [1] * 14 + [2] * 18 and batch.positions[1].tolist() == [*range(14), *range(18)]


def test_rows_stay_short_enough_for_their_attention() -> None:
    sequences = [[*range(30), 31 + i % 5, *[2] * 20] for i in range(40)]
    assert max(batch.tokens.shape[1] for batch in share_prefixes(sequences, 4096)) <= LONGEST_ROW


def test_a_long_prompt_of_two_answers_is_shared_beyond_that_and_scored_alike() -> None:
    chance = np.random.default_rng(0)
    prompt = chance.integers(0, 40, 440).tolist()
    sequences = [[*prompt, *chance.integers(0, 40, length).tolist()] for length in (30, 40)]
    (batch,) = share_prefixes(sequences, 4096)
    assert batch.tokens.shape == (1, 512) and LONGEST_ROW < batch.token_count == 510
    with torch.inference_mode():
        alone = torch.cat([MODEL(*pad([sequence])) for sequence in sequences]).numpy()
    np.testing.assert_allclose(score(MODEL, sequences), alone, rtol=1e-4, atol=1e-5)


def test_a_row_of_branches_may_be_longer_than_the_context_and_a_sequence_may_not() -> None:
    small = RewardModel(LlamaConfig(vocab_size=40, dim=16, layers=1, heads=2, kv_heads=1, multiple_of=16, max_context=100))
    assert score(small, [[*range(30), 31, *[2] * 60], [*range(30), 32, *[3] * 60]]).shape == (2,)
    with pytest.raises(ValueError, match="a sequence of 101 tokens exceeds the model's context of 100"):
        score(small, [[1] * 101])


def test_an_empty_sequence_has_no_last_token() -> None:
    with pytest.raises(ValueError, match="sequence 1 is empty"):
        list(share_prefixes([[1], []], 10))


@settings(max_examples=30, deadline=None)
@given(families)
def test_states_that_are_asked_for_alone_are_those_of_the_whole_row_and_have_the_same_gradients(
    made: list[tuple[list[int], list[list[int]]]],
) -> None:
    sequences = [prefix + tail for prefix, tails in made for tail in tails]
    for batch in share_prefixes(sequences, 200):
        whole = MODEL.trunk(batch.tokens, batch.positions, batch.segments, branches_bt=batch.branches)[batch.rows, batch.columns]
        ends_bm, slots_n = batch.ends()
        asked = MODEL.trunk(batch.tokens, batch.positions, batch.segments, branches_bt=batch.branches, read_bm=ends_bm)[batch.rows, slots_n]
        torch.testing.assert_close(asked, whole, rtol=1e-4, atol=1e-5)
        expected = torch.autograd.grad(whole.square().sum(), list(MODEL.trunk.parameters()))
        for one, other in zip(torch.autograd.grad(asked.square().sum(), list(MODEL.trunk.parameters())), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
