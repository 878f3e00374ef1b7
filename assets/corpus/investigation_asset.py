"""`corpus/investigation`: what the training text speaks of and how (paper, section 4.1)."""

import polars as pl

import model  # noqa: F401  keeps the top-level package importable from inside asset bodies
from assets.corpus import investigation as measures
from resources.recipe import Run, artifact


@artifact(
    "corpus/investigation",
    parents=["corpus/filtered"],
    kinds={"polars"},
    owners=["team:data"],
)
def investigation(run: Run) -> None:
    """Pronouns, identity terms on five axes, languages, lengths, repetition, share of rude lines; measured, not filtered."""
    frame = run.parent("corpus/filtered").frame("documents.parquet").filter(pl.col("split") == "train")
    tables = {
        "pronouns": measures.pronouns(frame),
        "identity_terms": measures.identity_terms(frame),
        "languages": measures.languages(frame),
        "lengths": measures.lengths(frame),
        "repetition": measures.repetition(frame),
        "sources": measures.sources(frame),
        "toxicity": measures.toxicity(frame),
    }
    for name, table in tables.items():
        run.write_frame(f"{name}.parquet", table)
        run.table(name.replace("_", " "), table)
    run.metric("documents", frame.height)
