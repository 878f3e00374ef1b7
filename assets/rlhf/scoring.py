"""Scoring answers with a round's two reward models."""

from collections.abc import Sequence

import numpy as np

from resources.errors import TampuError
from resources.prompts.prompt import Messages
from resources.recipe import Artifact, Run


class RewardModels:
    """Both reward models of a round, and the paper's gated combination of them (section 3.2.3).

    Raises TampuError for a reward model that was made with another tokenizer than the run's: token ids would mean other words to it.
    """

    def __init__(self, run: Run, threshold: float = 0.15) -> None:
        from model.tokenizer_files import load_chat
        from model.weights import load_reward

        for name in ("reward/helpfulness", "reward/safety"):
            _check_tokenizer(run.parent(name), run.parent("tokenizer/sentencepiece"))
        self.helpfulness = load_reward(run.parent("reward/helpfulness").path)
        self.safety = load_reward(run.parent("reward/safety").path)
        self.chat = load_chat(run.parent("tokenizer/sentencepiece").path)
        self.threshold = threshold

    @property
    def longest(self) -> int:
        """Tokens that both models can read."""
        return min(self.helpfulness.config.max_context, self.safety.config.max_context)

    def length(self, messages: Messages, answer: str) -> int:
        """Tokens of a dialogue with its answer."""
        return len(self._tokens(messages, answer))

    def _tokens(self, messages: Messages, answer: str) -> list[int]:
        return self.chat.example([*messages, {"role": "assistant", "content": answer}]).tokens

    def logits(self, dialogues: Sequence[Messages], answers: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Raw helpfulness and safety scores [n] of each dialogue with its answer. Raises TampuError for one that is not finite."""
        from model.reward import score

        sequences = [self._tokens(messages, answer) for messages, answer in zip(dialogues, answers, strict=True)]
        scores = score(self.helpfulness, sequences, precision="bf16"), score(self.safety, sequences, precision="bf16")
        for name, each in zip(("helpfulness", "safety"), scores, strict=True):
            bad = np.flatnonzero(~np.isfinite(each))
            if len(bad):
                raise TampuError(
                    f"reward/{name} scored {len(bad)} of {len(each)} answers as {each[bad[0]]}, the first being {answers[bad[0]]!r}: "
                    f"look at its training, and make it again with `tampu run --force --select reward/{name} --round ...`"
                )
        return scores

    def gated(self, helpfulness: np.ndarray, safety: np.ndarray, is_safety: np.ndarray) -> np.ndarray:
        """logit(Rc): the safety score for flagged prompts and below the threshold, else the helpfulness score. float32 [n]."""
        import torch

        from model.losses import gated_reward

        flags = torch.from_numpy(np.ascontiguousarray(is_safety))
        combined = gated_reward(torch.from_numpy(helpfulness), torch.from_numpy(safety), flags, threshold=self.threshold)
        return combined.numpy()


def _check_tokenizer(reward: Artifact, tokenizer: Artifact) -> None:
    made_with = [one["data_version"] for one in reward.manifest["inputs"] if one["asset"] == tokenizer.asset]
    if made_with and made_with != [tokenizer.data_version]:
        raise TampuError(
            f"{reward.label} was made with {tokenizer.asset} {made_with[0][:12]}, and the policy reads {tokenizer.data_version[:12]}: "
            "make the reward model again with this tokenizer"
        )
