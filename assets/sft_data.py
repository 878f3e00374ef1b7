"""The demonstrations: few of instructions and safety, more real conversations, and one's own."""

import json
import random
from pathlib import Path

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.demonstrations import read_demonstrations
from assets.preferences.reading import MOST_CHARACTERS
from resources.inbox import demonstration_files
from resources.profiles import active
from resources.prompts.instructions import demonstration
from resources.prompts.pool import PoolSizes, template_prompts
from resources.prompts.prompt import Prompt
from resources.prompts.safety import borderline_demonstration, safe_demonstration
from resources.recipe import Check, Request, Run, artifact
from resources.splits import split_of

DEMONSTRATIONS = {"task": demonstration, "unsafe": safe_demonstration, "borderline": borderline_demonstration}


class SftDataConfig(dg.Config):
    """Counts are small on purpose: the paper found some ten thousand good demonstrations enough, and RLHF needs something left to do."""

    tasks: int = Field(active().sft_tasks, ge=0, description="demonstrations of instructions")
    unsafe: int = Field(active().sft_unsafe, ge=0, description="refusals of adversarial prompts; 0 leaves safety data out")
    borderline: int = Field(active().sft_borderline, ge=0, description="answers to benign look-alikes")
    chats: int = Field(active().sft_chats, ge=0, description="dialogues cut from human conversations")
    chat_turns: int = Field(4, ge=2, description="messages a dialogue at most, user and assistant in turn")
    most_words: int = Field(30, ge=1, description="words a message at most; longer ones end the dialogue")
    validation_share: float = Field(active().validation_share, ge=0, lt=1, description="share of topics kept for validation")
    test_share: float = Field(active().test_share, ge=0, lt=1, description="share of topics kept for tests")
    own: bool = Field(True, description="whether to add the demonstrations that `tampu ingest` placed")
    most_characters: int = Field(MOST_CHARACTERS, ge=1, description="of a dialogue of one's own")
    seed: int = Field(active().seed, ge=0, description="which prompts, which of the right answers")


def dialogue_rows(conversations: list[tuple[str, list[str]]], count: int, *, turns: int, most_words: int) -> list[dict[str, object]]:
    """At most `count` dialogues of even length from the starts of conversations, each used once.

    A dialogue stops before a message longer than `most_words`; what is left must hold at least one exchange.
    """
    rows: list[dict[str, object]] = []
    for identity, spoken in conversations:
        if len(rows) == count:
            break
        kept: list[str] = []
        for turn in spoken[:turns]:
            if not 1 <= len(turn.split()) <= most_words:
                break
            kept.append(turn)
        kept = kept[: len(kept) // 2 * 2]
        if kept:
            messages = [{"role": "assistant" if index % 2 else "user", "content": turn} for index, turn in enumerate(kept)]
            rows.append({"family": "chat", "messages": json.dumps(messages, ensure_ascii=False), "topic": identity})
    return rows


def demonstration_row(prompt: Prompt, answer: str) -> dict[str, object]:
    """A training row: the prompt's dialogue with its answer."""
    messages = [*prompt.messages, {"role": "assistant", "content": answer}]
    return {"family": prompt.family, "messages": json.dumps(messages, ensure_ascii=False), "topic": prompt.topic}


def _own_files(request: Request) -> dict[str, Path]:
    return {f"{name}.jsonl": path for name, path in demonstration_files(request.home).items()} if request.config.own else {}


def own_demonstrations(run: Run, config: SftDataConfig) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows of the files in the inbox's folder `demonstrations`, divided by their prompt's hash, and the quarantine by file and line."""
    accepted, quarantined = [], []
    read = 0
    for name, path in sorted(run.files.items()):
        found = read_demonstrations(path.read_bytes(), most_characters=config.most_characters)
        read += found.read
        accepted.append(found.accepted)
        quarantined.append(found.quarantined.select(pl.lit(name).alias("file"), pl.all()))
    rows = pl.concat(accepted).unique("messages", keep="first", maintain_order=True)
    refused = pl.concat(quarantined)
    kept = sum(frame.height for frame in accepted)
    for metric, value in (("own_read", read), ("own_accepted", kept), ("own_quarantined", refused.height), ("own_used", rows.height)):
        run.metric(metric, value)
    splits = ["train" if split_of(p, validation=config.validation_share, test=0.0) == "train" else "validation" for p in rows["prompt_id"]]
    framed = rows.select("messages", "prompt_id", "is_safety", topic="prompt_id", family=pl.lit("own"), split=pl.Series(splits, dtype=pl.String))
    return framed, refused


@artifact(
    "sft/data",
    parents=["corpus/filtered"],
    files=_own_files,
    kinds={"polars"},
    owners=["team:alignment"],
    checks=[
        Check("splits_are_disjoint", blocking=True, description="no topic or conversation is in two splits"),
        Check("not_empty", blocking=True, description="there are training rows"),
    ],
)
def data(run: Run, config: SftDataConfig) -> None:
    """Demonstrations: instructions with a right answer, refusals that explain and redirect, look-alikes answered, real dialogues.

    What `tampu ingest` placed as demonstrations comes beside them, divided by the prompt's hash; bad rows are in the quarantine.
    """
    from model.dialogue import TAGS

    conversations = run.parent("corpus/filtered").frame("conversations.parquet").sort("document_id")
    rows: list[dict[str, object]] = []
    for split, divide in (("train", 1), ("validation", 8)):
        shares = {"validation": config.validation_share, "test": config.test_share, "seed": config.seed}
        sizes = PoolSizes(tasks=config.tasks // divide, unsafe=config.unsafe // divide, borderline=config.borderline // divide, chats=0)
        made = [
            demonstration_row(prompt, DEMONSTRATIONS[prompt.family](prompt, config.seed)) | {"prompt_id": prompt.prompt_id}
            for prompt in template_prompts(split, sizes, **shares)  # type: ignore[arg-type]
        ]
        part = conversations.filter(pl.col("split") == split)
        spoken = [
            (identity, turns)
            for identity, turns in zip(part["document_id"], part["turns"].to_list(), strict=True)
            if not any(tag in turn for turn in turns for tag in TAGS)
        ]
        random.Random(config.seed).shuffle(spoken)
        chats = dialogue_rows(spoken, config.chats // divide, turns=config.chat_turns, most_words=config.most_words)
        rows += [{"split": split, "prompt_id": "", **row} for row in made + chats]
    frame = pl.DataFrame(rows, schema=dict.fromkeys(("split", "family", "topic", "prompt_id", "messages"), pl.String))
    frame = frame.with_columns(is_safety=pl.col("family") == "unsafe")
    if run.files:
        own, refused = own_demonstrations(run, config)
        frame = pl.concat([frame, own.select(frame.columns)])
        run.write_frame("quarantine.parquet", refused)
        run.table("quarantine", refused.group_by("file", "reason").agg(rows=pl.len(), first_line=pl.col("line").min()).sort("file", "reason"))
    run.write_frame("examples.parquet", frame)
    counts = frame.group_by("split", "family").len().sort("split", "family")
    run.table("rows by split and family", counts)
    run.table("examples", frame.filter(~pl.col("is_safety").fill_null(False)).group_by("family", maintain_order=True).head(2))
    run.metric("examples", frame.height)
    shared = frame.group_by("family", "topic").agg(pl.col("split").n_unique()).filter(pl.col("split") > 1)
    run.check("splits_are_disjoint", passed=shared.is_empty(), description=f"{shared.height} topics in two splits", topics=shared.height)
    run.check("not_empty", passed="train" in frame["split"], description=f"{frame.height} rows")
