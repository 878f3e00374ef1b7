"""PPO on top of the round's rejection sampling policy (paper, section 3.2.3)."""

from typing import TYPE_CHECKING, ClassVar

import dagster as dg
import numpy as np
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.plots import lines
from resources.annotator import score
from resources.profiles import active
from resources.prompts.prompt import Prompt
from resources.recipe import Check, ExecutionConfig, Run, artifact
from resources.sampler import BATCH, LocalSampler, Sampling, answerable

if TYPE_CHECKING:
    from model.llama import Llama


PARTS = ("train", "validation")


class PpoConfig(dg.Config):
    """The paper's values where it gives them: clip 0.2, gradient clip 1, 8 updates an iteration, constant rate; sizes by profile."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("log_every", *ExecutionConfig.NOT_IDENTITY)
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
    critic_learning_rate: float = Field(active().ppo_critic_learning_rate, gt=0, description="constant (our choice)")
    most_kl: float = Field(30.0, gt=0, description="guard: KL from the start in nats an answer (k3)")
    least_entropy: float = Field(0.02, ge=0, description="guard: entropy in nats a token")
    most_ratio: float = Field(2.0, gt=1, description="guard: mean probability ratio of a minibatch")
    least_finished: float = Field(0.2, ge=0, le=1, description="guard: share of the answers that end by EOS")
    most_sampler_gap: float = Field(
        0.05, gt=0, description="guard: mean difference between the sampler's and the trainer's log-probabilities, in nats"
    )
    validation_temperature: float = Field(0.7, ge=0, description="of the answers to validation prompts, as in the evaluations")
    validation_top_p: float = Field(0.9, gt=0, le=1, description="of the answers to validation prompts, as in the evaluations")
    seed: int = Field(active().seed, ge=0, description="order of the prompts and noise of the rollouts")
    log_every: int = Field(1, ge=1, description="iterations between lines of the training log")
    execution: ExecutionConfig = Field(ExecutionConfig(), description="how the training is run")


@artifact(
    "rlhf/ppo_policy",
    parents=["rlhf/policy", "rlhf/prompts", "reward/helpfulness", "reward/safety", "tokenizer/sentencepiece"],
    partitions="round",
    starts_at_round=True,
    kinds={"pytorch"},
    owners=["team:alignment"],
    pool="trainer",
    checks=[
        Check(
            "beats_its_start",
            blocking=False,
            description="on validation prompts the annotator scores the kept policy above the one PPO began with",
        ),
        Check("stayed_in_band", blocking=False, description="no guard (KL, ratio, length, entropy, share of EOS) stopped the run"),
        Check(
            "sampler_matches_trainer",
            blocking=True,
            description="a training pass gives the sampled tokens the log-probabilities that the sampler drew them with",
        ),
    ],
)
def ppo_policy(run: Run, config: PpoConfig) -> None:
    """PPO on the gated, whitened reward of both reward models with a KL penalty to `rlhf/policy`, where it starts.

    The kept weights are those that the annotator liked best on validation prompts, which are looked at before the first iteration and
    every few; guards stop a run that drifts."""
    from assets.rlhf.scoring import RewardModels
    from model.ppo import PPO, Guards, PPOConfig
    from model.reward import score as reward_scores
    from model.rollouts import Critic, PromptLoader
    from model.rollouts import Prompt as Tokens
    from model.training import Optimization, fit
    from model.weights import load_llama, save_llama

    pool = run.parent("rlhf/prompts").frame("prompts.parquet")
    policy = load_llama(run.parent("rlhf/policy").path)
    rewards = RewardModels(run, config.safety_threshold)
    chat = rewards.chat
    sampler = LocalSampler(policy, chat)
    train, held_out = ([Prompt.from_row(row) for row in pool.filter(pl.col("split") == name).iter_rows(named=True)] for name in PARTS)
    train, train_too_long = answerable(train, sampler, config.max_new_tokens, asset=run.asset)
    held_out, held_out_too_long = answerable(held_out, sampler, config.max_new_tokens, asset=run.asset)
    run.metric("prompts_too_long", train_too_long + held_out_too_long)

    def logits(prompts: list[list[int]], answers: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        whole = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        return (
            reward_scores(rewards.helpfulness, whole, precision="bf16"),
            reward_scores(rewards.safety, whole, precision="bf16"),
        )

    def validate(network: "Llama") -> dict[str, float]:
        sampling = Sampling(temperature=config.validation_temperature, top_p=config.validation_top_p, max_new_tokens=config.max_new_tokens)
        answers = LocalSampler(network, chat).sample([p.messages for p in held_out], sampling, seed=config.seed)
        texts = [several[0].text for several in answers]
        helpfulness, safety = rewards.logits([p.messages for p in held_out], texts)
        gated = rewards.gated(helpfulness, safety, np.array([p.is_safety for p in held_out]))
        scored = [score(p, text) for p, text in zip(held_out, texts, strict=True)]
        families = sorted({p.family for p in held_out})
        by_family = [float(np.mean([s for p, s in zip(held_out, scored, strict=True) if p.family == family])) for family in families]
        return {"selection": float(np.mean(by_family)), "held_out_reward": float(gated.mean())}

    steps = config.iterations
    ppo = PPO(
        policy,
        Critic.from_reward(rewards.helpfulness),
        prompts := [Tokens(chat.prompt(p.messages), p.is_safety) for p in train],
        logits,
        Optimization(config.learning_rate, 0, steps, schedule="constant"),
        critic_optimization=Optimization(config.critic_learning_rate, 0, steps, schedule="constant"),
        config=PPOConfig(
            samples_per_iteration=config.samples,
            minibatch=config.minibatch,
            clip=config.clip,
            kl_coefficient=config.kl_coefficient,
            safety_threshold=config.safety_threshold,
            max_new_tokens=config.max_new_tokens,
            decode_batch=BATCH,
        ),
        guards=Guards(
            max_kl=config.most_kl,
            min_kl=-1.0,
            min_length=2.0,
            max_length=0.95 * config.max_new_tokens,
            min_entropy=config.least_entropy,
            min_finished=config.least_finished,
            max_ratio=config.most_ratio,
            max_sampler_gap=config.most_sampler_gap,
        ),
        validate=validate,
        seed=config.seed,
        eos_id=chat.tokenizer.eos_id,
        precision="bf16",
    )
    result = fit(
        ppo,
        PromptLoader(prompts, config.samples, seed=config.seed),
        steps=steps,
        seed=config.seed,
        log_every=config.log_every,
        progress=run.label,
        validate=ppo.validate,
        validate_every=config.validate_every,
        validate_first=True,
        resume=run.resume(config.execution),
        execution=run.execution(config.execution),
    )
    save_llama(policy, run.directory)
    run.rows("training_metrics", result.rows)
    selections = [row for row in result.rows if row["metric"] == "selection"]
    start, best = selections[0]["value"], max(row["value"] for row in selections)
    run.metric("iterations", result.steps)
    run.metric("best_iteration", ppo.best_step)
    run.metric("annotator_at_start", start)
    run.metric("annotator_at_best", best)
    last = {row["metric"]: row["value"] for row in result.rows}
    for name in ("kl_k1", "kl_k3", "entropy", "answer_length", "finished_share", "clip_share", "ratio_max", "sampler_gap"):
        if name in last:  # a guard may stop the run before its first update
            run.metric(name, last[name])
    run.check("beats_its_start", passed=best > start, description=f"{best:.3f} at iteration {ppo.best_step}, {start:.3f} at the start")
    run.check("stayed_in_band", passed=ppo.stopped is None, description=ppo.stopped or f"{result.steps} iterations")
    gap = max(row["value"] for row in result.rows if row["metric"] == "sampler_gap")
    run.check(
        "sampler_matches_trainer",
        passed=gap <= config.most_sampler_gap,
        description=f"{gap:.2g} nats a token in the worst iteration; bound {config.most_sampler_gap}",
    )
    names = ("selection", "held_out_reward", "reward", "kl_k3")
    run.plot(
        "ppo",
        lines({name: [(row["step"], row["value"]) for row in result.rows if row["metric"] == name] for name in names}, "iteration", ""),
    )
