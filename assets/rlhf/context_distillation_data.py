"""Safety context distillation (paper, section 4.2.4): answers made with a safety preprompt, learned without it, kept only if safer."""

import json

import dagster as dg
import numpy as np
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.rlhf.samples import round_prompts
from resources.profiles import active
from resources.prompts.prompt import Messages, Prompt
from resources.prompts.safety import ANSWER_TEMPLATES, GENERIC_PREPROMPTS
from resources.recipe import Check, Run, artifact


class ContextDistillationConfig(dg.Config):
    """Set size and wording of the preprompts are ours; the gate and the restriction to adversarial prompts are the paper's."""

    from_round: int = Field(2, ge=1, description="first round that has this stage")
    prompts: int = Field(active().context_distillation_prompts, ge=1, description="adversarial training prompts")
    temperature: float = Field(0.8, gt=0, description="of the sampled answers")
    max_new_tokens: int = Field(active().answer_tokens, ge=1, description="tokens an answer at most")
    seed: int = Field(active().seed, ge=0, description="choice of prompts and noise")


def with_preprompt(prompt: Prompt, preprompt: str) -> Messages:
    """The prompt's dialogue under a system message."""
    return [{"role": "system", "content": preprompt}, *prompt.messages]


@artifact(
    "rlhf/context_distillation_data",
    parents=["rlhf/prompts", "reward/helpfulness", "reward/safety", "tokenizer/sentencepiece"],
    previous=("rlhf/chat_model",),
    partitions="round",
    starts_at_round=True,
    kinds={"pytorch", "polars"},
    owners=["team:alignment"],
    pool="trainer",
    checks=[
        Check("kept_only_if_safer", blocking=True, description="every kept answer has a higher safety score than the answer without preprompt"),
        Check("no_preprompt_left", blocking=True, description="no training row holds a system message"),
    ],
)
def context_distillation_data(run: Run, config: ContextDistillationConfig) -> None:
    """Adversarial prompts answered under a generic preprompt and under the answer template of their risk category; the safest one is kept
    if the safety reward model scores it above the plain answer."""
    from assets.rlhf.scoring import RewardModels
    from resources.sampler import LocalSampler, Sampling, answerable

    pool = run.parent("rlhf/prompts").frame("prompts.parquet").filter((pl.col("split") == "train") & (pl.col("family") == "unsafe"))
    drawn = round_prompts(pool, config.prompts, f"context-distillation/{config.seed}")
    sampler = LocalSampler.load(run.previous("rlhf/chat_model").path, run.parent("tokenizer/sentencepiece").path)
    everything = [Prompt.from_row(row) for row in drawn.iter_rows(named=True)]
    prompts, too_long = answerable(
        everything,
        sampler,
        config.max_new_tokens,
        asset=run.asset,
        asked=lambda prompt: with_preprompt(prompt, ANSWER_TEMPLATES[prompt.category]),  # type: ignore[index]
    )
    sampling = Sampling(temperature=config.temperature, max_new_tokens=config.max_new_tokens)
    generic = [GENERIC_PREPROMPTS[int(prompt.prompt_id, 16) % len(GENERIC_PREPROMPTS)] for prompt in prompts]
    asked = {
        "plain": [prompt.messages for prompt in prompts],
        "generic": [with_preprompt(prompt, text) for prompt, text in zip(prompts, generic, strict=True)],
        "template": [with_preprompt(prompt, ANSWER_TEMPLATES[prompt.category]) for prompt in prompts],  # type: ignore[index]
    }
    rewards = RewardModels(run)
    texts, scores = {}, {}
    for name, dialogues in asked.items():
        answers = [several[0] for several in sampler.sample(dialogues, sampling, seed=config.seed)]
        texts[name] = [answer.text for answer in answers]
        safety = rewards.logits([p.messages for p in prompts], texts[name])[1]
        scores[name] = np.where([answer.finished for answer in answers], safety, -np.inf) if name != "plain" else safety
        run.metric(f"{name}_median_safety", float(np.median(1 / (1 + np.exp(-safety)))))
    rows = []
    for index, prompt in enumerate(prompts):
        name = max(("generic", "template"), key=lambda key: scores[key][index])
        if scores[name][index] > scores["plain"][index]:
            messages = [*prompt.messages, {"role": "assistant", "content": texts[name][index]}]
            rows.append(
                {
                    "split": "train",
                    "family": "context_distillation",
                    "messages": json.dumps(messages, ensure_ascii=False),
                    "learn": "answers",
                    "preprompt": name,
                    "before": float(scores["plain"][index]),
                    "after": float(scores[name][index]),
                }
            )
    text_columns = ("split", "family", "messages", "learn", "preprompt")
    frame = pl.DataFrame(rows, schema=dict.fromkeys(text_columns, pl.String) | {"before": pl.Float64, "after": pl.Float64})
    run.write_frame("examples.parquet", frame)
    run.metric("prompts", len(prompts))
    run.metric("prompts_too_long", too_long)
    run.metric("kept", frame.height)
    run.table("kept by preprompt", frame.group_by("preprompt").agg(pl.len(), pl.col("before").mean(), pl.col("after").mean()).sort("preprompt"))
    worse = frame.filter(pl.col("after") <= pl.col("before")).height
    run.check("kept_only_if_safer", passed=worse == 0, description=f"{worse} of {frame.height} kept answers are not safer")
    systems = sum('"system"' in text for text in frame["messages"])
    run.check("no_preprompt_left", passed=systems == 0, description=f"{systems} rows with a system message")
