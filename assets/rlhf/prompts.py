"""The prompts of reinforcement learning and of every test: instructions, adversarial, borderline and small talk, by split."""

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from resources.profiles import active
from resources.prompts.pool import Conversation, PoolSizes, chat_prompts, template_prompts
from resources.recipe import Check, Run, artifact

_P = active()


class PromptsConfig(dg.Config):
    """How many prompts a split gets; shares and seed as in `sft/data`, so that both divide the same pool."""

    train: dict[str, int] = Field(
        {"tasks": _P.task_prompts, "unsafe": _P.unsafe_prompts, "borderline": _P.borderline_prompts, "chats": _P.chat_prompts},
        description="training prompts by family",
    )
    validation: dict[str, int] = Field(
        {
            "tasks": _P.validation_task_prompts,
            "unsafe": _P.validation_unsafe_prompts,
            "borderline": _P.validation_borderline_prompts,
            "chats": _P.validation_chat_prompts,
        },
        description="prompts for early stopping and selection",
    )
    test: dict[str, int] = Field(
        {
            "tasks": _P.test_task_prompts,
            "unsafe": _P.test_unsafe_prompts,
            "borderline": _P.test_borderline_prompts,
            "chats": _P.test_chat_prompts,
            "unseen_actions": _P.test_unseen_action_prompts,
        },
        description="prompts that nothing is trained, tuned or selected on",
    )
    validation_share: float = Field(_P.validation_share, ge=0, lt=1, description="share of topics kept for validation")
    test_share: float = Field(_P.test_share, ge=0, lt=1, description="share of topics kept for tests")
    seed: int = Field(active().seed, ge=0, description="which prompts are made")


@artifact(
    "rlhf/prompts",
    parents=["corpus/filtered", "sft/data"],
    kinds={"polars"},
    owners=["team:alignment"],
    checks=[
        Check("no_topic_crosses", blocking=True, description="no topic is in two splits"),
        Check("not_in_sft", blocking=True, description="no prompt has a demonstration in the SFT data"),
    ],
)
def prompts(run: Run, config: PromptsConfig) -> None:
    """Prompts with safety flag, risk category and split. What has a demonstration in `sft/data` is left out of training prompts."""
    from model.dialogue import TAGS

    frame = run.parent("corpus/filtered").frame("conversations.parquet")
    demonstrated = set(run.parent("sft/data").frame("examples.parquet")["prompt_id"])
    rows = []
    dropped = 0
    for split, counts in (("train", config.train), ("validation", config.validation), ("test", config.test)):
        sizes = PoolSizes(**counts)
        part = frame.filter(pl.col("split") == split)
        talks = [
            Conversation(identity, tuple(turns), split)  # type: ignore[arg-type]
            for identity, turns in part.select("document_id", "turns").iter_rows()
            if not any(tag in turn for turn in turns for tag in TAGS)
        ]
        made = template_prompts(split, sizes, validation=config.validation_share, test=config.test_share, seed=config.seed + 1)  # type: ignore[arg-type]
        made += chat_prompts(talks, sizes.chats)
        kept = [prompt for prompt in made if prompt.prompt_id not in demonstrated]
        dropped += len(made) - len(kept)
        rows += [prompt.to_row() for prompt in kept]
    table = pl.DataFrame(rows, infer_schema_length=None).unique("prompt_id", keep="first", maintain_order=True)
    run.write_frame("prompts.parquet", table)
    counts_by = table.group_by("split", "family", "category").len().sort("split", "family", "category")
    run.table("prompts", counts_by)
    run.table(
        "examples", table.filter(pl.col("family") != "unsafe").group_by("family", maintain_order=True).head(3).select("family", "messages")
    )
    for split in ("train", "validation", "test"):
        run.metric(f"{split}_prompts", table.filter(pl.col("split") == split).height)
    run.metric("dropped_for_sft", dropped)
    topics = table.filter(pl.col("family") != "task").group_by("topic").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    run.check("no_topic_crosses", passed=topics.is_empty(), description=f"{topics.height} topics in two splits", topics=topics.height)
    left = table.filter(pl.col("prompt_id").is_in(list(demonstrated - {""})))
    run.check("not_in_sft", passed=left.is_empty(), description=f"{left.height} prompts have a demonstration; {dropped} were left out")
