"""The mixture: how often each training document is seen. Recipe section 2: the most factual sources are up-sampled."""

from math import floor

import polars as pl

from resources.errors import TampuError
from resources.splits import fraction_of


def weights_of(sources: pl.DataFrame, sizes: dict[str, int]) -> dict[str, float]:
    """How often each source's training documents are seen: its declared weight, or what gives it its declared share.

    `sources` has the columns source, weight and share (null where weights are declared); `sizes` the bytes of training
    text by source. With shares the source that needs the fewest repeats is seen once, so that no text is left out and
    no weight is below 1 (our choice). TampuError if a source with a share has no training text.
    """
    shares = dict(sources.select("source", "share").drop_nulls().iter_rows())
    if not shares:
        return dict(sources.select("source", "weight").iter_rows())
    for source in shares:
        if not sizes.get(source):
            raise TampuError(f"mixing: the source {source!r} is to make up {shares[source]:.1%} and has no training text left")
    wanted = {source: share / sizes[source] for source, share in shares.items()}
    fewest = min(wanted.values())
    return {source: weight / fewest for source, weight in wanted.items()}


def mix(frame: pl.DataFrame, weights: dict[str, float], *, seed: int) -> pl.DataFrame:
    """The documents of `frame` with training documents repeated by their source's weight, in a seeded order.

    A weight of 2.3 gives two copies, and a third to the documents (30 % of them) that a hash of seed and document_id
    picks; a weight below 1 keeps that share of them. Held-out documents are kept once, whatever the weight. Adds `copy`
    (Int32, from 0). Neither the copies nor their order depend on the order or company of the rows. Of the columns only
    document_id, source and split are looked at, so that texts may stay on the disk.
    TampuError if a source has no weight or a weight is not above 0.
    """
    for source in frame["source"].unique().sort():
        weight = weights.get(source)
        if weight is None or not 0 < weight < float("inf"):
            raise TampuError(f"mixing: the source {source!r} has the weight {weight}; expected a number above 0")
    copies = []
    for document, source, split in frame.select("document_id", "source", "split").iter_rows():
        weight = weights[source] if split == "train" else 1.0
        extra = fraction_of(document, f"mix/{seed}") < weight - floor(weight)
        copies.append(floor(weight) + extra)
    number = pl.Series(copies, dtype=pl.Int32)
    mixed = frame.with_columns(copy=pl.int_ranges(0, number, dtype=pl.Int32)).filter(number > 0).explode("copy")
    places = [fraction_of(f"{d}\x1f{c}", f"order/{seed}") for d, c in mixed.select("document_id", "copy").iter_rows()]
    ordered = mixed.with_columns(place=pl.Series(places, dtype=pl.Float64)).sort("place", "document_id", "copy")
    return ordered.drop("place")


def mixture(mixed: pl.DataFrame) -> pl.DataFrame:
    """By source, what `mix` made of the training part, as the tables of the Llama papers give it.

    source, factual, documents (different ones), copies, bytes (of all copies), share (of all bytes), epochs (copies a
    document). Needs the columns text or bytes.
    """
    size = pl.col("bytes") if "bytes" in mixed.columns else pl.col("text").str.len_bytes()
    training = mixed.filter(pl.col("split") == "train").with_columns(size=size)
    rows = training.group_by("source").agg(
        factual=pl.col("factual").first(),
        documents=pl.col("document_id").n_unique().cast(pl.Int64),
        copies=pl.len().cast(pl.Int64),
        bytes=pl.col("size").sum().cast(pl.Int64),
    )
    return rows.with_columns(share=pl.col("bytes") / pl.col("bytes").sum(), epochs=pl.col("copies") / pl.col("documents")).sort("source")
