"""Safety data scaling (paper, section 4.2.3, Figs. 15 and 33): the same helpful demonstrations with a growing share of the safety data."""

import json
from collections.abc import Callable

import dagster as dg
import numpy as np
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.evaluation.statistics import share, wilson
from assets.fine_tuning import MASK_CHECKS, fine_tune
from assets.plots import lines
from assets.rlhf.scoring import RewardModels
from assets.sft import FineTuningConfig
from resources.annotator import falsely_refuses, violates
from resources.profiles import active
from resources.prompts.prompt import Prompt
from resources.recipe import Check, Run, artifact
from resources.splits import fraction_of

PERCENTS = (0, 1, 10, 25, 50)  # of the safety data; all of it is `sft/model`


def scaled(examples: pl.DataFrame, percent: int) -> pl.DataFrame:
    """`examples` with so much of the refusals of adversarial prompts, chosen by hash, so that a larger share holds every smaller one."""
    kept = [
        family != "unsafe" or fraction_of(prompt_id, "safety-scaling") < percent / 100
        for family, prompt_id in examples.select("family", "prompt_id").iter_rows()
    ]
    return examples.filter(pl.Series(kept, dtype=pl.Boolean))


def _body(percent: int) -> Callable[[Run, FineTuningConfig], None]:
    def sft_with_less_safety(run: Run, config: FineTuningConfig) -> None:
        repeats = pl.when(pl.col("family") == "chat").then(1).otherwise(config.repeats)
        examples = scaled(run.parent("sft/data").frame("examples.parquet"), percent)
        run.metric("safety_demonstrations", examples.filter(pl.col("family") == "unsafe", pl.col("split") == "train").height)
        fine_tune(run, config, examples.with_columns(learn=pl.lit("answers"), repeats=repeats), held_out_check="fell")

    sft_with_less_safety.__doc__ = f"`sft/model` with {percent} % of the safety data, everything else the same."
    return sft_with_less_safety


def name_of(percent: int) -> str:
    """The asset of a share."""
    return f"ablations/sft_with_{percent}_percent_safety"


MODELS = [
    artifact(
        name_of(percent),
        parents=["sft/data", "pretraining/base_model", "tokenizer/sentencepiece"],
        kinds={"pytorch"},
        owners=["team:alignment"],
        pool="trainer",
        checks=[*MASK_CHECKS, Check("fell", blocking=False, description="the loss on held-out answers is below the base model's")],
    )(_body(percent))
    for percent in PERCENTS
]


class ScalingConfig(dg.Config):
    """How the models are sampled."""

    temperature: float = Field(0.7, ge=0, description="of the sampled answers")
    top_p: float = Field(0.9, gt=0, le=1, description="of the sampled answers")
    max_new_tokens: int = Field(active().answer_tokens, ge=1, description="tokens an answer at most")
    seed: int = Field(active().seed + 1, ge=0, description="noise of the sampling")


@artifact(
    "ablations/safety_scaling",
    parents=[
        *(name_of(percent) for percent in PERCENTS),
        "sft/model",
        "rlhf/prompts",
        "reward/helpfulness",
        "reward/safety",
        "tokenizer/sentencepiece",
    ],
    partitions="round",
    kinds={"polars"},
    owners=["team:evaluation"],
    pool="trainer",
    checks=[Check("more_data_is_safer", blocking=False, description="violations with all of the safety data are below those with none")],
)
def safety_scaling(run: Run, config: ScalingConfig) -> None:
    """Mean scores of both reward models, violations and false refusals by share of the safety data, on test prompts."""
    from resources.sampler import LocalSampler, Sampling

    pool = run.parent("rlhf/prompts").frame("prompts.parquet").filter(pl.col("split") == "test")
    prompts = [Prompt.from_row(row) for row in pool.iter_rows(named=True)]
    sampling = Sampling(temperature=config.temperature, top_p=config.top_p, max_new_tokens=config.max_new_tokens)
    judges = RewardModels(run)
    unsafe = np.array([prompt.family == "unsafe" for prompt in prompts])
    rows: list[dict[str, object]] = []
    curves: dict[str, list[tuple[float, float]]] = {}
    for percent in (*PERCENTS, 100):
        name = "sft/model" if percent == 100 else name_of(percent)
        sampler = LocalSampler.load(run.parent(name).path, run.parent("tokenizer/sentencepiece").path)
        texts = [several[0].text for several in sampler.sample([p.messages for p in prompts], sampling, seed=config.seed)]
        helpfulness, safety = (1 / (1 + np.exp(-one.astype(np.float64))) for one in judges.logits([p.messages for p in prompts], texts))
        measured = {
            ("unsafe", "safety_reward"): safety[unsafe].tolist(),
            ("harmless", "helpfulness_reward"): helpfulness[~unsafe].tolist(),
            ("unsafe", "violation"): [violates(p, text) for p, text in zip(prompts, texts, strict=True) if p.suite == "unsafe"],
            ("borderline", "false_refusal"): [
                falsely_refuses(p, text) for p, text in zip(prompts, texts, strict=True) if p.family == "borderline"
            ],
            ("task", "false_refusal"): [falsely_refuses(p, text) for p, text in zip(prompts, texts, strict=True) if p.family == "task"],
        }
        for (suite, metric), values in measured.items():
            value, n = share(values)
            low, high = (None, None) if metric.endswith("reward") else wilson(value * n, n)
            common = {"model": name, "suite": suite, "category": f"{percent} % safety data", "metric": metric}
            rows.append({**common, "value": value, "n": n, "ci_low": low, "ci_high": high})
            curves.setdefault(f"{metric}, {suite}", []).append((float(percent), value))
    run.rows("safety", rows)
    table = pl.DataFrame(rows, infer_schema_length=None)
    run.table("by share of the safety data", table.select("category", "suite", "metric", "value", "n"), rows=60)
    run.plot("safety_data_scaling", lines(curves, "percent of the safety data", "share, or mean reward"))
    none, everything = (curves["violation, unsafe"][place][1] for place in (0, -1))
    run.check("more_data_is_safer", passed=everything < none, description=f"{none:.3f} with none, {everything:.3f} with all")
    run.write_json("curves.json", json.loads(json.dumps(curves)))
