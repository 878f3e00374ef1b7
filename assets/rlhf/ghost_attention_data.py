"""Ghost Attention (paper, section 3.3): dialogues that obey an instruction which only their first message still holds."""

import json
import random

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from resources.profiles import active
from resources.prompts.ghost_attention import Instruction, instructions, obeys, user_messages
from resources.prompts.prompt import Messages
from resources.recipe import Check, Run, artifact


class GhostAttentionConfig(dg.Config):
    """The paper applies it after V3 and gives neither set size nor rate; sizes are ours."""

    from_round: int = Field(2, ge=1, description="first round that has this stage")
    dialogues: int = Field(active().ghost_attention_dialogues, ge=1, description="dialogues sampled")
    turns: int = Field(active().ghost_attention_turns, ge=2, description="user turns a dialogue")
    candidates: int = Field(4, ge=1, description="tries a turn; the first answer that obeys is kept, in the manner of rejection sampling")
    window: int = Field(active().ghost_attention_window, ge=1, description="user turns that a sampled answer sees; each holds the instruction")
    rows_a_dialogue: int = Field(active().ghost_attention_rows, ge=1, description="training rows a dialogue, cut at different turns")
    temperature: float = Field(0.8, gt=0, description="of the sampled answers")
    terse_share: float = Field(0.5, ge=0, le=1, description="share of instructions that are kept in a terse form for training")
    max_new_tokens: int = Field(24, ge=1, description="tokens an answer at most")
    validation_share: float = Field(active().validation_share, ge=0, lt=1, description="share of topics kept for validation")
    test_share: float = Field(active().test_share, ge=0, lt=1, description="share of topics kept for tests")
    seed: int = Field(active().seed, ge=0, description="instructions, messages and noise")


def augmented(history: Messages, instruction: str) -> Messages:
    """The dialogue with the instruction before every user message: what the answers are sampled from."""
    return [{"role": m["role"], "content": f"{instruction} {m['content']}" if m["role"] == "user" else m["content"]} for m in history]


def training_copy(dialogue: Messages, instruction: str) -> Messages:
    """The dialogue with the instruction in its first message only."""
    first = {"role": "user", "content": f"{instruction} {dialogue[0]['content']}"}
    return [first, *dialogue[1:]]


@artifact(
    "rlhf/ghost_attention_data",
    parents=["tokenizer/sentencepiece"],
    previous=("rlhf/chat_model",),
    partitions="round",
    starts_at_round=True,
    kinds={"pytorch", "polars"},
    owners=["team:alignment"],
    pool="trainer",
    checks=[
        Check("instruction_in_first_turn_only", blocking=True, description="no later message holds the instruction"),
        Check("enough_kept", blocking=False, description="at least half of the dialogues obey throughout and are kept"),
    ],
)
def ghost_attention_data(run: Run, config: GhostAttentionConfig) -> None:
    """Multi-turn dialogues sampled with the instruction before every message, kept with it in the first only, loss on the last answer."""
    from resources.sampler import LocalSampler, Sampling

    sampler = LocalSampler.load(run.previous("rlhf/chat_model").path, run.parent("tokenizer/sentencepiece").path)
    shares = {"validation": config.validation_share, "test": config.test_share}
    chosen = instructions("train", config.dialogues, seed=config.seed, **shares)
    spoken = user_messages("train", config.dialogues, config.turns, seed=config.seed, **shares)
    histories: list[Messages] = [[] for _ in chosen]
    alive = list(range(len(chosen)))
    sampling = Sampling(temperature=config.temperature, max_new_tokens=config.max_new_tokens)
    for turn in range(config.turns):
        for index in alive:
            histories[index].append({"role": "user", "content": spoken[index][turn]})
        pending, still = alive, []
        for attempt in range(config.candidates):
            asked = [augmented(histories[index][-2 * config.window + 1 :], chosen[index].text) for index in pending]
            answers = sampler.sample(asked, sampling, seed=config.seed + attempt)
            failed = []
            for index, (answer,) in zip(pending, answers, strict=True):
                if answer.finished and obeys(chosen[index], answer.text):
                    histories[index].append({"role": "assistant", "content": answer.text})
                    still.append(index)
                else:
                    failed.append(index)
            pending = failed
        for index in pending:
            histories[index].pop()
        alive = sorted(still)
        run.log(f"turn {turn + 1} of {config.turns}: {len(alive)} of {len(chosen)} dialogues still obey")
    rows = _rows(chosen, histories, config)
    frame = pl.DataFrame(rows, schema=dict.fromkeys(("split", "family", "messages", "learn", "instruction"), pl.String))
    run.write_frame("examples.parquet", frame)
    run.table("examples", frame.head(3))
    kept = sum(len(history) == 2 * config.turns for history in histories)
    run.metric("dialogues", len(chosen))
    run.metric("obeyed_throughout", kept)
    run.metric("examples", frame.height)
    later = [m["content"] for row in rows for m in json.loads(row["messages"])[1:] if m["role"] == "user" and row["instruction"] in m["content"]]
    run.check("instruction_in_first_turn_only", passed=not later, description=f"{len(later)} later messages hold the instruction")
    run.check("enough_kept", passed=2 * kept >= len(chosen), description=f"{kept} of {len(chosen)} dialogues obey throughout")


def _rows(chosen: list[Instruction], histories: list[Messages], config: GhostAttentionConfig) -> list[dict[str, str]]:
    """Rows of the dialogues that got to two turns or more, cut at different turns drawn evenly, so that every depth is learned."""
    rows = []
    for index, (instruction, history) in enumerate(zip(chosen, histories, strict=True)):
        chance = random.Random(f"{config.seed}/ghost/{index}")
        depths = range(2, len(history) // 2 + 1)
        for depth in chance.sample(depths, min(config.rows_a_dialogue, len(depths))):
            form = instruction.terse if chance.random() < config.terse_share else instruction.text
            messages = training_copy(history[: 2 * depth], form)
            rows.append(
                {
                    "split": "train",
                    "family": "ghost_attention",
                    "messages": json.dumps(messages, ensure_ascii=False),
                    "learn": "last",
                    "instruction": form,
                }
            )
    return rows
