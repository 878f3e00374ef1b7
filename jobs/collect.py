"""Collecting preferences: sample two model variants at different temperatures, have the answers rated, drop the file into the inbox."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from assets.rlhf.samples import round_prompts
from resources.annotator import compare
from resources.errors import TampuError
from resources.inbox import batch_file, batches_in, place
from resources.profiles import active
from resources.prompts.prompt import Prompt
from resources.sampler import LocalSampler, Sampling
from resources.splits import fraction_of
from resources.store import Artifact, ArtifactStore

# Shares of the families in a week (our choice): instructions and safety in the main, as the paper's two guidelines.
FAMILY_SHARES = {"task": 0.55, "unsafe": 0.2, "borderline": 0.15, "chat": 0.1}
TEMPERATURES = (1.0, 0.8)
# The simulated annotator's calendar: week 1 begins here. Wall-clock time would make the same seed give other bytes.
FIRST_WEEK = datetime(2023, 1, 2, tzinfo=UTC)


@dataclass(frozen=True)
class Variant:
    """A set of weights: an artifact and the name of its weight file."""

    reference: str
    artifact: Artifact
    weights: str


@dataclass(frozen=True)
class Collected:
    """What a collection made, or found already made."""

    batch: str
    comparisons: int
    identical: int
    empty: int
    reused: bool


def resolve_variant(store: ArtifactStore, profile: str, reference: str) -> Variant:
    """`asset[@round][:weights]`, such as `sft/model:first_epoch` or `rlhf/chat_model@v1`."""
    name, _, weights = reference.partition(":")
    asset, _, partition = name.partition("@")
    artifact = store.current(asset, partition or None, profile)
    weights = weights or "model"
    names = [entry["name"] for entry in artifact.manifest["files"]]
    known = sorted(name.removesuffix(".safetensors") for name in names if name.endswith(".safetensors"))
    if weights not in known:
        raise TampuError(f"model {reference!r}: {name} has no weights {weights!r}; it has {', '.join(known) or 'none'}")
    return Variant(reference, artifact, weights)


def collect(
    store: ArtifactStore,
    *,
    models: tuple[str, str],
    week: int,
    batch: str | None = None,
    comparisons: int | None = None,
) -> Collected:
    """Sample, rate and place batch `week-<week>` into the inbox. A batch of these very models that is already there is left as it is."""
    profile = active()
    seed = profile.seed
    if week < 1:
        raise TampuError(f"week {week}: weeks count from 1")
    batch = batch or f"week-{week}"
    variants = [resolve_variant(store, profile.name, reference) for reference in models]
    if len({(v.artifact.data_version, v.weights) for v in variants}) < 2:
        raise TampuError(f"models {models[0]} and {models[1]} have the same weights: name two variants that differ")
    if batch in batches_in(store.root):
        return _found(store, batch, variants)

    prompts = _prompts(store, profile.name, comparisons or profile.comparisons_a_week, week, seed)
    tokenizer = store.current("tokenizer/sentencepiece", None, profile.name)
    texts = []
    for number, (variant, temperature) in enumerate(zip(variants, TEMPERATURES, strict=True)):
        sampler = LocalSampler.load(variant.artifact.path, tokenizer.path, name=variant.weights, label=f"sampling {variant.reference}")
        sampling = Sampling(temperature=temperature, max_new_tokens=profile.answer_tokens)
        sampled = sampler.sample([p.messages for p in prompts], sampling, seed=seed + 1000 * week + number)
        texts.append([several[0].text.strip() for several in sampled])
    lines: list[str] = []
    identical = empty = 0
    for prompt, first, second in zip(prompts, *texts, strict=True):
        if not first or not second:
            empty += 1
            continue
        if first == second:
            identical += 1
            continue
        lines.append(_line(prompt, (first, second), variants, week, len(lines), profile.annotator_noise, seed))
    if not lines:
        raise TampuError(f"{models[0]} and {models[1]} gave no two answers that differ: nothing to compare")
    place(store.root, batch, "".join(f"{line}\n" for line in lines).encode())
    return Collected(batch, len(lines), identical, empty, reused=False)


def _prompts(store: ArtifactStore, profile: str, count: int, week: int, seed: int) -> list[Prompt]:
    pool = store.current("rlhf/prompts", None, profile).frame("prompts.parquet").filter(pl.col("split") == "train")
    parts = [
        round_prompts(pool.filter(pl.col("family") == family), round(share * count), f"collect/{seed}/{week}")
        for family, share in FAMILY_SHARES.items()
    ]
    return [Prompt.from_row(row) for row in pl.concat(parts).iter_rows(named=True)]


def _line(prompt: Prompt, texts: tuple[str, str], variants: list[Variant], week: int, number: int, noise: float, seed: int) -> str:
    """One comparison as JSON; which answer stands first is drawn by hash."""
    judged = compare(prompt, texts, noise=noise, seed=seed)
    order = (1, 0) if fraction_of(f"{prompt.prompt_id}/{week}", "order") < 0.5 else (0, 1)
    responses = [
        {
            "text": texts[index],
            "model": variants[index].reference,
            "model_version": variants[index].artifact.data_version,
            "temperature": TEMPERATURES[index],
        }
        for index in order
    ]
    time = FIRST_WEEK + timedelta(weeks=week - 1, seconds=number)
    row = {
        "prompt": prompt.messages,
        "responses": responses,
        "preferred": order.index(judged.preferred),
        "rating": judged.rating,
        "is_safety": prompt.is_safety,
        "safe": [judged.safe[index] for index in order],
        "annotator": f"simulated/{seed}",
        "time": time.isoformat(),
        "ceiling": judged.ceiling,
    }
    return json.dumps(row, ensure_ascii=False)


def _found(store: ArtifactStore, batch: str, variants: list[Variant]) -> Collected:
    """A batch that is already in the inbox: fine if it was sampled from these models, an error otherwise."""
    lines = batch_file(store.root, batch).read_bytes().splitlines()
    versions = {r["model_version"] for line in lines[:1] for r in json.loads(line)["responses"]}
    wanted = {variant.artifact.data_version for variant in variants}
    if versions != wanted:
        raise TampuError(
            f"batch {batch!r} is in the inbox already and came from other models than {' and '.join(v.reference for v in variants)}: "
            "choose another week or batch name, or start in a new TAMPU_HOME"
        )
    return Collected(batch, len(lines), 0, 0, reused=True)
