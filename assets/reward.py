"""The two reward models (paper, section 3.2): helpfulness and safety, each from the chat model of the round before."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import dagster as dg
import numpy as np
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.plots import histograms, losses
from resources.annotator import RATINGS
from resources.errors import TampuError
from resources.profiles import active
from resources.recipe import Check, ExecutionConfig, Run, artifact

if TYPE_CHECKING:
    from model.reward_training import Comparison


class RewardConfig(dg.Config):
    """The paper's settings (section 3.2.2): one epoch, cosine to a tenth, warm-up 3 % and at least 5 steps; sizes by profile."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("log_every", *ExecutionConfig.NOT_IDENTITY)
    margin: Literal["none", "small", "large"] = Field("small", description="margin by rating; the paper tried all three")
    batch: int = Field(active().reward_batch, ge=1, description="pairs a step")
    learning_rate: float = Field(active().reward_learning_rate, gt=0, description="peak of the cosine schedule")
    epochs: int = Field(active().reward_epochs, ge=1, description="passes over the pairs; the paper found more than one to overfit")
    chat_model_key: str = Field("", description="key of an older rlhf/chat_model or sft/model to start from; default: the round before's")
    most_of_the_rest: float = Field(1.0, ge=0, description="comparisons beside its own kind at most, as a share of these")
    auxiliary_weight: float = Field(0.0, ge=0, description="weight of the auxiliary safety loss; its form is our choice")
    benign_share: float = Field(0.0, ge=0, description="harmless answers in the auxiliary loss, as a share of the safety comparisons")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="bf16 products with fp32 weights, norms and softmaxes, or fp32")
    seed: int = Field(active().seed, ge=0, description="order and choice of pairs")
    log_every: int = Field(10, ge=1, description="steps between lines of the training log")
    execution: ExecutionConfig = Field(ExecutionConfig(), description="how the training is run")


class SafetyRewardConfig(RewardConfig):
    """The safety model: nine parts safety to one part helpfulness, and the auxiliary loss that calibrates the 0.15 gate."""

    margin: Literal["none", "small", "large"] = Field("none", description="the paper reports the margin for the helpfulness model")
    most_of_the_rest: float = Field(1 / 9, ge=0, description="helpfulness comparisons, as a share of the safety ones (90/10)")
    auxiliary_weight: float = Field(1.0, ge=0, description="weight of the auxiliary safety loss; its form is our choice")
    benign_share: float = Field(1.0, ge=0, description="harmless answers in the auxiliary loss, as a share of the safety comparisons")


def mixture(comparisons: pl.DataFrame, *, safety: bool, most_of_the_rest: float, seed: int) -> pl.DataFrame:
    """All comparisons of a model's own kind and at most that share of the rest, drawn uniformly, in a seeded order (section 3.2.2).

    Helpfulness: our annotators' helpfulness comparisons; the rest are all others, safety and public sets alike. Safety: all safety
    comparisons, public ones too; the rest are all helpfulness comparisons. As long as our annotators gave none of the kind, the public
    sets' stand in for them: they bootstrapped the paper's first reward models, too.
    """
    of_the_axis = pl.col("is_safety") == safety
    collected = of_the_axis & pl.col("source").is_null()
    belongs = of_the_axis if safety or comparisons.filter(collected).is_empty() else collected
    own, rest = comparisons.filter(belongs), comparisons.filter(~belongs)
    drawn = rest.sample(n=min(rest.height, round(most_of_the_rest * own.height)), seed=seed, shuffle=True)
    return pl.concat([own, drawn]).sample(fraction=1.0, seed=seed, shuffle=True)


def _train(run: Run, config: RewardConfig, *, safety: bool) -> None:
    from model.reward import RewardModel, score
    from model.reward_training import Comparison, ComparisonLoader, Labelled, RewardTraining, reward_optimization
    from model.tokenizer_files import load_chat
    from model.training import fit
    from model.weights import load_llama, save_reward

    chat = load_chat(run.parent("tokenizer/sentencepiece").path)
    comparisons = run.parent("preferences/dataset").frame("comparisons.parquet")
    chat_model = load_llama(run.previous("rlhf/chat_model").path)
    longest = chat_model.config.max_context

    def tokens(prompt: str, answer: str) -> list[int]:
        messages = [*json.loads(prompt), {"role": "assistant", "content": answer}]
        return chat.example(messages).tokens

    def pairs_of(frame: pl.DataFrame) -> list[Comparison]:
        rows = frame.select("prompt", "chosen", "rejected", "rating", "chosen_safe", "rejected_safe").iter_rows()
        made = (
            Comparison(tokens(prompt, chosen), tokens(prompt, rejected), rating, chosen_unsafe=_unsafe(first), rejected_unsafe=_unsafe(second))
            for prompt, chosen, rejected, rating, first, second in rows
        )
        return [pair for pair in made if max(len(pair.chosen), len(pair.rejected)) <= longest]

    train = mixture(comparisons.filter(pl.col("part") == "train"), safety=safety, most_of_the_rest=config.most_of_the_rest, seed=config.seed)
    pairs = pairs_of(train)
    run.metric("longer_than_context", train.height - len(pairs))
    run.table("mixture", train.group_by("is_safety", pl.col("source").fill_null("inbox")).len().sort("is_safety", "source"))
    if not pairs:
        flag = "true" if safety else "false"
        raise TampuError(
            f"{run.label}: no training comparison with is_safety = {flag} that fits the context: collect some, or ingest a public set"
        )
    benign = comparisons.filter((pl.col("part") == "train") & ~pl.col("is_safety") & pl.col("chosen_safe"))
    wanted = min(benign.height, round(config.benign_share * int(train["is_safety"].sum())))
    answers = benign.sample(n=wanted, seed=config.seed, shuffle=True).select("prompt", "rejected").iter_rows()
    harmless = (tokens(prompt, answer) for prompt, answer in answers)
    points = [Labelled(dialogue, unsafe=False) for dialogue in harmless if len(dialogue) <= longest]
    reward = RewardModel.from_llama(chat_model)
    loader = ComparisonLoader(pairs, config.batch, seed=config.seed, margin=config.margin, labelled=points)
    steps = loader.steps(config.epochs)
    training = RewardTraining(reward, reward_optimization(config.learning_rate, steps), safety_weight=config.auxiliary_weight)
    result = fit(
        training,
        loader,
        steps=steps,
        seed=config.seed,
        precision=config.precision,
        log_every=config.log_every,
        progress=run.label,
        resume=run.resume(config.execution),
        execution=run.execution(config.execution),
    )
    save_reward(reward, run.directory)

    held_out = comparisons.filter((pl.col("part") == "held_out") & (pl.col("is_safety") == safety))
    tested = pairs_of(held_out)
    run.metric("held_out_longer_than_context", held_out.height - len(tested))
    scores = score(reward, [pair.chosen for pair in tested] + [pair.rejected for pair in tested])
    chosen, rejected = scores[: len(tested)], scores[len(tested) :]
    if not tested:
        raise TampuError(f"{run.label}: no held-out comparison of its own axis to test on; collect more, or raise held_out_share")
    accuracy = float(np.mean(chosen > rejected))
    longer = float(np.mean([len(pair.chosen) > len(pair.rejected) for pair in tested]))
    run.metric("pairs", len(pairs))
    run.metric("comparisons_used", comparisons.height)
    run.metric("held_out_pairs", len(tested))
    run.metric("held_out_accuracy", accuracy)
    run.metric("longer_wins_accuracy", longer)
    run.rows("training_metrics", result.rows)
    run.check("better_than_chance", passed=accuracy > 0.5, description=f"{accuracy:.3f} on {len(tested)} held-out comparisons")
    run.check("not_length_alone", passed=accuracy > max(longer, 1 - longer), description=f"{accuracy:.3f}; by length {longer:.3f}")
    run.plot("loss", losses(result.rows))
    run.plot("scores", histograms({"chosen": _sigmoid(chosen), "rejected": _sigmoid(rejected)}, "score of held-out answers (sigmoid)"))
    run.table("accuracy by rating", accuracy_by_rating(tested, chosen, rejected))


def accuracy_by_rating(tested: Sequence["Comparison"], chosen: np.ndarray, rejected: np.ndarray) -> pl.DataFrame:
    """Held-out accuracy and mean margin of the scores a rating, the strongest first, for the asset's page."""
    ratings = np.array([pair.rating for pair in tested])
    rows = []
    for rating in RATINGS:
        margin = (chosen - rejected)[ratings == rating]
        if len(margin):
            rows.append({"rating": rating, "n": len(margin), "accuracy": float((margin > 0).mean()), "margin": float(margin.mean())})
    return pl.DataFrame(rows)


def _sigmoid(scores: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-scores.astype(np.float64)))


def _unsafe(safe: bool | None) -> bool | None:
    return None if safe is None else not safe


_CHECKS = [
    Check("better_than_chance", blocking=False, description="accuracy on held-out comparisons of its own axis is above one half"),
    Check("not_length_alone", blocking=False, description="it does better than the rule that the longer (or the shorter) answer wins"),
]


@artifact(
    "reward/helpfulness",
    parents=["preferences/dataset", "tokenizer/sentencepiece"],
    previous=("rlhf/chat_model",),
    pins={"rlhf/chat_model": "chat_model_key"},
    partitions="round",
    kinds={"pytorch"},
    owners=["team:alignment"],
    pool="trainer",
    checks=_CHECKS,
)
def helpfulness(run: Run, config: RewardConfig) -> None:
    """The helpfulness reward model: ranking loss with margins by rating on helpfulness comparisons and as many of the rest."""
    _train(run, config, safety=False)


@artifact(
    "reward/safety",
    parents=["preferences/dataset", "tokenizer/sentencepiece"],
    previous=("rlhf/chat_model",),
    pins={"rlhf/chat_model": "chat_model_key"},
    partitions="round",
    kinds={"pytorch"},
    owners=["team:alignment"],
    pool="trainer",
    checks=_CHECKS,
)
def safety(run: Run, config: SafetyRewardConfig) -> None:
    """The safety reward model: nine parts safety comparisons to one part helpfulness, with the auxiliary safety loss."""
    _train(run, config, safety=True)
