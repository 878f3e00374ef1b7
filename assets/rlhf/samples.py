"""Rejection sampling, first half (paper, section 3.2.3): K answers a prompt from the chat model of the round before, scored."""

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import dagster as dg
import numpy as np
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.plots import lines
from resources.profiles import active
from resources.prompts.prompt import Prompt
from resources.recipe import Check, Run, artifact
from resources.sampler import Engine, Sampling, answerable, load_sampler
from resources.splits import fraction_of

if TYPE_CHECKING:
    from assets.rlhf.scoring import RewardModels
    from resources.sampler import Answer, Sampler


COMPARED = 256  # answers that sampler and trainer both score


class SamplesConfig(dg.Config):
    """K and the temperature are ours: the paper explores both and states neither."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ()
    samples_per_prompt: int = Field(active().samples_per_prompt, ge=1, description="K, answers to each prompt")
    prompts: int = Field(active().rejection_sampling_prompts, ge=1, description="training prompts, another part of them each round")
    temperature: float = Field(1.0, gt=0, description="the paper tunes it every round")
    max_new_tokens: int = Field(active().answer_tokens, ge=1, description="tokens an answer at most")
    safety_threshold: float = Field(0.15, ge=0, le=1, description="safety score below which it replaces the helpfulness score")
    temperatures: list[float] = Field([0.6, 0.8, 1.2, 1.5], description="further temperatures, for the curve of reward over K at each (Fig. 8)")
    temperature_prompts: int = Field(40, ge=1, description="prompts that are also sampled at the further temperatures")
    engine: Engine = Field("local", description="what samples: our engine, or vLLM where it is installed")
    most_sampler_gap: float = Field(
        0.05, gt=0, description="mean difference between the sampler's and the trainer's log-probabilities of the same tokens, in nats"
    )
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
        Check(
            "sampler_matches_trainer",
            blocking=True,
            description="a training pass gives the sampled tokens the log-probabilities that the sampler drew them with",
        ),
    ],
)
def samples(run: Run, config: SamplesConfig) -> None:
    """K sampled answers to training prompts with both rewards; best and median reward over K (Fig. 7), and at other temperatures (Fig. 8)."""
    from assets.rlhf.scoring import RewardModels

    pool = run.parent("rlhf/prompts").frame("prompts.parquet").filter(pl.col("split") == "train")
    drawn = round_prompts(pool, config.prompts, f"samples/{run.this_round.round}")
    before, tokenizer = run.previous("rlhf/chat_model"), run.parent("tokenizer/sentencepiece")
    sampler = load_sampler(config.engine, before.path, tokenizer.path, label=run.label)
    everything = [Prompt.from_row(row) for row in drawn.iter_rows(named=True)]
    prompts, too_long = answerable(everything, sampler, config.max_new_tokens, asset=run.asset)
    sampling = Sampling(temperature=config.temperature, max_new_tokens=config.max_new_tokens)
    answers = sampler.sample([p.messages for p in prompts], sampling, seed=config.seed, samples=config.samples_per_prompt)
    rewards = RewardModels(run, config.safety_threshold)
    frame = scored(prompts, answers, rewards)
    run.write_frame("samples.parquet", frame)
    run.write_frame("prompts.parquet", drawn.filter(pl.col("prompt_id").is_in([p.prompt_id for p in prompts])))

    run.metric("prompts_too_long", too_long)
    run.metric("prompts_without_a_finished_answer", frame.group_by("prompt_id").agg(pl.col("finished").any()).filter(~pl.col("finished")).height)
    compare_sampler(run, config, before.path, tokenizer.path, prompts, answers)
    compare_temperatures(run, config, sampler, prompts, rewards, frame)
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


def scored(prompts: list[Prompt], answers: "list[list[Answer]]", rewards: "RewardModels") -> pl.DataFrame:
    """A row an answer: whose it is, its text and length, whether it ended by itself, both raw rewards and their gated combination."""
    flat = [(prompt, number, answer) for prompt, several in zip(prompts, answers, strict=True) for number, answer in enumerate(several)]
    helpfulness, safety = rewards.logits([p.messages for p, _, _ in flat], [a.text for _, _, a in flat])
    gated = rewards.gated(helpfulness, safety, np.array([p.is_safety for p, _, _ in flat]))
    return pl.DataFrame(
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


def compare_sampler(
    run: Run, config: SamplesConfig, weights: Path, tokenizer: Path, prompts: list[Prompt], answers: "list[list[Answer]]"
) -> None:
    """The check `sampler_matches_trainer`, on the first answers to the first prompts."""
    from model.rollouts import answer_logprobs
    from model.tokenizer_files import load_chat
    from model.weights import load_llama

    chat = load_chat(tokenizer)
    some = [(chat.prompt(p.messages), several[0]) for p, several in zip(prompts[:COMPARED], answers, strict=False)]
    trained = answer_logprobs(load_llama(weights), [prompt for prompt, _ in some], [a.tokens for _, a in some], precision="bf16")
    gaps = [abs(a - b) for (_, answer), theirs in zip(some, trained, strict=True) for a, b in zip(answer.logprobs, theirs, strict=True)]
    gap = float(np.mean(gaps))
    run.metric("sampler_gap", gap)
    run.check(
        "sampler_matches_trainer",
        passed=gap <= config.most_sampler_gap,
        description=f"{gap:.2g} nats a token on average, {max(gaps):.2g} at most, over {len(gaps)} tokens; bound {config.most_sampler_gap}",
    )


def compare_temperatures(
    run: Run, config: SamplesConfig, sampler: "Sampler", prompts: list[Prompt], rewards: "RewardModels", frame: pl.DataFrame
) -> None:
    """Best reward over K at several temperatures, on the same few prompts: rows and a plot."""
    some = prompts[: config.temperature_prompts]
    curves = {config.temperature: best_of(frame.filter(pl.col("prompt_id").is_in([p.prompt_id for p in some])), config.samples_per_prompt)}
    for temperature in config.temperatures:
        sampling = Sampling(temperature=temperature, max_new_tokens=config.max_new_tokens)
        answers = sampler.sample([p.messages for p in some], sampling, seed=config.seed, samples=config.samples_per_prompt)
        curves[temperature] = best_of(scored(some, answers, rewards), config.samples_per_prompt)
    rows = [
        {"step": row["k"], "tokens": None, "metric": f"{name}_at_temperature_{temperature:g}", "value": row[name]}
        for temperature, curve in sorted(curves.items())
        for row in curve
        for name in ("best_reward", "median_reward")
    ]
    run.rows("training_metrics", rows)
    lasts = [{"temperature": temperature, **curve[-1]} for temperature, curve in sorted(curves.items())]
    run.table("reward over temperature", pl.DataFrame(lasts))
    run.metric("best_temperature", max(lasts, key=lambda row: row["best_reward"])["temperature"])
    series = {f"T = {temperature:g}": [(row["k"], row["best_reward"]) for row in curve] for temperature, curve in sorted(curves.items())}
    run.plot("reward_over_k_and_temperature", lines(series, "samples a prompt (K)", f"best reward, {len(some)} prompts"))


def best_of(frame: pl.DataFrame, most: int) -> list[dict[str, float]]:
    """Mean over prompts of the best and of the median reward among the first K samples, K = 1, 2, 4, …, `most` (sigmoid scale)."""
    steps = sorted({min(2**power, most) for power in range(most.bit_length() + 1)})
    probability = (1 / (1 + (-pl.col("reward")).exp())).alias("probability")
    rows = []
    for k in steps:
        each = frame.filter(pl.col("sample") < k).group_by("prompt_id").agg(best=probability.max(), middle=probability.median())
        rows.append({"k": k, "best_reward": float(each["best"].mean()), "median_reward": float(each["middle"].mean())})  # type: ignore[arg-type]
    return rows
