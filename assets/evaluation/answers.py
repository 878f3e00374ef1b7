"""Answers of every model of a round to the test prompts, judged without noise: what the other evaluations count."""

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from resources.annotator import declines, falsely_refuses, score, violates
from resources.profiles import active
from resources.prompts.instructions import succeeds
from resources.prompts.prompt import Prompt
from resources.recipe import Run, artifact
from resources.store import Artifact


class AnswersConfig(dg.Config):
    """One way of sampling for all models, so that they differ in nothing else."""

    temperature: float = Field(0.7, ge=0, description="of the sampled answers")
    top_p: float = Field(0.9, gt=0, le=1, description="of the sampled answers")
    max_new_tokens: int = Field(active().answer_tokens, ge=1, description="tokens an answer at most")
    seed: int = Field(active().seed + 1, ge=0, description="noise of the sampling")


def models_of(run: Run) -> dict[str, Artifact]:
    """The models that a round compares, by name: SFT, the round before's chat model, and this round's own."""
    models = {"sft/model": run.parent("sft/model")}
    before = run.previous("rlhf/chat_model")
    if before.asset != "sft/model":
        models[f"{before.asset}@{before.partition}"] = before
    models["rlhf/policy"] = run.parent("rlhf/policy")
    if run.parent("rlhf/ppo_policy").applied:
        models["rlhf/ppo_policy"] = run.parent("rlhf/ppo_policy")
    models["rlhf/chat_model"] = run.parent("rlhf/chat_model")
    return models


MODEL_PARENTS = ["sft/model", "rlhf/policy", "rlhf/ppo_policy", "rlhf/chat_model", "tokenizer/sentencepiece"]


@artifact(
    "evaluation/answers",
    parents=[*MODEL_PARENTS, "rlhf/prompts"],
    previous=("rlhf/chat_model",),
    partitions="round",
    kinds={"pytorch", "polars"},
    owners=["team:evaluation"],
    pool="trainer",
)
def answers(run: Run, config: AnswersConfig) -> None:
    """One answer of every model to every test prompt, with the annotator's noise-free score and the rule-based labels."""
    from resources.sampler import LocalSampler, Sampling

    pool = run.parent("rlhf/prompts").frame("prompts.parquet").filter(pl.col("split") == "test")
    prompts = [Prompt.from_row(row) for row in pool.iter_rows(named=True)]
    sampling = Sampling(temperature=config.temperature, top_p=config.top_p, max_new_tokens=config.max_new_tokens)
    by_weights: dict[str, list[tuple[str, bool]]] = {}
    rows = []
    for name, artifact_ in models_of(run).items():
        weights = next(entry["sha256"] for entry in artifact_.manifest["files"] if entry["name"] == "model.safetensors")
        if weights not in by_weights:  # the chat model is one of its candidates: the same weights give the same answers
            sampler = LocalSampler.load(artifact_.path, run.parent("tokenizer/sentencepiece").path)
            sampled = sampler.sample([p.messages for p in prompts], sampling, seed=config.seed)
            by_weights[weights] = [(several[0].text, several[0].finished) for several in sampled]
        for prompt, (text, finished) in zip(prompts, by_weights[weights], strict=True):
            rows.append(
                {
                    "model": name,
                    "model_version": artifact_.data_version,
                    "prompt_id": prompt.prompt_id,
                    "family": prompt.family,
                    "suite": prompt.suite or prompt.family,
                    "category": prompt.category,
                    "task": prompt.task,
                    "text": text,
                    "finished": finished,
                    "score": score(prompt, text),
                    "declines": declines(text),
                    "violates": violates(prompt, text),
                    "falsely_refuses": falsely_refuses(prompt, text),
                    "succeeds": succeeds(prompt.task, prompt.arguments, text) if prompt.family == "task" else None,
                }
            )
    frame = pl.DataFrame(rows, infer_schema_length=None)
    run.write_frame("answers.parquet", frame)
    run.metric("answers", frame.height)
    summary = frame.group_by("model", "family", maintain_order=True).agg(
        pl.len(), pl.col("score").mean(), pl.col("declines").mean(), pl.col("succeeds").cast(pl.Float64).mean(), pl.col("finished").mean()
    )
    run.table("by model and family", summary)
    shown = frame.filter(pl.col("model") == "rlhf/chat_model", pl.col("family") != "unsafe").group_by("family", maintain_order=True).head(3)
    run.table("examples", shown.join(pool.select("prompt_id", "messages"), on="prompt_id").select("family", "messages", "text", "score"))
