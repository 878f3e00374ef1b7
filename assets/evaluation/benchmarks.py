"""Built-in benchmarks: bits per byte of test text, next-turn choice, and success at held-out instructions."""

import math
from collections import Counter
from typing import Any, ClassVar

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.evaluation.answers import MODEL_PARENTS, models_of, weights_of
from assets.evaluation.harness_tasks import Found, TaskSource, group_means, run_tasks, task_files
from assets.evaluation.multiple_choice import answer_items, next_turn_items
from assets.evaluation.statistics import share
from assets.plots import bars
from resources.profiles import active
from resources.recipe import Check, Run, artifact


class BenchmarksConfig(dg.Config):
    """Sizes of the built-in tasks, and which others are asked."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("tasks.path", "tasks.shots_path")

    items: int = Field(active().multiple_choice_items, ge=2, description="next-turn items at most")
    context: int = Field(active().context, ge=16, description="tokens a block for bits per byte")
    seed: int = Field(active().seed, ge=0, description="wrong choices and their order")
    tasks: list[TaskSource] = Field([], description="academic benchmarks beyond the built-in ones, through lm-evaluation-harness")
    task_models: list[str] = Field(["pretraining/base_model", "rlhf/chat_model"], description="models that these are asked of")
    run_code: bool = Field(False, description="run programs that the model wrote, in a sandbox (HumanEval, MBPP)")


@artifact(
    "evaluation/benchmarks",
    parents=["evaluation/answers", "pretraining/base_model", "pretraining/tokens", "corpus/filtered", *MODEL_PARENTS],
    previous=("rlhf/chat_model",),
    partitions="round",
    files=lambda request: task_files(request.config.tasks),
    kinds={"pytorch", "polars"},
    owners=["team:evaluation"],
    checks=[
        Check("instructions_above_sft", blocking=False, description="the chat model follows more held-out instructions than SFT"),
        Check("every_question_counts", blocking=False, description="no row of a benchmark file was left out"),
    ],
)
def benchmarks(run: Run, config: BenchmarksConfig) -> None:
    """Every model of the round and the base model on text, on choosing the next turn among four, and on held-out instructions; with
    `tasks`, base and chat model on academic benchmarks too, from local files or by name, with the paper's groups and shots."""
    from model.causal_lm import bits_per_byte
    from model.token_shards import StreamBlocks, TokenShards
    from model.tokenizer_files import load_tokenizer
    from model.weights import load_llama

    data = run.parent("pretraining/tokens")
    tokenizer = load_tokenizer(run.parent("tokenizer/sentencepiece").path)
    test, size = StreamBlocks(TokenShards(data.path, "test"), config.context, bos_id=tokenizer.bos_id), int(data.metrics["test_bytes"])
    conversations = run.parent("corpus/filtered").frame("conversations.parquet").filter(pl.col("split") == "test")
    items = next_turn_items(conversations, config.items, seed=config.seed)
    rows: list[dict[str, Any]] = []
    asked = Found([], [], [])
    chosen: dict[str, tuple[float, int]] = {}
    for name, artifact_ in {"pretraining/base_model": run.parent("pretraining/base_model"), **models_of(run)}.items():
        network = load_llama(artifact_.path)
        if name in ("pretraining/base_model", "rlhf/chat_model"):
            rows.append(_row(name, "test text", "language modelling", "bits_per_byte", bits_per_byte(network, test, size), None, size))
        if config.tasks and name in config.task_models:
            more = run_tasks(network, tokenizer, name, config.tasks, run.files, run_code=config.run_code)
            asked = Found(asked.rows + more.rows, asked.samples + more.samples, more.rejected)
        weights = weights_of(artifact_)
        if weights not in chosen:
            chosen[weights] = share(answer_items(network, tokenizer, items))
        value, n = chosen[weights]
        rows.append(_row(name, "next turn of four", "multiple choice", "accuracy", value, _stderr(value, n), n))
    answers = run.parent("evaluation/answers").frame("answers.parquet").filter(pl.col("family") == "task")
    for name in answers["model"].unique(maintain_order=True):
        part = answers.filter(pl.col("model") == name)
        for task in ("all", *sorted(part["task"].unique())):
            value, n = share((part if task == "all" else part.filter(pl.col("task") == task))["succeeds"].to_list())
            rows.append(_row(name, f"instruction: {task}", "instruction following", "success", value, _stderr(value, n), n))
    rows += [*asked.rows, *group_means(asked.rows)]
    run.rows("benchmarks", rows)
    if asked.samples:
        run.write_frame("samples.parquet", pl.DataFrame(asked.samples))
    if asked.rejected:
        run.write_frame("rejected.parquet", pl.DataFrame(asked.rejected))
    reasons = dict(Counter(f"{row['task']}: {row['reason']}" for row in asked.rejected))
    run.check("every_question_counts", passed=not reasons, description="; ".join(f"{n} × {why}" for why, n in reasons.items()) or "all do")
    table = pl.DataFrame(rows, infer_schema_length=None)
    run.table("all", table.select("model", "task", "metric", "value", "stderr", "n"))
    success = {row["model"]: row["value"] for row in rows if row["task"] == "instruction: all"}
    run.metric("instruction_success", success["rlhf/chat_model"])
    run.check(
        "instructions_above_sft",
        passed=success["rlhf/chat_model"] > success["sft/model"],
        description=f"{success['rlhf/chat_model']:.3f} against {success['sft/model']:.3f}",
    )
    run.plot("instruction_success", bars(success, "share of held-out instructions followed"))


def _row(name: str, task: str, group: str, metric: str, value: float, stderr: float | None, n: int) -> dict[str, Any]:
    return {"model": name, "task": task, "task_group": group, "shots": 0, "metric": metric, "value": value, "stderr": stderr, "n": n}


def _stderr(value: float, n: int) -> float | None:
    """Standard error of a share."""
    return math.sqrt(value * (1 - value) / n) if n else None
