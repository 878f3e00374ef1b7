"""Answers sampled from a policy, with what PPO needs to learn from them.

Shape suffixes: n answers, t tokens of prompt and answer, a answer positions. Answer position i of a row is the prediction of its i-th
answer token; `mask_na` is true for the tokens that a row has, the EOS included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.branching import length_batches
from model.generation import Completion, generate
from model.llama import Llama, LlamaConfig, Trunk
from model.precision import Precision, autocast
from model.reward import RewardModel, pad, scalar
from model.sampling import SamplingParameters
from model.shuffling import Shuffled

GROUP_TOKENS = 4096  # padded tokens that are read together


@dataclass(frozen=True)
class Prompt:
    """A prompt's tokens (`encode_prompt`), and whether it is tagged as likely to elicit unsafe answers."""

    tokens: list[int]
    is_safety: bool


class PromptLoader:
    """An endless stream of batches of prompt indices, epoch after epoch in orders drawn from the seed."""

    def __init__(self, prompts: Sequence[Prompt], samples_per_iteration: int, *, seed: int) -> None:
        if not prompts:
            raise ValueError("there are no prompts to sample answers for")
        self.count, self.samples_per_iteration, self.seed = len(prompts), samples_per_iteration, seed

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[dict[str, Tensor]]:
        """The stream from batch number `start` on."""
        order = Shuffled(self.count, self.seed, skip=start * self.samples_per_iteration)
        while True:
            yield {"prompts": torch.from_numpy(order.take(self.samples_per_iteration))}

    def rows(self, batch: int) -> list[int]:
        """Numbers of the prompts in that batch."""
        return Shuffled(self.count, self.seed, skip=batch * self.samples_per_iteration).take(self.samples_per_iteration).tolist()


class Critic(nn.Module):
    """The value function: a trunk of its own and a linear head at every answer position."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.trunk = Trunk(config)
        self.head = nn.Linear(config.dim, 1, bias=False)

    @classmethod
    def from_reward(cls, reward: RewardModel) -> Critic:
        """A critic with the trunk of a reward model and a zero head.

        The paper does not describe the critic. Our choice follows InstructGPT: a network apart from the policy, so that value errors
        do not move the policy's features, whose own start already separates good answers from bad ones. The head starts at zero, since
        the whitened reward has mean 0 and a scale of its own.
        """
        critic = cls(reward.config).to(next(reward.parameters()).device)
        critic.trunk.load_state_dict(reward.trunk.state_dict())
        nn.init.zeros_(critic.head.weight)
        return critic

    def values(self, sequences: Sequences) -> Tensor:
        """Values fp32 [n, a] of the states in which the answers' tokens were chosen, 0 outside the mask; the head computes in fp32."""
        return sequences.spread(scalar(self.head, sequences.at_answers(self.trunk)))


@dataclass(frozen=True)
class Sequences:
    """Prompts with answers, right-padded: tokens int64 [n, t], answers int64 [n, a], their mask bool [n, a], prompt lengths int64 [n]."""

    tokens_nt: Tensor
    answers_na: Tensor
    mask_na: Tensor
    prompt_lengths_n: Tensor

    @classmethod
    def of(cls, prompts: Sequence[list[int]], answers: Sequence[list[int]], device: torch.device) -> Sequences:
        """Raises ValueError for an empty prompt or answer."""
        tokens_nt, lengths_n = pad([prompt + answer for prompt, answer in zip(prompts, answers, strict=True)], device)
        answers_na, answer_lengths_n = pad(list(answers), device)
        mask_na = torch.arange(answers_na.shape[1], device=device) < answer_lengths_n[:, None]
        return cls(tokens_nt, answers_na, mask_na, lengths_n - answer_lengths_n)

    def rows(self, rows: Tensor) -> Sequences:
        """Some rows (int64 [m]), as wide as they were."""
        return Sequences(self.tokens_nt[rows], self.answers_na[rows], self.mask_na[rows], self.prompt_lengths_n[rows])

    def at_answers(self, trunk: Callable[[Tensor], Tensor]) -> Tensor:
        """The hidden states [m, d] of `trunk` (tokens [b, t] to [b, t, d]) that predict the m answer tokens under the mask, row by row.

        The trunk reads rows of like length together: prompts differ several times in length, and padding would be most of the work.
        """
        lengths_n = self.prompt_lengths_n + self.mask_na.sum(1)
        states, places = [], []
        for batch in length_batches(lengths_n.tolist(), GROUP_TOKENS):
            rows_b = torch.tensor(batch, device=lengths_n.device)
            hidden_btd = trunk(self.tokens_nt[rows_b, : int(lengths_n[rows_b].max())])
            index_m, places_m = self.mask_na[rows_b].nonzero(as_tuple=True)
            rows_m = rows_b[index_m]
            states.append(hidden_btd[index_m, self.prompt_lengths_n[rows_m] - 1 + places_m])
            places.append(rows_m * self.mask_na.shape[1] + places_m)
        return torch.cat(states)[torch.argsort(torch.cat(places))]

    def spread(self, values_m: Tensor) -> Tensor:
        """Values of the answer tokens as [n, a], 0 outside the mask."""
        return torch.zeros(self.mask_na.shape, device=values_m.device).masked_scatter(self.mask_na, values_m)

    def aligned(self, values: Sequence[Sequence[float]]) -> Tensor:
        """A number for each answer token (n lists) as fp32 [n, a], 0 outside the mask."""
        return self.spread(torch.tensor([value for row in values for value in row], device=self.mask_na.device))

    def distributions(self, model: Llama) -> Tensor:
        """Log-probabilities of the whole vocabulary [m, v] at each of the m answer tokens under the mask."""
        return torch.log_softmax(model.logits(self.at_answers(model.hidden)), dim=-1)

    def chosen(self, distributions_mv: Tensor) -> Tensor:
        """log p of each answer token in nats, fp32 [n, a]."""
        return self.spread(distributions_mv.gather(1, self.answers_na[self.mask_na][:, None]).squeeze(1))


def sample_answers(
    model: Llama,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    seed: int,
    iteration: int,
    eos_id: int,
    batch_size: int,
    precision: Precision,
) -> list[Completion]:
    """One answer a prompt, drawn from the policy's own distribution: PPO's ratio is wrong for any other sampler."""
    parameters = SamplingParameters(max_new_tokens=max_new_tokens)
    assert parameters.temperature == 1 and not parameters.truncated and parameters.repetition_penalty == 1
    seeds = [(seed << 40) + (iteration << 20) + index for index in range(len(prompts))]
    return generate(model, prompts, parameters, seeds, eos_id=eos_id, batch_size=batch_size, precision=precision)


@torch.no_grad()
def answer_logprobs(
    model: Llama, prompts: Sequence[list[int]], answers: Sequence[list[int]], *, precision: Precision, batch_size: int = 64
) -> list[list[float]]:
    """log p of each answer's tokens after its prompt (nats), by the same pass that training makes: what a sampler is compared with."""
    scored: list[list[float]] = []
    for start in range(0, len(prompts), batch_size):
        some = Sequences.of(prompts[start : start + batch_size], answers[start : start + batch_size], next(model.parameters()).device)
        with autocast(model, precision):
            logprobs_na = some.chosen(some.distributions(model))
        scored += [row[: len(answer)] for row, answer in zip(logprobs_na.tolist(), answers[start : start + batch_size], strict=True)]
    return scored
