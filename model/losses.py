"""The losses and reward formulas of Llama 2 as pure functions.

Shape suffixes: b rows, t answer positions, v vocabulary, n predictions. Masks are bool, true where a value counts; sums run over
true positions only. All return fp32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

RATINGS = ("significantly better", "better", "slightly better", "negligibly better")

# m(rating) of arXiv 2307.09288 table 27; which of them the final models used is not stated.
MARGINS: dict[str, dict[str, float]] = {
    "none": dict.fromkeys(RATINGS, 0.0),
    "small": dict(zip(RATINGS, (1.0, 2 / 3, 1 / 3, 0.0), strict=True)),
    "large": dict(zip(RATINGS, (3.0, 2.0, 1.0, 0.0), strict=True)),
}


def causal_lm_loss(logits_xv: Tensor, targets_x: Tensor, learn_x: Tensor | None = None) -> Tensor:
    """Mean of -log p(target) in nats over the learned positions (None: all). ValueError if there are none."""
    if learn_x is not None:
        logits_xv, targets_x = logits_xv[learn_x], targets_x[learn_x]
    if not targets_x.numel():
        raise ValueError("no position is learned in this batch, so that it has no loss")
    return F.cross_entropy(logits_xv.flatten(0, -2).float(), targets_x.flatten())


def ranking_loss(chosen_b: Tensor, rejected_b: Tensor, margin_b: Tensor | float = 0.0) -> Tensor:
    """Mean of -log sigmoid(r(chosen) - r(rejected) - m(rating)): arXiv 2307.09288 eq. 2, without margin eq. 1."""
    return -F.logsigmoid(chosen_b - rejected_b - margin_b).mean()


def safety_loss(scores_b: Tensor, unsafe_b: Tensor) -> Tensor:
    """Mean binary cross-entropy of sigmoid(score) as the probability that a response is safe; `unsafe_b` is 1 or true for unsafe.

    The paper adds "an auxiliary safety loss" to the safety reward model's and gives no formula: this one is our choice. Its
    decision boundary is the score 0 at which the paper judges the model.
    """
    return F.binary_cross_entropy_with_logits(scores_b, 1 - unsafe_b.to(scores_b.dtype))


def gated_reward(helpfulness_logit_b: Tensor, safety_logit_b: Tensor, is_safety_b: Tensor, threshold: float = 0.15) -> Tensor:
    """logit(Rc): Rc is the safety score for a safety prompt or where that score is below `threshold`, else the helpfulness score.

    arXiv 2307.09288 §3.2.3. Takes the reward models' raw outputs: the scores are their sigmoids, and the logit undoes it.
    """
    return torch.where(is_safety_b | (torch.sigmoid(safety_logit_b) < threshold), safety_logit_b, helpfulness_logit_b)


def whiten(values_b: Tensor, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(variance + eps), with the population variance. Over which values is not published: one iteration's (our choice)."""
    return (values_b - values_b.mean()) * torch.rsqrt(values_b.var(correction=0) + eps)


def kl_k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """log π - log π0 of tokens sampled from π, elementwise: an unbiased estimate of KL(π‖π0), negative at times (Schulman 2020)."""
    return logprobs - reference


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """exp(-k1) - 1 + k1, elementwise: as unbiased as `kl_k1`, never negative, and less noisy near 0 (Schulman 2020)."""
    difference = reference - logprobs
    return torch.expm1(difference) - difference


def entropy(logprobs_xv: Tensor) -> Tensor:
    """-Σ_v p(v) log p(v) in nats [...], of log-probabilities [..., v]."""
    return -(logprobs_xv.exp() * logprobs_xv).sum(-1)


def token_rewards(scores_b: Tensor, kl_bt: Tensor, mask_bt: Tensor, kl_coefficient: float) -> Tensor:
    """Rewards [b, t]: -β·KL at every answer token, and the answer's score at its last one; 0 where the mask is false.

    Their sum over an answer is the R of arXiv 2307.09288 §3.2.3, the score less β times the sampled KL. Where the KL is taken off is
    not published: token by token is our choice, as in InstructGPT.
    """
    rewards_bt = torch.where(mask_bt, -kl_coefficient * kl_bt, 0.0)
    rewards_bt[torch.arange(len(scores_b), device=scores_b.device), mask_bt.sum(1) - 1] += scores_b
    return rewards_bt


def gae(rewards_bt: Tensor, values_bt: Tensor, mask_bt: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Advantages and returns [b, t] by generalized advantage estimation (arXiv 1506.02438 eq. 16); 0 where the mask is false.

    A row's true positions are a prefix, and its episode ends after the last of them: no value is bootstrapped there.
    """
    values_bt = values_bt * mask_bt
    advantages_bt = torch.zeros_like(values_bt)
    following_b = torch.zeros_like(values_bt[:, 0])
    next_value_b = torch.zeros_like(following_b)
    for t in range(values_bt.shape[1] - 1, -1, -1):
        delta_b = rewards_bt[:, t] + gamma * next_value_b - values_bt[:, t]
        following_b = torch.where(mask_bt[:, t], delta_b + gamma * lam * following_b, 0.0)
        advantages_bt[:, t] = following_b
        next_value_b = values_bt[:, t]
    return advantages_bt, advantages_bt + values_bt


def ppo_policy_loss(
    logprobs_bt: Tensor, old_logprobs_bt: Tensor, advantages_bt: Tensor, mask_bt: Tensor, clip: float = 0.2
) -> tuple[Tensor, Tensor]:
    """The clipped surrogate loss (arXiv 1707.06347 eq. 7) meaned over the mask, and the probability ratios [b, t] (1 outside it)."""
    ratio_bt = torch.exp(torch.where(mask_bt, logprobs_bt - old_logprobs_bt, 0.0))
    gain_bt = torch.minimum(ratio_bt * advantages_bt, ratio_bt.clamp(1 - clip, 1 + clip) * advantages_bt)
    return -masked_mean(gain_bt, mask_bt), ratio_bt


def ppo_value_loss(values_bt: Tensor, old_values_bt: Tensor, returns_bt: Tensor, mask_bt: Tensor, clip: float = 0.2) -> Tensor:
    """Half the mean over the mask of the larger of the squared errors of the value and of the value kept within `clip` of the old one.

    The paper does not give the critic's loss; this is that of OpenAI's baselines and InstructGPT's successors: our choice.
    """
    kept_bt = old_values_bt + (values_bt - old_values_bt).clamp(-clip, clip)
    error_bt = torch.maximum((values_bt - returns_bt) ** 2, (kept_bt - returns_bt) ** 2)
    return 0.5 * masked_mean(error_bt, mask_bt)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the values where the mask is true; ValueError if it is nowhere."""
    count = mask.sum()
    if not count:
        raise ValueError("the mask is empty, so that there is nothing to average")
    return torch.where(mask, values, 0.0).sum() / count
