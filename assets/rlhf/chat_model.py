"""Selection: the chat model of a round is the best of its candidates under the annotator on validation prompts."""

import shutil
from typing import Any

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from resources.annotator import falsely_refuses, score, violates
from resources.profiles import active
from resources.prompts.prompt import Prompt
from resources.recipe import Check, Run, artifact
from resources.store import Artifact


class ChatModelConfig(dg.Config):
    """Selection is by held-out preference, never by training reward; test prompts are not looked at."""

    temperature: float = Field(0.7, ge=0, description="of the sampled answers, as in the evaluations")
    top_p: float = Field(0.9, gt=0, le=1, description="of the sampled answers, as in the evaluations")
    samples: int = Field(2, ge=1, description="answers a prompt")
    max_new_tokens: int = Field(active().answer_tokens, ge=1, description="tokens an answer at most")
    seed: int = Field(active().seed, ge=0, description="noise of the sampling")


@artifact(
    "rlhf/chat_model",
    parents=["rlhf/policy", "rlhf/ppo_policy", "rlhf/ghost_attention_data", "rlhf/prompts", "tokenizer/sentencepiece"],
    previous=("rlhf/chat_model",),
    partitions="round",
    kinds={"pytorch"},
    owners=["team:alignment"],
    pool="trainer",
    checks=[Check("not_worse_than_before", blocking=False, description="the selected model is this round's, not the round before's")],
)
def chat_model(run: Run, config: ChatModelConfig) -> None:
    """The best of this round's rejection sampling policy, its PPO policy and the chat model of the round before."""
    from resources.sampler import LocalSampler, Sampling

    pool = run.parent("rlhf/prompts").frame("prompts.parquet").filter(pl.col("split") == "validation")
    prompts = [Prompt.from_row(row) for row in pool.iter_rows(named=True)]
    candidates = {"rlhf/policy": run.parent("rlhf/policy"), "round before": run.previous("rlhf/chat_model")}
    if run.parent("rlhf/ppo_policy").applied:
        candidates["rlhf/ppo_policy"] = run.parent("rlhf/ppo_policy")
    sampling = Sampling(temperature=config.temperature, top_p=config.top_p, max_new_tokens=config.max_new_tokens)
    rows: list[dict[str, Any]] = []
    for name, candidate in candidates.items():
        sampler = LocalSampler.load(candidate.path, run.parent("tokenizer/sentencepiece").path)
        answers = sampler.sample([p.messages for p in prompts], sampling, seed=config.seed, samples=config.samples)
        judged = [(p, a.text) for p, several in zip(prompts, answers, strict=True) for a in several]
        by_family = {
            family: _mean([score(p, text) for p, text in judged if p.family == family]) for family in sorted({p.family for p in prompts})
        }
        rows.append(
            {
                "candidate": name,
                "asset": candidate.asset,
                "data_version": candidate.data_version,
                "score": _mean(list(by_family.values())),
                **{f"{family}_score": value for family, value in by_family.items()},
                "violation": _mean([violates(p, text) for p, text in judged if p.is_safety]),
                "false_refusal": _mean([falsely_refuses(p, text) for p, text in judged if not p.is_safety]),
            }
        )
        latest = rows[-1]
        run.log(f"{name}: annotator {latest['score']:.3f}, violation {latest['violation']:.3f}, false refusal {latest['false_refusal']:.3f}")
    table = pl.DataFrame(rows)
    best = max(rows, key=lambda row: row["score"])
    winner = candidates[best["candidate"]]
    folder = run.directory
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(winner.file(name), folder / name)
    obeys_ghosts = run.parent("rlhf/ghost_attention_data").applied if best["candidate"] != "round before" else _had_ghost_attention(winner)
    run.write_json(
        "selection.json",
        {
            "selected": best["candidate"],
            "asset": winner.asset,
            "data_version": winner.data_version,
            "ghost_attention": obeys_ghosts,
            "candidates": rows,
        },
    )
    run.table("candidates on validation prompts", table)
    run.metric("annotator_score", best["score"])
    run.note("selected", f"**{best['candidate']}** (`{winner.asset}`, data version `{winner.data_version[:12]}`)")
    run.check(
        "not_worse_than_before",
        passed=best["candidate"] != "round before",
        description=f"selected {best['candidate']}; " + ", ".join(f"{row['candidate']} {row['score']:.3f}" for row in rows),
    )


def _had_ghost_attention(before: Artifact) -> bool:
    """Whether Ghost Attention data was among what the round before's chat model learned from; `sft/model` never had any."""
    return before.asset == "rlhf/chat_model" and bool(before.json("selection.json")["ghost_attention"])


def _mean(values: list[float]) -> float:
    """Mean of a list that is not empty (every family has validation prompts)."""
    return sum(values) / len(values)
