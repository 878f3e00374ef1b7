"""`corpus/investigation`: what the training text speaks of and how (paper, section 4.1)."""

from pathlib import Path
from typing import ClassVar

import dagster as dg
import polars as pl
from pydantic import Field

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.corpus.identity_lists import holistic_bias
from assets.corpus.investigation import investigate, measures
from assets.corpus.word_lists import IDENTITY_TERMS
from assets.plots import bars
from resources.parts import batches, processors, read_parts
from resources.recipe import Request, Run, artifact


class InvestigationConfig(dg.Config):
    """Which lists and which classifier; the defaults need no file and no network."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ("workers", "identity_terms")
    identity_terms: str = Field("", description="HolisticBias' descriptors.json; empty takes a short list of our own")
    toxicity_model: str = Field("", description="text classifier: a folder, or tomh/toxigen_hatebert@<commit>; empty takes a word list")
    toxicity_share: float = Field(1.0, gt=0, le=1, description="share of the documents whose toxicity is measured (the paper: 0.1)")
    seed: int = Field(0, ge=0, description="choice of these documents")
    workers: int = Field(0, ge=0, description="threads; 0 takes all processors")


def _raw_files(request: Request) -> dict[str, Path]:
    file = request.config.identity_terms
    files = {"identity_terms": Path(file).expanduser()} if file else {}
    folder = Path(request.config.toxicity_model)
    if request.config.toxicity_model and folder.is_dir():
        files |= {f"toxicity_model/{one.relative_to(folder)}": one for one in sorted(folder.rglob("*")) if one.is_file()}
    return files


# The columns of each table that are the kind and the term of a row of the warehouse; all numbers beside them are metrics.
KEYS = {
    "pronouns": ("kind", "group"),
    "identity_terms": ("axis", "term"),
    "languages": (None, "language"),
    "lengths": ("unit", None),
    "repetition": (None, None),
    "sources": ("split", None),
    "toxicity": (None, None),
}


@artifact(
    "corpus/investigation",
    parents=["corpus/filtered"],
    files=_raw_files,
    kinds={"polars"},
    owners=["team:data"],
)
def investigation(run: Run, config: InvestigationConfig) -> None:
    """Pronouns, identity terms on five axes, languages, lengths, repetition, share of rude lines; measured, not filtered."""
    terms = holistic_bias(run.file("identity_terms")) if config.identity_terms else IDENTITY_TERMS
    scorer = None
    if config.toxicity_model:
        from assets.corpus.toxicity_model import classifier

        scorer = classifier(config.toxicity_model)
    wanted = measures(terms, scorer, toxicity_share=config.toxicity_share, seed=config.seed)
    training = (part.filter(pl.col("split") == "train") for part in read_parts(run.parent("corpus/filtered").file("documents.parquet")))
    # A classifier computes with all processors itself.
    tables = investigate(batches(training), wanted, workers=1 if scorer else config.workers or processors())
    for name, table in tables.items():
        run.write_frame(f"{name}.parquet", table)
        run.table(name.replace("_", " "), table)
        run.rows("corpus_investigation", facts(name, table))
    run.metric("documents", int(tables["sources"]["documents"].sum()))
    _plot(run, tables)


def facts(name: str, table: pl.DataFrame) -> pl.DataFrame:
    """A table as rows of the warehouse: a number each."""
    kind, term = KEYS[name]
    text = [column for column in ("source", kind, term) if column is not None]
    numbers = [column for column in table.columns if column not in text]
    floats = table.with_columns(pl.col(numbers).cast(pl.Float64))
    long = floats.unpivot(numbers, index=text, variable_name="metric", value_name="value").drop_nulls("value")
    return long.select(
        pl.lit(name).alias("investigation"),
        "source",
        (pl.lit(None, pl.String) if kind is None else pl.col(kind)).alias("kind"),
        (pl.lit(None, pl.String) if term is None else pl.col(term)).alias("term"),
        "metric",
        "value",
    )


def _plot(run: Run, tables: dict[str, pl.DataFrame]) -> None:
    """What the paper's tables 9 and figure 13 show, and the shares of the sources."""
    whole = {name: table.filter(pl.col("source") == "all") for name, table in tables.items() if name != "sources"}
    if not whole["pronouns"].height:
        return
    groups = whole["pronouns"].select("kind", "group", "share").iter_rows()
    run.plot("pronouns", bars({f"{kind}: {group}": share for kind, group, share in groups}, "share of English documents"))
    axes = whole["identity_terms"].filter(pl.col("term") == "any").select("axis", "share").iter_rows()
    run.plot("identity", bars(dict(axes), "share of English documents that name an identity"))
    run.plot("languages", bars(dict(whole["languages"].select("language", "share").head(20).iter_rows()), "share of documents"))
    shares = tables["sources"].group_by("source").agg(pl.col("share").sum()).sort("source")
    run.plot("sources", bars(dict(shares.iter_rows()), "share of the bytes"))
