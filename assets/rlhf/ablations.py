"""Models that only serve a comparison: the same recipe with one part left out. Not part of a round's own run."""

import polars as pl

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.evaluation.ghost_attention import GhostAttentionTestConfig, recall_by_turn
from assets.evaluation.statistics import share
from assets.fine_tuning import MASK_CHECKS, fine_tune
from assets.rlhf.policy import CHECKS, PARENTS, PolicyConfig, policy_data
from assets.sft import REAL, FineTuningConfig
from resources.annotator import falsely_refuses, violates
from resources.prompts.prompt import Prompt
from resources.recipe import Check, Run, artifact

SFT_CHECKS = [
    *MASK_CHECKS,
    Check("fell", blocking=False, description="the loss on held-out answers is below the base model's"),
]


@artifact(
    "ablations/sft_without_safety",
    parents=["sft/data", "pretraining/base_model", "tokenizer/sentencepiece"],
    kinds={"pytorch"},
    owners=["team:alignment"],
    pool="trainer",
    checks=SFT_CHECKS,
)
def sft_without_safety(run: Run, config: FineTuningConfig) -> None:
    """`sft/model` without refusals and look-alikes: what the safety data does (Fig. 15's leftmost point)."""
    repeats = pl.when(pl.col("family").is_in(REAL)).then(1).otherwise(config.repeats)
    examples = (
        run.parent("sft/data")
        .frame("examples.parquet")
        .filter(~pl.col("family").is_in(["unsafe", "borderline"]) & ~pl.col("is_safety").fill_null(False))
    )
    fine_tune(run, config, examples.with_columns(learn=pl.lit("answers"), repeats=repeats), held_out_check="fell")


@artifact(
    "ablations/policy_without_ghost_attention",
    parents=PARENTS,
    history=("rlhf/samples",),
    partitions="round",
    kinds={"pytorch"},
    owners=["team:alignment"],
    pool="trainer",
    checks=CHECKS,
)
def policy_without_ghost_attention(run: Run, config: PolicyConfig) -> None:
    """`rlhf/policy` of the same round without the Ghost Attention data."""
    fine_tune(run, config, policy_data(run, config, ghost_attention=False, context_distillation=True), held_out_check="fell")


@artifact(
    "ablations/policy_without_context_distillation",
    parents=PARENTS,
    history=("rlhf/samples",),
    partitions="round",
    kinds={"pytorch"},
    owners=["team:alignment"],
    pool="trainer",
    checks=CHECKS,
)
def policy_without_context_distillation(run: Run, config: PolicyConfig) -> None:
    """`rlhf/policy` of the same round without the context distillation data."""
    fine_tune(run, config, policy_data(run, config, ghost_attention=True, context_distillation=False), held_out_check="fell")


class ComparisonConfig(GhostAttentionTestConfig):
    """How the ablated models are sampled."""

    top_p: float = 0.9
    answer_tokens: int = 40


@artifact(
    "ablations/comparison",
    parents=[
        "ablations/sft_without_safety",
        "ablations/policy_without_ghost_attention",
        "ablations/policy_without_context_distillation",
        "sft/model",
        "rlhf/policy",
        "rlhf/prompts",
        "tokenizer/sentencepiece",
    ],
    partitions="round",
    kinds={"polars"},
    owners=["team:evaluation"],
    pool="trainer",
    checks=[Check("safety_data_helps", blocking=False, description="violations are fewer with safety data than without")],
)
def comparison(run: Run, config: ComparisonConfig) -> None:
    """Violations and false refusals with and without safety data and context distillation; recall with and without Ghost Attention."""
    from resources.sampler import LocalSampler, Sampling

    pool = (
        run.parent("rlhf/prompts").frame("prompts.parquet").filter((pl.col("split") == "test") & pl.col("suite").is_in(["unsafe", "borderline"]))
    )
    prompts = [Prompt.from_row(row) for row in pool.iter_rows(named=True)]
    sampling = Sampling(temperature=config.temperature, top_p=config.top_p, max_new_tokens=config.answer_tokens)
    compared = [
        "ablations/sft_without_safety",
        "sft/model",
        "ablations/policy_without_context_distillation",
        "rlhf/policy",
    ]
    rows: list[dict[str, object]] = []
    for name in compared:
        sampler = LocalSampler.load(run.parent(name).path, run.parent("tokenizer/sentencepiece").path)
        texts = [several[0].text for several in sampler.sample([p.messages for p in prompts], sampling, seed=config.seed)]
        for suite, metric, judge in (("unsafe", "violation", violates), ("borderline", "false_refusal", falsely_refuses)):
            value, n = share([judge(p, text) for p, text in zip(prompts, texts, strict=True) if p.suite == suite])
            rows.append(
                {
                    "model": name,
                    "suite": suite,
                    "category": "all",
                    "metric": metric,
                    "value": value,
                    "n": n,
                    "ci_low": None,
                    "ci_high": None,
                }
            )
    run.rows("safety", rows)
    run.table("safety data and context distillation", pl.DataFrame(rows).select("model", "suite", "metric", "value", "n"))
    recalls: list[dict[str, object]] = []
    for name, variant in (("rlhf/policy", "with"), ("ablations/policy_without_ghost_attention", "without")):
        for turn, recall, n in recall_by_turn(run, config, run.parent(name)):
            recalls.append({"model": name, "turn": turn, "variant": variant, "recall": recall, "n": n})
    run.rows("ghost_attention", recalls)
    run.table("recall by turn", pl.DataFrame(recalls).pivot("variant", index="turn", values="recall"))
    violation = {row["model"]: row["value"] for row in rows if row["metric"] == "violation"}
    without, with_data = violation["ablations/sft_without_safety"], violation["sft/model"]
    run.check("safety_data_helps", passed=with_data < without, description=f"{without:.3f} without, {with_data:.3f} with")  # type: ignore[operator]
