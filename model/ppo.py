"""PPO on the gated reward of two reward models, with a penalty for leaving the starting policy (arXiv 2307.09288 §3.2.3)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from model.llama import Llama
from model.losses import (
    entropy,
    gae,
    gated_reward,
    kl_k1,
    kl_k3,
    masked_mean,
    ppo_policy_loss,
    ppo_value_loss,
    token_rewards,
    whiten,
)
from model.precision import Precision, autocast
from model.rollouts import Critic, Prompt, Sequences, sample_answers
from model.training import Optimization

# (prompts, answers) as token lists -> raw logits of the helpfulness and of the safety reward model, fp32 [n] each.
Scorer = Callable[[list[list[int]], list[list[int]]], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class PPOConfig:
    """One iteration's sizes and coefficients; defaults are the paper's where it gives them.

    `kl_coefficient` is 0.01 for 7B and 13B, 0.005 for 34B and 70B. Not published, our choices: `gamma`, `lam`, `critic_clip`, one epoch,
    and `missing_eos_penalty`, taken off the whitened score of an answer that the token limit cut.
    """

    samples_per_iteration: int = 512
    minibatch: int = 64
    epochs: int = 1
    clip: float = 0.2
    critic_clip: float = 0.2
    kl_coefficient: float = 0.01
    gamma: float = 1.0
    lam: float = 0.95
    safety_threshold: float = 0.15
    missing_eos_penalty: float = 1.0
    max_new_tokens: int = 64
    decode_batch: int = 256

    def __post_init__(self) -> None:
        if self.samples_per_iteration % self.minibatch:
            raise ValueError(f"samples_per_iteration {self.samples_per_iteration} must be a multiple of minibatch {self.minibatch}")


@dataclass(frozen=True)
class Guards:
    """Bands outside which a run stops (None: no limit). All are of one iteration's answers, `max_ratio` of one minibatch.

    `max_kl` is on the mean k3 and `min_kl` on the mean k1 (nats an answer): a clearly negative k1 says that the answers do not come
    from the policy that they are ascribed to. Lengths are tokens, entropies nats a token, `min_finished` the share of answers that
    ended by EOS. `max_ratio` is on the mean probability ratio, `max_sampler_gap` on the mean absolute difference between the sampler's
    and the trainer's log-probabilities of the same tokens (nats).
    """

    max_kl: float | None = None
    min_kl: float | None = None
    min_length: float | None = None
    max_length: float | None = None
    min_entropy: float | None = None
    max_entropy: float | None = None
    min_finished: float | None = None
    max_ratio: float | None = None
    max_sampler_gap: float | None = None

    def broken(self, metrics: dict[str, float]) -> str | None:
        """Why the run must stop, or None. Metrics that are not there yet are not looked at; one that is not a number is outside any band."""
        for name, low, high in (
            ("kl_k3", None, self.max_kl),
            ("kl_k1", self.min_kl, None),
            ("answer_length", self.min_length, self.max_length),
            ("entropy", self.min_entropy, self.max_entropy),
            ("finished_share", self.min_finished, None),
            ("ratio", None, self.max_ratio),
            ("sampler_gap", None, self.max_sampler_gap),
        ):
            if name not in metrics:
                continue
            if low is not None and not metrics[name] >= low:
                return f"{name} {metrics[name]:.3g} fell below {low:g}"
            if high is not None and not metrics[name] <= high:
                return f"{name} {metrics[name]:.3g} rose above {high:g}"
        return None


@dataclass(frozen=True)
class Experience:
    """One iteration's answers and their fixed targets; the [n, a] tensors are 0 outside the answers."""

    sequences: Sequences
    logprobs_na: Tensor
    values_na: Tensor
    advantages_na: Tensor
    returns_na: Tensor


class PPO(LightningModule):
    """Trains `policy` and `critic` in place; the policy at the time of the call is the reference of the KL penalty.

    Fit it on a `PromptLoader` of the same prompts, one step an iteration, in the trainer's fp32: the module sets its own `precision`.
    Pass `ppo.validate` to `fit` (with `validate_first=True`): `validate(policy)` measures held-out prompts and returns at least
    `selection`, higher being better; after `patience` validations without a new best the run stops. At the end of a run, also one that
    a guard stopped (`stopped` says why), the policy has the weights of its best validation (`best_step`). Answers outside a band are
    not learned from, and a policy that gave them is not selected.

    Raises ValueError for no prompts, prompts that leave no room for an answer, and networks with different vocabularies.
    """

    PROGRESS = ("iteration", "stopped", "best_step", "best", "best_weights", "stale")  # what changes beside the weights

    def __init__(
        self,
        policy: Llama,
        critic: Critic,
        prompts: Sequence[Prompt],
        score: Scorer,
        optimization: Optimization,
        *,
        critic_optimization: Optimization | None = None,
        config: PPOConfig | None = None,
        guards: Guards | None = None,
        validate: Callable[[Llama], dict[str, float]] | None = None,
        patience: int | None = None,
        seed: int,
        eos_id: int,
        precision: Precision = "fp32",
    ) -> None:
        super().__init__()
        config = config or PPOConfig()
        _check(policy, critic, prompts, config)
        self.automatic_optimization = False
        self.policy, self.critic = policy, critic
        self.reference = copy.deepcopy(policy).requires_grad_(False)
        self.prompts, self.score = prompts, score
        self.optimization, self.critic_optimization = optimization, critic_optimization or optimization
        self.config, self.guards = config, guards or Guards()
        self.held_out, self.patience = validate, patience
        self.seed, self.eos_id, self.precision = seed, eos_id, precision
        self.iteration = 0
        self.stopped: str | None = None
        self.best_step = 0
        self.best: float | None = None
        self.best_weights: dict[str, Tensor] | None = None
        self.stale = 0

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            self.optimization.optimizer(self.policy),
            self.critic_optimization.optimizer(self.critic, name="critic"),
        ]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Any]:
        """One iteration: sample, score, then one pass of clipped updates. `batch["prompts"]` indexes the prompts, int64 [n]."""
        prompts = [self.prompts[i] for i in batch["prompts"].tolist()]
        order_n = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(self.seed + self.iteration))
        minibatches = order_n.to(self.device).split(self.config.minibatch)
        experience, metrics = self.collect(prompts, minibatches)
        for update, schedule in zip(self.optimizers(), (self.optimization, self.critic_optimization), strict=True):
            for group in update.param_groups:
                group["lr"] = schedule.rate(self.iteration + 1)
        self.stopped = self.guards.broken(metrics)
        updates: list[dict[str, float]] = []
        for rows in (rows for _ in range(self.config.epochs) for rows in minibatches):
            if self.stopped:
                break
            updates.append(self.update(experience, rows))
            self.stopped = self.guards.broken(updates[-1])
        for name in updates[0] if updates else ():
            values = [update[name] for update in updates]
            metrics[name] = {"ratio_max": max, "ratio_min": min}.get(name, _mean)(values)
        self.iteration += 1
        if self.stopped:
            self.trainer.should_stop = True
        return {"tokens": int(experience.sequences.mask_na.sum()), "metrics": metrics}

    @torch.no_grad()
    def collect(self, prompts: list[Prompt], minibatches: Sequence[Tensor]) -> tuple[Experience, dict[str, float]]:
        """Sample an answer a prompt, and compute rewards and advantages.

        Log-probabilities are computed again as the updates compute them, on the same minibatches, so that the first ratios are 1.
        """
        config = self.config
        questions = [prompt.tokens for prompt in prompts]
        completions = sample_answers(
            self.policy,
            questions,
            max_new_tokens=config.max_new_tokens,
            seed=self.seed,
            iteration=self.iteration,
            eos_id=self.eos_id,
            batch_size=config.decode_batch,
            precision=self.precision,
        )
        answers = [completion.tokens for completion in completions]
        sequences = Sequences.of(questions, answers, self.device)
        shape = sequences.answers_na.shape
        logprobs_na, reference_na, values_na, entropy_na = (torch.zeros(shape, device=self.device) for _ in range(4))
        for rows in minibatches:
            some = sequences.rows(rows)
            with autocast(self.policy, self.precision):
                distributions_mv = some.distributions(self.policy)
                logprobs_na[rows] = some.chosen(distributions_mv)
                entropy_na[rows] = some.spread(entropy(distributions_mv))
                reference_na[rows] = some.chosen(some.distributions(self.reference))
                values_na[rows] = self.critic.values(some)
        mask_na = sequences.mask_na
        scores = self.score(questions, answers)
        _check_scores(scores, len(answers))
        helpfulness_n, safety_n = (torch.as_tensor(each, dtype=torch.float32, device=self.device) for each in scores)
        is_safety_n = torch.tensor([prompt.is_safety for prompt in prompts], device=self.device)
        finished_n = torch.tensor([completion.finished for completion in completions], device=self.device)
        combined_n = gated_reward(helpfulness_n, safety_n, is_safety_n, config.safety_threshold)
        final_n = whiten(combined_n) - config.missing_eos_penalty * ~finished_n
        k1_na = torch.where(mask_na, kl_k1(logprobs_na, reference_na), 0.0)
        rewards_na = token_rewards(final_n, k1_na, mask_na, config.kl_coefficient)
        advantages_na, returns_na = gae(rewards_na, values_na, mask_na, config.gamma, config.lam)
        normalized_na = torch.zeros_like(advantages_na)
        normalized_na[mask_na] = whiten(advantages_na[mask_na])
        k3_na = torch.where(mask_na, kl_k3(logprobs_na, reference_na), 0.0)
        gap_na = (sequences.aligned([completion.logprobs for completion in completions]) - logprobs_na).abs()
        metrics = {
            "helpfulness_score": torch.sigmoid(helpfulness_n).mean(),
            "safety_score": torch.sigmoid(safety_n).mean(),
            "reward": combined_n.mean(),
            "reward_gated_by_safety": (is_safety_n | (torch.sigmoid(safety_n) < config.safety_threshold)).float().mean(),
            "kl_k1": k1_na.sum(1).mean(),
            "kl_k3": k3_na.sum(1).mean(),
            "entropy": masked_mean(entropy_na, mask_na),
            "answer_length": mask_na.sum(1).float().mean(),
            "finished_share": finished_n.float().mean(),
            "sampler_gap": masked_mean(gap_na, mask_na),
            "sampler_gap_max": gap_na.max(),
        }
        experience = Experience(sequences, logprobs_na, values_na, normalized_na, returns_na)
        return experience, {name: float(value) for name, value in metrics.items()}

    def update(self, experience: Experience, rows: Tensor) -> dict[str, float]:
        """One update of policy and critic on these rows."""
        some, config = experience.sequences.rows(rows), self.config
        mask_na = some.mask_na
        with autocast(self.policy, self.precision):
            logprobs_na = some.chosen(some.distributions(self.policy))
            values_na = self.critic.values(some)
        policy_loss, ratio_na = ppo_policy_loss(logprobs_na, experience.logprobs_na[rows], experience.advantages_na[rows], mask_na, config.clip)
        returns_na = experience.returns_na[rows]
        value_loss = ppo_value_loss(values_na, experience.values_na[rows], returns_na, mask_na, config.critic_clip)
        for optimizer, loss in zip(self.optimizers(), (policy_loss, value_loss), strict=True):
            self.manual_backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        clipped_na = (ratio_na - 1).abs() > config.clip
        ratio_na = ratio_na.detach()
        return {
            "policy_loss": float(policy_loss.detach()),
            "value_loss": float(value_loss.detach()),
            "ratio": float(masked_mean(ratio_na, mask_na)),
            "ratio_min": float(ratio_na.min()),
            "ratio_max": float(ratio_na.max()),
            "clip_share": float(masked_mean(clipped_na.float(), mask_na)),
        }

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Measure the policy on held-out prompts, keep its weights if they are the best so far, and stop when patience ends.

        A policy that has left a band is measured but neither kept nor counted.
        """
        if self.held_out is None:
            raise ValueError("this PPO module was built without a validate function")
        metrics = self.held_out(self.policy)
        if self.stopped:
            return metrics
        if self.best is None or metrics["selection"] > self.best:
            self.best, self.best_step, self.stale = float(metrics["selection"]), self.iteration, 0
            self.best_weights = {key: value.detach().cpu().clone() for key, value in self.policy.state_dict().items()}
        else:
            self.stale += 1
            if self.patience is not None and self.stale >= self.patience and not self.trainer.should_stop:
                self.stopped = f"no better selection value in {self.stale} validations"
                self.trainer.should_stop = True
        return metrics

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ppo"] = {name: getattr(self, name) for name in self.PROGRESS}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        for name in self.PROGRESS:
            setattr(self, name, checkpoint["ppo"][name])

    def on_train_end(self) -> None:
        if self.best_weights is not None:
            self.policy.load_state_dict(self.best_weights)


def _check(policy: Llama, critic: Critic, prompts: Sequence[Prompt], config: PPOConfig) -> None:
    if not prompts:
        raise ValueError("there are no prompts to sample answers for")
    context = policy.config.max_context
    for index, prompt in enumerate(prompts):
        if len(prompt.tokens) + config.max_new_tokens > context:
            raise ValueError(
                f"prompt {index} has {len(prompt.tokens)} tokens, which leaves no room for max_new_tokens {config.max_new_tokens} in the "
                f"policy's context of {context}; leave it out"
            )
    theirs, ours = critic.trunk.config.vocab_size, policy.config.vocab_size
    if theirs != ours:
        raise ValueError(f"the critic has a vocabulary of {theirs} tokens and the policy one of {ours}; both must read the same tokens")


def _check_scores(scores: tuple[np.ndarray, np.ndarray], count: int) -> None:
    for name, each in zip(("helpfulness", "safety"), scores, strict=True):
        bad = np.flatnonzero(~np.isfinite(each))
        if len(bad):
            raise ValueError(
                f"the {name} reward of {len(bad)} of {count} answers is not finite, the first being {each[bad[0]]} of answer {bad[0]}; "
                "the reward model is broken or its precision too low: score the answer by itself in fp32"
            )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
