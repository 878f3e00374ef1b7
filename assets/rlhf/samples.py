"""Rejection sampling, first half (paper, section 3.2.3): K answers a prompt from the chat model of the round before, scored."""

from typing import ClassVar

import dagster as dg
import numpy as np
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.plots import lines
from resources.profiles import active
from resources.prompts.prompt import Prompt
from resources.recipe import Check, Run, artifact
from resources.splits import fraction_of


class SamplesConfig(dg.Config):
    """K and the temperature are ours: the paper explores both and states neither."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ()
    samples_per_prompt: int = Field(active().samples_per_prompt, ge=1, description="K, answers to each prompt")
    prompts: int = Field(active().rejection_sampling_prompts, ge=1, description="training prompts, another part of them each round")
    temperature: float = Field(1.0, gt=0, description="the paper tunes it every round")
    max_new_tokens: int = Field(active().answer_tokens, ge=1, description="tokens an answer at most")
    safety_threshold: float = Field(0.15, ge=0, le=1, description="safety score below which it replaces the helpfulness score")
    seed: int = Field(active().seed, ge=0, description="noise of the sampling")


def round_prompts(prompts: pl.DataFrame, count: int, salt: str) -> pl.DataFrame:
    """`count` prompts in an order given by a hash of `salt` and prompt, so that rounds draw different parts of the same pool."""
    place = [fraction_of(identity, salt) for identity in prompts["prompt_id"]]
    return prompts.with_columns(place=pl.Series(place)).sort("place").head(count).drop("place")


@artifact(
    "rlhf/samples",
    parents=["rlhf/prompts", "reward/helpfulness", "reward/safety", "tokenizer/sentencepiece"],
    previous=("rlhf/chat_model",),
    partitions="round",
    kinds={"pytorch", "polars"},
    owners=["team:alignment"],
    pool="trainer",
    checks=[
        Check("spread", blocking=False, description="the best of K is clearly above the median: there is something to learn"),
        Check("stopped", blocking=False, description="most answers end by themselves"),
    ],
)
def samples(run: Run, config: SamplesConfig) -> None:
    """K sampled answers to training prompts with both rewards; the curve of best and median reward over K (Fig. 7)."""
    from assets.rlhf.scoring import RewardModels
    from resources.sampler import LocalSampler, Sampling

    pool = run.parent("rlhf/prompts").frame("prompts.parquet").filter(pl.col("split") == "train")
    drawn = round_prompts(pool, config.prompts, f"samples/{run.this_round.round}")
    prompts = [Prompt.from_row(row) for row in drawn.iter_rows(named=True)]
    sampler = LocalSampler.load(run.previous("rlhf/chat_model").path, run.parent("tokenizer/sentencepiece").path, label=run.label)
    sampling = Sampling(temperature=config.temperature, max_new_tokens=config.max_new_tokens)
    answers = sampler.sample([p.messages for p in prompts], sampling, seed=config.seed, samples=config.samples_per_prompt)

    flat = [(prompt, number, answer) for prompt, several in zip(prompts, answers, strict=True) for number, answer in enumerate(several)]
    rewards = RewardModels(run, config.safety_threshold)
    helpfulness, safety = rewards.logits([p.messages for p, _, _ in flat], [a.text for _, _, a in flat])
    gated = rewards.gated(helpfulness, safety, np.array([p.is_safety for p, _, _ in flat]))
    frame = pl.DataFrame(
        {
            "prompt_id": [p.prompt_id for p, _, _ in flat],
            "sample": [number for _, number, _ in flat],
            "family": [p.family for p, _, _ in flat],
            "text": [a.text for _, _, a in flat],
            "tokens": [len(a.tokens) for _, _, a in flat],
            "finished": [a.finished for _, _, a in flat],
            "helpfulness": helpfulness.astype(np.float64),
            "safety": safety.astype(np.float64),
            "reward": gated.astype(np.float64),
        }
    )
    run.write_frame("samples.parquet", frame)
    run.write_frame("prompts.parquet", drawn)

    curve = best_of(frame, config.samples_per_prompt)
    run.rows(
        "training_metrics",
        [{"step": row["k"], "tokens": None, "metric": name, "value": row[name]} for row in curve for name in ("best_reward", "median_reward")],
    )
    run.table("reward over K", pl.DataFrame(curve))
    run.metric("samples", frame.height)
    run.metric("mean_reward", float(frame["reward"].mean()))  # type: ignore[arg-type]
    run.metric("best_reward", curve[-1]["best_reward"])
    share = float(frame["finished"].mean())  # type: ignore[arg-type]
    run.metric("finished_share", share)
    run.check(
        "spread",
        passed=curve[-1]["best_reward"] > curve[-1]["median_reward"],
        description=f"best {curve[-1]['best_reward']:.3f}, median {curve[-1]['median_reward']:.3f} (sigmoid)",
    )
    run.check("stopped", passed=share > 0.5, description=f"{share:.1%} end with EOS")
    series = {name: [(row["k"], row[name]) for row in curve] for name in ("best_reward", "median_reward")}
    run.plot("reward_over_k", lines(series, "samples a prompt (K)", "reward"))


def best_of(frame: pl.DataFrame, most: int) -> list[dict[str, float]]:
    """Mean over prompts of the best and of the median reward among the first K samples, K = 1, 2, 4, …, `most` (sigmoid scale)."""
    steps = sorted({min(2**power, most) for power in range(most.bit_length() + 1)})
    probability = (1 / (1 + (-pl.col("reward")).exp())).alias("probability")
    rows = []
    for k in steps:
        each = frame.filter(pl.col("sample") < k).group_by("prompt_id").agg(best=probability.max(), middle=probability.median())
        rows.append({"k": k, "best_reward": float(each["best"].mean()), "median_reward": float(each["middle"].mean())})  # type: ignore[arg-type]
    return rows
