"""Tokens a second that a reward model reads."""

from collections.abc import Callable

from bench.setting import network, sequences
from model.reward import RewardModel, score


def score_pairs() -> tuple[Callable[[], int], str]:
    """Two thousand dialogues of 30 to 80 tokens."""
    model, dialogues = RewardModel.from_llama(network()), sequences(2000, 30, 80)

    def work() -> int:
        score(model, dialogues)
        return sum(len(dialogue) for dialogue in dialogues)

    return work, "tokens/s"
