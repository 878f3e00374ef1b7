"""Answers of every model of a round to the test prompts, judged without noise: what the other evaluations count."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from resources.annotator import declines, falsely_refuses, score, violates
from resources.disk import sha256_file
from resources.errors import TampuError
from resources.profiles import active
from resources.prompts.instructions import succeeds
from resources.prompts.prompt import Prompt
from resources.recipe import Check, Request, Run, artifact
from resources.store import Artifact

WEIGHT_FILES = ("config.json", "model.safetensors")
TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json")


class Opponent(dg.Config):
    """A model from elsewhere to compare with: weights in a folder, or a server."""

    name: str = Field(min_length=1, description="what tables call it: `opponent/<name>`")
    weights: str = Field("", description=f"folder with {', '.join(WEIGHT_FILES)} and the tokenizer's files, as an import is kept")
    url: str = Field("", description="OpenAI-compatible server, such as http://127.0.0.1:8000/v1")
    model: str = Field("", description="the model's name on that server")
    key_variable: str = Field("OPENAI_API_KEY", description="environment variable that holds the server's key, if it wants one")
    timeout: float = Field(60.0, gt=0, description="seconds that a request may take")


class AnswersConfig(dg.Config):
    """One way of sampling for all models, so that they differ in nothing else."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("opponents.url", "opponents.weights", "opponents.key_variable", "opponents.timeout")

    opponents: list[Opponent] = Field([], description="further models to compare with")
    earlier_rounds: int = Field(10, ge=1, description="chat models of so many rounds before, at most")
    temperature: float = Field(0.7, ge=0, description="of the sampled answers")
    top_p: float = Field(0.9, gt=0, le=1, description="of the sampled answers")
    max_new_tokens: int = Field(active().answer_tokens, ge=1, description="tokens an answer at most")
    seed: int = Field(active().seed + 1, ge=0, description="noise of the sampling")


def models_of(run: Run, earlier: Sequence[Artifact] = ()) -> dict[str, Artifact]:
    """The models that a round compares, by name: SFT, `earlier` chat models, the round before's, and this round's own."""
    models = {"sft/model": run.parent("sft/model")}
    for before in (*earlier, run.previous("rlhf/chat_model")):
        if before.asset != "sft/model":
            models[f"{before.asset}@{before.partition}"] = before
    models["rlhf/policy"] = run.parent("rlhf/policy")
    if run.parent("rlhf/ppo_policy").applied:
        models["rlhf/ppo_policy"] = run.parent("rlhf/ppo_policy")
    models["rlhf/chat_model"] = run.parent("rlhf/chat_model")
    return models


def weights_of(artifact_: Artifact) -> str:
    """The sha256 of a model's weights: a chat model has those of the candidate that was selected."""
    return next(str(entry["sha256"]) for entry in artifact_.manifest["files"] if entry["name"] == "model.safetensors")


def _opponents_files(request: Request) -> dict[str, Path]:
    """The files of opponents' weights, which enter the key."""
    opponents = {one.name: one for one in request.config.opponents}
    if len(opponents) < len(request.config.opponents):
        raise TampuError("evaluation/answers.opponents: two opponents have the same name")
    for one in opponents.values():
        if bool(one.weights) == bool(one.url):
            raise TampuError(f"evaluation/answers.opponents: {one.name!r} needs either weights (a folder) or url (a server)")
    files: dict[str, Path] = {}
    for one in opponents.values():
        if one.weights:
            folder = Path(one.weights)
            there = [file for file in TOKENIZER_FILES if (folder / file).is_file()]
            files |= {f"{one.name}/{file}": folder / file for file in (*WEIGHT_FILES, *there)}
    return files


MODEL_PARENTS = ["sft/model", "rlhf/policy", "rlhf/ppo_policy", "rlhf/chat_model", "tokenizer/sentencepiece"]


@artifact(
    "evaluation/answers",
    parents=[*MODEL_PARENTS, "rlhf/prompts"],
    previous=("rlhf/chat_model",),
    history=("rlhf/chat_model",),
    partitions="round",
    files=_opponents_files,
    kinds={"pytorch", "polars"},
    owners=["team:evaluation"],
    pool="trainer",
    checks=[Check("every_prompt_is_answered", blocking=False, description="no opponent left a prompt without an answer")],
)
def answers(run: Run, config: AnswersConfig) -> None:
    """One answer of every model to every test prompt, with the annotator's noise-free score and the rule-based labels.

    Prompts that an opponent's server did not answer are counted and left out for that opponent."""
    from resources.sampler import LocalSampler, Sampling

    pool = run.parent("rlhf/prompts").frame("prompts.parquet").filter(pl.col("split") == "test")
    prompts = [Prompt.from_row(row) for row in pool.iter_rows(named=True)]
    sampling = Sampling(temperature=config.temperature, top_p=config.top_p, max_new_tokens=config.max_new_tokens)
    by_weights: dict[str, list[tuple[str, bool]]] = {}
    rows = []
    earlier = run.history("rlhf/chat_model")[-config.earlier_rounds :]
    for name, artifact_ in models_of(run, earlier).items():
        weights = weights_of(artifact_)
        if weights not in by_weights:  # the same weights give the same answers
            sampler = LocalSampler.load(artifact_.path, run.parent("tokenizer/sentencepiece").path)
            sampled = sampler.sample([p.messages for p in prompts], sampling, seed=config.seed)
            by_weights[weights] = [(several[0].text, several[0].finished) for several in sampled]
        for prompt, (text, finished) in zip(prompts, by_weights[weights], strict=True):
            rows.append(_row(name, artifact_.data_version, prompt, text, finished))
    missing: dict[str, str] = {}
    for opponent in config.opponents:
        replies, version, failed = _opponent_answers(run, opponent, prompts, config)
        missing |= failed
        for prompt, reply in zip(prompts, replies, strict=True):
            if reply is not None:
                rows.append(_row(f"opponent/{opponent.name}", version, prompt, *reply))
    frame = pl.DataFrame(rows, infer_schema_length=None)
    run.write_frame("answers.parquet", frame)
    run.metric("answers", frame.height)
    run.check("every_prompt_is_answered", passed=not missing, description="; ".join(missing.values()) or "all are")
    summary = frame.group_by("model", "family", maintain_order=True).agg(
        pl.len(), pl.col("score").mean(), pl.col("declines").mean(), pl.col("succeeds").cast(pl.Float64).mean(), pl.col("finished").mean()
    )
    run.table("by model and family", summary)
    shown = frame.filter(pl.col("model") == "rlhf/chat_model", pl.col("family") != "unsafe").group_by("family", maintain_order=True).head(3)
    run.table("examples", shown.join(pool.select("prompt_id", "messages"), on="prompt_id").select("family", "messages", "text", "score"))


def _row(name: str, version: str, prompt: Prompt, text: str, finished: bool) -> dict[str, object]:
    return {
        "model": name,
        "model_version": version,
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


def _opponent_answers(
    run: Run, opponent: Opponent, prompts: Sequence[Prompt], config: AnswersConfig
) -> tuple[list[tuple[str, bool] | None], str, dict[str, str]]:
    """(answer, finished) or None for each prompt, what stands for the opponent's version, and what failed."""
    from resources.endpoint import ChatEndpoint, failures
    from resources.sampler import LocalSampler, Sampling

    if opponent.weights:
        folder = Path(opponent.weights)
        sampling = Sampling(temperature=config.temperature, top_p=config.top_p, max_new_tokens=config.max_new_tokens)
        try:
            sampler = LocalSampler.load(folder, folder)
            sampled = sampler.sample([p.messages for p in prompts], sampling, seed=config.seed)
        except ValueError as error:
            raise TampuError(f"evaluation/answers.opponents: {opponent.name!r} can not be used: {error}") from None
        return [(several[0].text, several[0].finished) for several in sampled], sha256_file(run.file(f"{opponent.name}/model.safetensors")), {}
    server = ChatEndpoint(opponent.url, opponent.model, key_variable=opponent.key_variable, timeout=opponent.timeout)
    replies = server.complete(
        [p.messages for p in prompts], temperature=config.temperature, top_p=config.top_p, max_tokens=config.max_new_tokens, seed=config.seed
    )
    failed = failures(replies)
    told = {opponent.name: f"{opponent.name}: " + ", ".join(f"{number} {kind}" for kind, number in failed.items())} if failed else {}
    found = [None if reply.text is None else (" ".join(reply.text.split()), reply.finished) for reply in replies]
    return found, f"{opponent.model} (server)", told
