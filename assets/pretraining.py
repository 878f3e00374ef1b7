"""Pretraining: token ids of the mixed corpus, a base model from scratch, and n-gram models to compare it with."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, ClassVar, Literal

import dagster as dg
import numpy as np
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.corpus.mixing import mix, mixture, weights_of
from assets.plots import losses
from resources.errors import TampuError
from resources.imports import imported
from resources.parts import processors, read_parts
from resources.profiles import active
from resources.recipe import Check, ExecutionConfig, Request, Run, artifact

if TYPE_CHECKING:
    from model.llama import Llama

SPLITS = ("train", "validation", "test")
SLIM = ["document_id", "source", "factual", "split", "text"]


class TokensConfig(dg.Config):
    """How the documents become token ids."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("workers",)
    seed: int = Field(active().seed, ge=0, description="order of the documents")
    workers: int = Field(0, ge=0, description="threads; 0 takes all processors")


@artifact(
    "pretraining/tokens",
    parents=["corpus/documents", "corpus/filtered", "tokenizer/sentencepiece"],
    kinds={"numpy", "polars"},
    owners=["team:data"],
    checks=[Check("splits_not_empty", blocking=True, description="there are training, validation and test tokens")],
)
def tokens(run: Run, config: TokensConfig) -> None:
    """Token ids of every document between BOS and EOS, sources mixed to their weights or shares in the training split."""
    from assets.corpus.token_stream import EncodedDocuments, write_stream
    from model.tokenizer_files import load_tokenizer

    folder = run.parent("corpus/filtered").file("documents.parquet")
    tokenizer = load_tokenizer(run.parent("tokenizer/sentencepiece").path)
    slim = [part.with_columns(bytes=pl.col("text").str.len_bytes().cast(pl.Int64)).drop("text") for part in read_parts(folder, SLIM)]
    documents = pl.concat(slim).with_row_index("number")
    sources = run.parent("corpus/documents").frame("sources.parquet")
    trained = documents.filter(pl.col("split") == "train").group_by("source").agg(pl.col("bytes").sum())
    weights = weights_of(sources, dict(trained.iter_rows()))
    counts, parts = [], {split: mix(documents.filter(pl.col("split") == split), weights, seed=config.seed) for split in SPLITS}
    with TemporaryDirectory(dir=run.directory) as work:
        encoded = EncodedDocuments(folder, tokenizer, Path(work), workers=config.workers or processors())
        for split, mixed in parts.items():
            number = write_stream(encoded, mixed["number"], run.directory, split, tokenizer.vocab_size)
            part = mixed.with_columns(tokens=pl.Series(encoded.lengths[mixed["number"].to_numpy()], dtype=pl.Int64))
            counts.append(
                part.group_by("source", maintain_order=True)
                .agg(documents=pl.len(), tokens=pl.col("tokens").sum(), bytes=pl.col("bytes").sum())
                .with_columns(split=pl.lit(split))
            )
            run.metric(f"{split}_tokens", number)
            run.metric(f"{split}_bytes", int(part["bytes"].sum()))
            run.write_frame(f"{split}_documents.parquet", part.select("document_id", "source", "tokens", "bytes"))
    table = pl.concat(counts)
    run.table("tokens by source", table)
    run.table("mixture of the training text", mixture(parts["train"]))
    missing = set(SPLITS) - set(table.filter(pl.col("tokens") > 0)["split"])
    run.check("splits_not_empty", passed=not missing, description=f"splits without tokens: {sorted(missing)}")


class BaseModelConfig(dg.Config):
    """Paper values where the paper gives them (section 2.2); sizes and learning rate by profile. With `checkpoint` nothing is trained,
    and of the rest only `context` counts."""

    # Of a checkpoint the hashes of its files count.
    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("log_every", "checkpoint", *ExecutionConfig.NOT_IDENTITY)
    checkpoint: str = Field(active().base_checkpoint, description="imported checkpoint that is the base model; empty: train one")
    dim: int = Field(active().dim, ge=8, description="width of the residual stream")
    layers: int = Field(active().layers, ge=1, description="transformer blocks")
    heads: int = Field(active().heads, ge=1, description="query heads")
    kv_heads: int = Field(active().kv_heads, ge=1, description="key and value heads (grouped-query attention)")
    context: int = Field(active().context, ge=16, description="tokens a training sequence")
    max_context: int = Field(active().max_context, ge=16, description="longest sequence the model may be given")
    steps: int = Field(active().pretraining_steps, ge=1, description="optimizer steps")
    batch: int = Field(active().pretraining_batch, ge=1, description="sequences a step")
    learning_rate: float = Field(active().pretraining_learning_rate, gt=0, description="peak of the cosine schedule")
    warmup_share: float = Field(0.03, ge=0, le=0.5, description="share of the steps with rising rate (the paper: 2,000 of 477k)")
    validate_every: int = Field(500, ge=1, description="steps between measurements on validation text")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="bf16 products with fp32 weights, norms and softmaxes, or fp32")
    seed: int = Field(active().seed, ge=0, description="weights and order of the data")
    log_every: int = Field(50, ge=1, description="steps between lines of the training log")
    execution: ExecutionConfig = Field(ExecutionConfig(), description="how the training is run")


def _imported_files(request: Request) -> dict[str, Path]:
    name = request.config.checkpoint
    return imported(request.home, name).weight_files if name else {}


@artifact(
    "pretraining/base_model",
    parents=["pretraining/tokens", "tokenizer/sentencepiece"],
    files=_imported_files,
    kinds={"pytorch"},
    owners=["team:training"],
    pool="trainer",
    checks=[
        Check("learned", blocking=True, description="validation bits per byte are below those of a uniform guess over the vocabulary"),
        Check("beats_unigram", blocking=False, description="validation bits per byte are below the entropy of single tokens"),
    ],
)
def base_model(run: Run, config: BaseModelConfig) -> None:
    """A Llama 2 model trained from scratch on the corpus: AdamW, cosine schedule, next-token loss within documents; or an imported one."""
    import torch

    from model.causal_lm import CausalLM, HeldOut, PackedLoader
    from model.llama import Llama, LlamaConfig
    from model.token_shards import StreamBlocks, TokenShards
    from model.tokenizer_files import load_tokenizer
    from model.training import Optimization, fit
    from model.weights import save_llama

    if config.checkpoint:
        _take_over(run, config)
        return
    data = run.parent("pretraining/tokens")
    tokenizer_size = int(run.parent("tokenizer/sentencepiece").metrics["pieces"])
    shape = LlamaConfig(
        vocab_size=tokenizer_size,
        dim=config.dim,
        layers=config.layers,
        heads=config.heads,
        kv_heads=config.kv_heads,
        multiple_of=32,
        max_context=config.max_context,
    )
    network = Llama(shape)
    network.init_weights(torch.Generator().manual_seed(config.seed))

    streams = {split: TokenShards(data.path, split) for split in ("train", "validation")}
    bos_id = load_tokenizer(run.parent("tokenizer/sentencepiece").path).bos_id
    train, validation = (StreamBlocks(stream, config.context, bos_id=bos_id) for stream in streams.values())
    size = int(data.metrics["validation_bytes"])
    optimization = Optimization(learning_rate=config.learning_rate, steps=config.steps, warmup_steps=int(config.warmup_share * config.steps))
    result = fit(
        CausalLM(network, optimization),
        PackedLoader(train, config.batch, seed=config.seed),
        steps=config.steps,
        seed=config.seed,
        precision=config.precision,
        log_every=config.log_every,
        progress=run.label,
        validate=HeldOut(network, validation, size),
        validate_every=config.validate_every,
        resume=run.resume(config.execution),
        execution=run.execution(config.execution),
    )
    save_llama(network, run.directory)
    run.rows("training_metrics", result.rows)
    run.metric("tokens_seen", result.tokens)
    run.plot("loss", losses(result.rows))
    _judge(run, network, config.context)


def _take_over(run: Run, config: BaseModelConfig) -> None:
    """The imported checkpoint as it is, in fp32. Raises TampuError for a reward model, and where the tokenizer is not the checkpoint's."""
    from model.weights import load_llama, save_llama

    found = imported(run.home, config.checkpoint)
    if found.origin["kind"] != "llama":
        raise TampuError(f"imported checkpoint {config.checkpoint!r} is a {found.origin['kind']} model: a base model must be a language model")
    network = load_llama(run.file("model.safetensors").parent).float()
    pieces, rows = int(run.parent("tokenizer/sentencepiece").metrics["pieces"]), network.config.vocab_size
    if pieces != rows:
        raise TampuError(
            f"imported checkpoint {config.checkpoint!r} embeds {rows} tokens, and tokenizer/sentencepiece has {pieces}: "
            f"set tokenizer/sentencepiece.checkpoint to {config.checkpoint!r} too"
        )
    save_llama(network, run.directory)
    run.note("imported", found.told())
    run.metric("tokens_seen", 0)
    _judge(run, network, config.context)


def _judge(run: Run, network: "Llama", context: int) -> None:
    """Bits per byte on held-out text, beside what a uniform guess and the frequencies of single tokens give."""
    from model.causal_lm import bits_per_byte
    from model.token_shards import StreamBlocks, TokenShards
    from model.tokenizer_files import load_tokenizer

    data = run.parent("pretraining/tokens")
    tokenizer_size = network.config.vocab_size
    streams = {split: TokenShards(data.path, split) for split in SPLITS}
    bos_id = load_tokenizer(run.parent("tokenizer/sentencepiece").path).bos_id
    held_out = {split: StreamBlocks(streams[split], context, bos_id=bos_id) for split in ("validation", "test")}
    sizes = {split: int(data.metrics[f"{split}_bytes"]) for split in held_out}
    bits = {split: bits_per_byte(network, held_out[split], sizes[split]) for split in held_out}
    counts = np.ones(tokenizer_size)
    for shard in streams["train"].shards:
        counts += np.bincount(shard, minlength=tokenizer_size)
    probabilities = counts / counts.sum()
    validation_ids = streams["validation"].all()
    unigram = float(-np.log2(probabilities[validation_ids]).sum() / sizes["validation"])
    uniform = float(np.log2(tokenizer_size) * len(validation_ids) / sizes["validation"])
    run.metric("parameters", network.config.parameter_count())
    run.metric("validation_bits_per_byte", bits["validation"])
    run.metric("test_bits_per_byte", bits["test"])
    run.check("learned", passed=bits["validation"] < uniform, description=f"{bits['validation']:.3f} against {uniform:.3f}")
    run.check("beats_unigram", passed=bits["validation"] < unigram, description=f"{bits['validation']:.3f} against {unigram:.3f}")


class BaselineConfig(dg.Config):
    """Kneser-Ney models on the same training and validation text."""

    token_orders: list[int] = Field([2, 3], description="orders of the token models")
    byte_orders: list[int] = Field([5], description="orders of the byte models")
    discount: float = Field(0.75, gt=0, lt=1, description="absolute discount")


@artifact(
    "pretraining/ngram_baselines",
    parents=["pretraining/tokens", "corpus/filtered"],
    kinds={"numpy"},
    owners=["team:training"],
)
def ngram_baselines(run: Run, config: BaselineConfig) -> None:
    """Bits per byte of interpolated Kneser-Ney n-grams, over tokens and over bytes, on the base model's own split."""
    from model.ngram import kneser_ney_bits
    from model.token_shards import TokenShards

    data = run.parent("pretraining/tokens")
    documents = run.parent("corpus/filtered").frame("documents.parquet").sort("document_id")
    size = int(data.metrics["validation_bytes"])

    def as_bytes(split: str) -> np.ndarray:
        texts = documents.filter(pl.col("split") == split)["text"].to_list()
        return np.frombuffer(b"".join(b"\x00" + text.encode() for text in texts), dtype=np.uint8).astype(np.int64)

    rows = []
    sources = {
        "token": (TokenShards(data.path, "train").all().astype(np.int64), TokenShards(data.path, "validation").all().astype(np.int64)),
        "byte": (as_bytes("train"), as_bytes("validation")),
    }
    for unit, orders in (("token", config.token_orders), ("byte", config.byte_orders)):
        train, held_out = sources[unit]
        vocabulary = int(max(train.max(), held_out.max())) + 1
        for order in orders:
            bits = kneser_ney_bits(train, held_out, order, vocabulary, config.discount) / size
            rows.append({"model": f"{unit} {order}-gram", "bits_per_byte": bits})
            run.metric(f"{unit}_{order}gram_bits_per_byte", bits)
    run.rows(
        "benchmarks",
        [
            {
                "model": row["model"],
                "task": "validation text",
                "task_group": "language modelling",
                "shots": 0,
                "metric": "bits_per_byte",
                "value": row["bits_per_byte"],
                "stderr": None,
                "n": size,
            }
            for row in rows
        ],
    )
    run.table("bits per byte on validation text", pl.DataFrame(rows))
