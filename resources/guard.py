"""Guards around a chat model: the safety reward model looks at what the user asks and at what the model answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from resources.prompts.prompt import Messages

# What a model that goes along with anything would begin with: where even this is unsafe, the request is what makes it so.
ASSENT = "Sure, I can help you with that."
REFUSAL = "I can't help with that, because it could hurt someone. Please ask someone you trust instead."
THRESHOLD = 0.15  # as in training (paper, section 3.2.3)
Stopped = Literal["input", "output"] | None


@dataclass(frozen=True)
class Guarded:
    """What the user gets, what stopped it if anything did, and both safety scores in [0, 1]."""

    text: str
    stopped: Stopped
    input_score: float
    output_score: float


class SafetyGuard:
    """The safety reward model of a round with its tokenizer."""

    def __init__(self, reward: Path, tokenizer: Path, threshold: float = THRESHOLD) -> None:
        from model.tokenizer_files import load_chat
        from model.weights import load_reward

        self.reward, self.chat = load_reward(reward), load_chat(tokenizer)
        self.threshold = threshold

    def scores(self, dialogues: Sequence[Messages], answers: Sequence[str]) -> np.ndarray:
        """Safety in [0, 1] of each dialogue with its answer, float64 [n]."""
        from model.reward import score

        sequences = [
            self.chat.example([*messages, {"role": "assistant", "content": answer}]).tokens
            for messages, answer in zip(dialogues, answers, strict=True)
        ]
        return 1 / (1 + np.exp(-score(self.reward, sequences).astype(np.float64)))

    def reply(self, dialogues: Sequence[Messages], answers: Sequence[str]) -> list[Guarded]:
        """Each answer, or the refusal where the request (with an assent for an answer) or the answer scores below the threshold."""
        asked, answered = self.scores(dialogues, [ASSENT] * len(dialogues)), self.scores(dialogues, answers)
        found = []
        for answer, before, after in zip(answers, asked, answered, strict=True):
            stopped: Stopped = "input" if before < self.threshold else "output" if after < self.threshold else None
            found.append(Guarded(REFUSAL if stopped else answer, stopped, float(before), float(after)))
        return found
