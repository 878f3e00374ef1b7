"""Ghost Attention recall: does an instruction of the first message still hold at turn N?"""

from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.evaluation.answers import weights_of
from assets.plots import lines
from assets.rlhf.ghost_attention_data import training_copy
from resources.profiles import active
from resources.prompts.ghost_attention import instructions, obeys, user_messages
from resources.prompts.prompt import Messages
from resources.recipe import Check, Run, artifact
from resources.store import Artifact


class GhostAttentionTestConfig(dg.Config):
    """Dialogues with words and topics that training never used."""

    dialogues: int = Field(active().ghost_attention_test_dialogues, ge=1, description="dialogues a model")
    turns: int = Field(active().ghost_attention_test_turns, ge=1, description="user turns")
    temperature: float = Field(0.7, ge=0, description="of the sampled answers")
    max_new_tokens: int = Field(24, ge=1, description="tokens an answer at most")
    validation_share: float = Field(active().validation_share, ge=0, lt=1, description="share of topics kept for validation")
    test_share: float = Field(active().test_share, ge=0, lt=1, description="share of topics kept for tests")
    seed: int = Field(active().seed + 2, ge=0, description="instructions, messages and noise")


def recall_by_turn(run: Run, config: GhostAttentionTestConfig, weights: Artifact) -> list[tuple[int, float, int]]:
    """(turn, share of dialogues whose answer at that turn obeys, dialogues) with the model's own answers as history.

    A dialogue that no longer fits the context leaves the count.
    """
    from resources.sampler import LocalSampler, Sampling

    sampler = LocalSampler.load(weights.path, run.parent("tokenizer/sentencepiece").path)
    longest = sampler.network.config.max_context - config.max_new_tokens
    shares = {"validation": config.validation_share, "test": config.test_share}
    chosen = instructions("test", config.dialogues, seed=config.seed, **shares)
    spoken = user_messages("test", config.dialogues, config.turns, seed=config.seed, **shares)
    sampling = Sampling(temperature=config.temperature, max_new_tokens=config.max_new_tokens)
    histories: dict[int, Messages] = {index: [] for index in range(config.dialogues)}
    found = []
    for turn in range(config.turns):
        asked = {}
        for index, history in list(histories.items()):
            history.append({"role": "user", "content": spoken[index][turn]})
            dialogue = training_copy(history, chosen[index].text)
            if len(sampler.chat.prompt(dialogue)) > longest:
                del histories[index]
            else:
                asked[index] = dialogue
        answers = sampler.sample(list(asked.values()), sampling, seed=config.seed)
        obeyed = 0
        for index, several in zip(asked, answers, strict=True):
            obeyed += obeys(chosen[index], several[0].text)
            histories[index].append({"role": "assistant", "content": several[0].text or "..."})
        found.append((turn + 1, obeyed / len(asked) if asked else float("nan"), len(asked)))
    return found


@artifact(
    "evaluation/ghost_attention",
    parents=["rlhf/chat_model", "tokenizer/sentencepiece"],
    previous=("rlhf/chat_model",),
    partitions="round",
    kinds={"pytorch", "polars"},
    owners=["team:evaluation"],
    pool="trainer",
    checks=[Check("holds_at_turn_six", blocking=False, description="with Ghost Attention data, recall at turn 6 is above the round before's")],
)
def ghost_attention(run: Run, config: GhostAttentionTestConfig) -> None:
    """Recall of 'Always end with the word …' by turn (Table 30): this round's chat model and the round before's; `with` means that Ghost
    Attention data was among its training data. The exact ablation is `ablations/policy_without_ghost_attention`."""
    chat, before = run.parent("rlhf/chat_model"), run.previous("rlhf/chat_model")
    names = {"rlhf/chat_model": chat, before.asset if before.asset == "sft/model" else f"{before.asset}@{before.partition}": before}
    models = {name: (one, one.asset != "sft/model" and bool(one.json("selection.json")["ghost_attention"])) for name, one in names.items()}
    applied = models["rlhf/chat_model"][1]
    rows: list[dict[str, Any]] = []
    by_weights: dict[str, list[tuple[int, float, int]]] = {}
    for name, (one, with_data) in models.items():
        weights = weights_of(one)
        if weights not in by_weights:
            by_weights[weights] = recall_by_turn(run, config, one)
        for turn, recall, n in by_weights[weights]:
            rows.append({"model": name, "turn": turn, "variant": "with" if with_data else "without", "recall": recall, "n": n})
    run.rows("ghost_attention", rows)
    table = pl.DataFrame(rows)
    run.table("recall by turn", table.pivot("model", index="turn", values="recall"))
    at = min(6, config.turns)
    values = {row["model"]: row["recall"] for row in rows if row["turn"] == at}
    ours, theirs = values["rlhf/chat_model"], next(value for name, value in values.items() if name != "rlhf/chat_model")
    run.metric("recall_at_turn_six", ours)
    run.check("holds_at_turn_six", passed=not applied or ours > theirs, description=f"turn {at}: {ours:.3f}, round before {theirs:.3f}")
    series = {name: [(row["turn"], row["recall"]) for row in rows if row["model"] == name] for name in models}
    run.plot("recall_by_turn", lines(series, "turn", "recall of the first message's instruction"))
