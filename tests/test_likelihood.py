"""Log-likelihoods with shared prefixes: against each pair read on its own."""

import numpy as np
import pytest
import torch

from model.likelihood import _rows, loglikelihoods
from model.llama import Llama, LlamaConfig

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def llama() -> Llama:
    model = Llama(LlamaConfig(vocab_size=64, dim=32, layers=2, heads=2, kv_heads=1, multiple_of=16, max_context=48))
    model.init_weights(torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)
    return model


@torch.inference_mode()
def alone(model: Llama, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """The definition: one forward pass over the whole pair."""
    whole = (context + continuation)[-(model.config.max_context + 1) :]
    logits = model(torch.tensor([whole[:-1]]))[0, -len(continuation) :]
    logprobs = torch.log_softmax(logits, -1)[range(len(continuation)), continuation]
    return float(logprobs.double().sum()), logits.argmax(-1).tolist() == continuation


def random_pairs(seed: int) -> list[tuple[list[int], list[int]]]:
    """Questions with shared examples before them, choices of several lengths, single tokens, repeats, prefixes of one another."""
    chance = np.random.default_rng(seed)
    draw = lambda low, high: chance.integers(3, 64, chance.integers(low, high)).tolist()  # noqa: E731
    pairs = []
    for header in ([1], [1, *draw(8, 14)]):
        for _ in range(6):
            context = [*header, *draw(1, 12)]
            choices = [draw(1, 7) for _ in range(3)] + [draw(1, 2), draw(1, 2)]
            pairs += [(context, choice) for choice in choices]
            pairs.append((context + choices[0][:1], choices[0][1:] or [5]))
    pairs.append(pairs[3])
    pairs.append(([1, *draw(60, 61)], draw(5, 6)))
    return [pairs[i] for i in chance.permutation(len(pairs))]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("batch_tokens", [40, 16384])
def test_shared_prefixes_change_no_number_and_no_greedy_flag(llama: Llama, seed: int, batch_tokens: int) -> None:
    pairs = random_pairs(seed)
    found = loglikelihoods(llama, pairs, batch_tokens=batch_tokens)
    expected = [alone(llama, *pair) for pair in pairs]
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=2e-4)
    assert [one[1] for one in found] == [one[1] for one in expected]


def test_a_greedy_continuation_is_told_so(llama: Llama) -> None:
    context = [1, 5, 9]
    answer: list[int] = []
    with torch.inference_mode():
        for _ in range(4):
            answer.append(int(llama(torch.tensor([context + answer]))[0, -1].argmax()))
    other = [(answer[0] + 1) % 64, *answer[1:]]
    assert [flag for _, flag in loglikelihoods(llama, [(context, answer), (context, other), (context, answer[:2])])] == [True, False, True]


def test_choices_of_a_question_and_questions_after_the_same_examples_share_tokens() -> None:
    header = tuple(range(1, 30))
    sequences = [(*header, 40 + question, 50 + choice, 3) for question in range(3) for choice in range(4)]
    rows = _rows(sequences, 512)
    assert len(rows) == 1 and rows[0].prefix == len(header) and rows[0].length == 29 + 12 * 3
    assert max(row.length for row in _rows(sequences, 40)) <= 40


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (([], [1]), "pair 0 has an empty context"),
        (([1], []), "pair 0 has an empty continuation"),
        (([1], [3] * 49), "beyond the model's context of 48"),
    ],
)
def test_what_cannot_be_scored_is_refused(llama: Llama, pair: tuple[list[int], list[int]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        loglikelihoods(llama, [pair])
