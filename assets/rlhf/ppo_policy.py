"""PPO on top of the round's rejection sampling policy (paper, section 3.2.3)."""

from typing import ClassVar

import dagster as dg
import numpy as np
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.plots import lines
from assets.rlhf.samples import round_prompts
from resources.profiles import active
from resources.recipe import Check, Run, artifact


class PpoConfig(dg.Config):
    """The paper's values where it gives them: clip 0.2, gradient clip 1, 8 updates an iteration, constant rate; sizes by profile."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("log_every",)
    from_round: int = Field(2, ge=1, description="first round that has this stage (the paper: after V4)")
    iterations: int = Field(active().ppo_iterations, ge=1, description="PPO iterations at most")
    samples: int = Field(active().ppo_samples, ge=1, description="answers an iteration (the paper: 512)")
    minibatch: int = Field(active().ppo_minibatch, ge=1, description="answers an update (the paper: 64)")
    learning_rate: float = Field(active().ppo_learning_rate, gt=0, description="constant")
    kl_coefficient: float = Field(0.01, ge=0, description="beta (the paper: 0.01 for 7B and 13B)")
    clip: float = Field(0.2, gt=0, description="of the probability ratio")
    safety_threshold: float = Field(0.15, ge=0, le=1, description="safety score below which it replaces the helpfulness score")
    max_new_tokens: int = Field(active().answer_tokens, ge=1, description="tokens an answer at most")
    validate_every: int = Field(4, ge=1, description="iterations between looks at held-out prompts")
    seed: int = Field(0, ge=0, description="order of the prompts and noise of the rollouts")
    log_every: int = Field(1, ge=1, description="iterations between lines of the training log")


@artifact(
    "rlhf/ppo_policy",
    parents=["rlhf/policy", "rlhf/prompts", "reward/helpfulness", "reward/safety", "tokenizer/sentencepiece"],
    partitions="round", starts_at_round=True, kinds={"pytorch"}, owners=["team:alignment"], pool="trainer",
    checks=[Check("held_out_reward_rose", blocking=False, description="reward on held-out prompts is above the start's")],
)
def ppo_policy(run: Run, config: PpoConfig) -> None:
    """PPO."""
    raise RuntimeError
