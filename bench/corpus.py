"""The corpus chain: beside datatrove, the quality of its two detectors, and its memory as the corpus grows.

    python -m bench.corpus compare          # documents/s of ours and datatrove's, on one and on two processors
    python -m bench.corpus duplicates       # recall and precision by band of exact Jaccard similarity, on planted pairs
    python -m bench.corpus personal-data    # recall and precision by type, on planted spans
    python -m bench.corpus growth 1 10 100  # seconds, memory and disk for 50 MB (--megabytes) times each factor
    python -m bench.corpus contamination    # seconds and memory of the search for 2,000 samples in 10^8 tokens

`compare` needs `pip install datatrove[processing] spacy` beside the project. Every measured run is a process of its own.
"""

import argparse
import json
import os
import resource
import statistics
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import polars as pl

from assets.corpus.contamination import CorpusTokens, contaminated_share, find_matches
from assets.corpus.duplicates import NearDuplicates, jaccard, near_duplicates
from assets.corpus.filters import KEPT_SCHEMA, REJECT_SCHEMA, FilterSettings, apply_filters, filter_corpus
from assets.corpus.personal_data import find
from assets.corpus.quality import WEB
from assets.corpus.shingles import word_shingles
from model.token_shards import ShardWriter, TokenShards
from resources.parts import PartWriter, batches, read_parts
from resources.sources import DOCUMENT_SCHEMA, EMBEDDED, Source, read_documents, stream_documents

SHARES = {"validation": 0.05, "test": 0.05}
RUNS = 3


def real_documents() -> pl.DataFrame:
    """The embedded conversations and speeches."""
    return pl.concat([read_documents(source, **SHARES).frame for source in EMBEDDED])


def filtering() -> tuple[Callable[[], int], str]:
    """For `python -m bench`: the whole chain in memory over the embedded text."""
    frame = real_documents()

    def work() -> int:
        apply_filters(frame, workers=len(os.sched_getaffinity(0)))
        return frame.height

    return work, "documents/s"


# Beside datatrove


def ours(folder: Path, workers: int) -> int:
    """JSON lines in; Parquet of documents kept and rejected out, with the published limits for web pages."""
    source = Source(name="text", reader="jsonl", licence="MIT", path=folder / "in", id_field="id")
    documents = (part.frame for part in stream_documents(source, **SHARES))
    frame = pl.concat(documents).sort("document_id")
    settings = FilterSettings(quality=WEB, dialogues=frozenset())
    with TemporaryDirectory() as work, PartWriter(folder / "kept", KEPT_SCHEMA) as kept, PartWriter(folder / "gone", REJECT_SCHEMA) as gone:
        filter_corpus(batches([frame]), settings, kept=kept.write, rejected=gone.write, work=Path(work), workers=workers)
    return kept.rows


def datatroves(folder: Path, workers: int) -> int:
    """JSON lines in and out: Gopher's and C4's filters, MinHash deduplication with its four steps, and the PII formatter."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets
    from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.formatters import PIIFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    def path(name: str) -> str:
        return str(folder / name)

    def rejects(name: str) -> JsonlWriter:
        return JsonlWriter(path(f"gone/{name}"), compression=None)

    filters = [
        JsonlReader(path("in")),
        GopherRepetitionFilter(exclusion_writer=rejects("repetition")),
        GopherQualityFilter(exclusion_writer=rejects("quality")),
        C4QualityFilter(filter_no_terminal_punct=False, exclusion_writer=rejects("c4")),
        JsonlWriter(path("filtered"), compression=None),
    ]
    signatures = [JsonlReader(path("filtered")), MinhashDedupSignature(path("signatures"))]
    last = [
        JsonlReader(path("filtered")),
        MinhashDedupFilter(path("clusters"), exclusion_writer=rejects("duplicates")),
        PIIFormatter(),
        JsonlWriter(path("kept"), compression=None),
    ]
    steps = (
        (filters, workers),
        (signatures, workers),
        ([MinhashDedupBuckets(path("signatures"), path("buckets"))], 14),
        ([MinhashDedupCluster(path("buckets"), path("clusters"))], 1),
        (last, workers),
    )
    for number, (pipeline, tasks) in enumerate(steps):
        run = LocalPipelineExecutor(pipeline, tasks=tasks, workers=min(workers, tasks), logging_dir=path(f"logs-{number}"))
        run.run()
    return sum(file.read_bytes().count(b"\n") for file in (folder / "kept").glob("*.jsonl"))


SIDES: dict[str, Callable[[Path, int], int]] = {"tampu": ours, "datatrove": datatroves}


def compare(documents: int) -> None:
    """Both sides on the same files, in turn, each run in a process of its own."""
    frame = real_documents().filter(pl.col("source") == "chitchat").select(id="document_id", text="text")
    frame = frame.filter(pl.col("text").str.len_bytes() > 200).sort("id").head(documents)
    size = int(frame["text"].str.len_bytes().sum())
    print(f"{frame.height:,} chat documents, {size / 1e6:.1f} MB of text")
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(RUNS):
        for workers in (1, 2):
            for side in SIDES:
                with TemporaryDirectory() as folder:
                    (Path(folder) / "in").mkdir()
                    for part in range(2):
                        frame.gather_every(2, part).write_ndjson(Path(folder) / "in" / f"{part}.jsonl")
                    found = one(["side", side, folder, str(workers)], workers)
                rates.setdefault((side, workers), []).append(frame.height / found["seconds"])
                print(f"  {side}, {workers}: {found['seconds']:.1f} s, {found['kept']:,} kept, {found['memory'] / 1e9:.2f} GB", flush=True)
    for (side, workers), values in rates.items():
        middle = statistics.median(values)
        share = middle * size / frame.height / 1e6
        print(f"{side:<10} {workers} processor(s): {middle:,.0f} documents/s ({min(values):,.0f} to {max(values):,.0f}), {share:.2f} MB/s")


def one(arguments: list[str], workers: int) -> dict[str, float]:
    """Runs this module with `arguments` on `workers` processors; what it printed last, as JSON."""
    threads = {"POLARS_MAX_THREADS": str(workers), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    allowed = sorted(os.sched_getaffinity(0))[:workers]
    done = subprocess.run(
        [sys.executable, "-m", "bench.corpus", *arguments],
        env={**os.environ, **threads},
        capture_output=True,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stderr.decode()[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def side(name: str, folder: str, workers: int) -> None:
    """One measured run: seconds without imports."""
    warm = real_documents().head(50)
    if name == "tampu":
        apply_filters(warm)
    else:
        import spacy  # noqa: F401
    began = perf_counter()
    kept = SIDES[name](Path(folder), workers)
    report(perf_counter() - began, kept=kept)


def report(seconds: float, **numbers: float) -> None:
    """One line of JSON: seconds, peak memory of the process in bytes, and `numbers`."""
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "memory": max(memory, children), **numbers}))


# Near duplicates


def planted_pairs(seed: int = 0) -> tuple[pl.DataFrame, list[tuple[int, int]]]:
    """Real texts of 100 words on, each beside a copy of which some words were replaced, so that all similarities occur."""
    random = np.random.default_rng(seed)
    frame = real_documents().filter(pl.col("text").str.count_matches(r"\S+") >= 100).sort("document_id")
    texts = frame["text"].to_list()
    rows: list[tuple[str, str, str]] = []
    pairs = []
    for number, text in enumerate(texts):
        words = text.split()
        changed = list(words)
        # A replaced word spoils five shingles: k words of n leave about (1 - k/n)^5 of them,
        # and Jaccard similarity j needs 2 j / (1 + j) of them to be left.
        wanted = random.uniform(0.4, 1.0)
        left = 2 * wanted / (1 + wanted)
        for place in np.flatnonzero(random.random(len(words)) > left ** (1 / 5)):
            changed[place] = "".join(random.choice(list(string.ascii_lowercase), 7))
        pairs.append((2 * number, 2 * number + 1))
        rows += [(f"{number:06d}a", text, "train"), (f"{number:06d}b", " ".join(changed), "train")]
    return pl.DataFrame(rows, schema=["document_id", "text", "split"], orient="row"), pairs


def duplicates() -> None:
    """Recall by band of exact similarity on planted pairs, and the precision of everything that was removed."""
    settings = NearDuplicates()
    frame, pairs = planted_pairs()
    shingles = word_shingles(frame["text"], settings.shingle_words)
    removed = near_duplicates(frame, settings)
    representative = dict(removed.select("document_id", "representative").iter_rows())
    names = frame["document_id"].to_list()
    root = {name: representative.get(name, name) for name in names}
    bands: Counter[int] = Counter()
    hits: Counter[int] = Counter()
    for a, b in pairs:
        similarity = jaccard(shingles.of(a), shingles.of(b))
        band = min(int(similarity * 20), 19)
        bands[band] += 1
        hits[band] += root[names[a]] == root[names[b]]
    print(f"{len(pairs):,} planted pairs; joined from Jaccard {settings.similarity} on")
    for band in sorted(bands):
        low = band / 20
        ideal = [1 - (1 - s**settings.rows) ** settings.bands for s in np.linspace(low, low + 0.05, 50)]
        share = hits[band] / bands[band]
        print(f"  {low:.2f} to {low + 0.05:.2f}: {bands[band]:>5} pairs, joined {share:.3f} (LSH alone gives {np.mean(ideal):.3f})")
    right = removed.filter(pl.col("similarity") >= settings.similarity).height
    print(f"removed {removed.height:,}; exact similarity to the representative at least {settings.similarity}: {right / removed.height:.4f}")


# Personal data


def planted_spans(seed: int = 0, each: int = 400) -> Iterator[tuple[str, str | None, tuple[int, int] | None]]:
    """(text, type, span) of sentences with one datum each, and (text, None, None) of sentences with a look-alike."""
    from stdnum import luhn
    from stdnum.iso7064 import mod_97_10

    random = np.random.default_rng(seed)

    def digits(count: int) -> str:
        return "".join(str(n) for n in random.integers(0, 10, count))

    def pick(*choices: str) -> str:
        return str(random.choice(choices))

    def letters(count: int) -> str:
        return "".join(random.choice(list(string.ascii_lowercase), count))

    def card() -> str:
        body = pick("4", "51", "37", "6011")
        body += digits((14 if body == "37" else 15) - len(body))
        number = body + luhn.calc_check_digit(body)
        return number if random.random() < 0.5 else pick(" ", "-").join(number[i : i + 4] for i in range(0, len(number), 4))

    def iban() -> str:
        country, length = (("DE", 18), ("GB", 18), ("FR", 23), ("NL", 14))[int(random.integers(4))]
        body = {"GB": "WEST" + digits(14), "NL": "INGB" + digits(10)}.get(country, digits(length))
        if country == "FR":
            body = "30006000011234567890189"
        number = country + mod_97_10.calc_check_digits(body + country) + body
        return number if random.random() < 0.5 else " ".join(number[i : i + 4] for i in range(0, len(number), 4))

    def phone() -> str:
        area, rest = pick("212", "415", "650", "801", "202"), f"{random.integers(200, 999)}{digits(4)}"
        a, b = rest[:3], rest[3:]
        return pick(
            f"({area}) {a}-{b}", f"{area}-{a}-{b}", f"+1 {area} {a} {b}", f"{area}.{a}.{b}", f"+44 20 7946 0{digits(3)}", f"{area} {a} {b}"
        )

    def ip() -> str:
        if random.random() < 0.3:
            return ":".join(f"{n:x}" for n in random.integers(1, 65536, 8))
        return ".".join(str(n) for n in random.integers(1, 255, 4))

    def national() -> str:
        from stdnum.br import cpf
        from stdnum.es import dni

        first, second = f"{random.integers(1, 665):03d}", f"{random.integers(1, 99):02d}"
        nine, eight = digits(9), digits(8)
        brazilian = nine + cpf._calc_check_digits(nine) if hasattr(cpf, "_calc_check_digits") else ""
        choices = [f"{first}-{second}-{random.integers(1, 9999):04d}", eight + dni.calc_check_digit(eight)]
        return pick(*choices, *([cpf.format(brazilian)] if brazilian and cpf.is_valid(brazilian) else []))

    makers: dict[str, Callable[[], str]] = {
        "email": lambda: f"{letters(5)}{pick('.', '_', '+', '')}{letters(4)}@{letters(6)}.{pick('com', 'org', 'co.uk', 'example')}",
        "phone": phone,
        "ip_address": ip,
        "credit_card": card,
        "iban": iban,
        "national_id": national,
    }
    frames = ("You can reach me at {} any day.", "My details: {}", "It was {}, I think", "({})", "Please send it to {}.", "ask for {}; thanks")
    for kind, make in makers.items():
        for _ in range(each):
            value, sentence = make(), pick(*frames)
            start = sentence.index("{}")
            yield sentence.replace("{}", value), kind, (start, start + len(value))
    lookalikes: tuple[Callable[[], str], ...] = (
        lambda: f"version {random.integers(1, 20)}.{random.integers(0, 20)}.{random.integers(0, 20)}",
        lambda: f"{random.integers(1900, 2030)}-{random.integers(1, 13):02d}-{random.integers(1, 29):02d}",
        lambda: f"{random.integers(1, 13)}/{random.integers(1, 29)}/{random.integers(1900, 2030)}",
        lambda: f"order {digits(8)}",
        lambda: f"ISBN 978-{digits(1)}-{digits(4)}-{digits(4)}-{digits(1)}",
        lambda: f"${random.integers(1, 999)},{digits(3)},{digits(3)}",
        lambda: f"{random.random() * 1000:.6f}",
        lambda: f"{random.integers(0, 24):02d}:{random.integers(0, 60):02d}:{random.integers(0, 60):02d}",
        lambda: "".join(random.choice(list("0123456789abcdef"), 40)),
        lambda: f"@{letters(8)}",
        lambda: f"scores of {', '.join(str(n) for n in random.integers(0, 100, 6))}",
        lambda: f"https://{letters(6)}.com/{digits(9)}",
        lambda: f"between {random.integers(1900, 2030)} and {random.integers(1900, 2030)}",
        lambda: f"{digits(16)}",
        lambda: f"std::{letters(4)}::{letters(5)}",
    )
    for _ in range(each * len(makers)):
        yield pick(*frames).replace("{}", lookalikes[int(random.integers(len(lookalikes)))]()), None, None


def personal() -> None:
    """Recall by type on planted data, and precision of all that was found among them and as many look-alikes."""
    planted: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    any_type: Counter[str] = Counter()
    found: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for text, kind, span in planted_spans():
        hits = find(text)
        covered = [place for spans in hits.values() for place in spans]
        if kind is not None and span is not None:
            planted[kind] += 1
            whole[kind] += any(a <= span[0] and b >= span[1] for a, b in hits.get(kind, []))
            any_type[kind] += any(a <= span[0] and b >= span[1] for a, b in covered)
        for name, spans in hits.items():
            found[name] += len(spans)
            right[name] += sum(span is not None and a < span[1] and b > span[0] for a, b in spans)
    for kind in planted:
        print(
            f"{kind:<12} recall {whole[kind] / planted[kind]:.3f} (redacted as any type {any_type[kind] / planted[kind]:.3f}), "
            f"precision {right[kind] / max(found[kind], 1):.3f}, n {planted[kind]}"
        )
    print(f"all          recall {any_type.total() / planted.total():.3f}, precision {right.total() / found.total():.3f}")


# Growth


def grown(bytes_wanted: int, folder: Path, seed: int = 0) -> None:
    """A corpus of `bytes_wanted`: real documents repeated; of the copies 2 % are exact, 5 % have 2 % of their
    words replaced by others of the corpus, the rest between 20 and 50 %."""
    random = np.random.default_rng(seed)
    frame = real_documents().filter(pl.col("text").str.count_matches(r"\S+") >= 20)
    lines = [text.replace("\n", " \n ").split(" ") for text in frame["text"]]
    vocabulary, codes = np.unique(np.array([word for line in lines for word in line], dtype=object), return_inverse=True)
    ends = np.cumsum([len(line) for line in lines])
    pool = codes[np.array([str(w) != "\n" for w in vocabulary])[codes]]
    size = number = 0
    with PartWriter(folder, DOCUMENT_SCHEMA) as writer:
        while size < bytes_wanted:
            rows = []
            for source, begin, end in zip(frame["source"], np.concatenate([[0], ends[:-1]]), ends, strict=True):
                kind = random.random()
                rate = 0.0 if number < len(lines) or kind < 0.02 else 0.02 if kind < 0.07 else random.uniform(0.2, 0.5)
                words = codes[begin:end].copy()
                places = np.flatnonzero(random.random(len(words)) < rate)
                words[places] = random.choice(pool, len(places))
                text = " ".join(vocabulary[words].tolist()).replace(" \n ", "\n")
                rows.append((f"{source}/{number:09d}", source, text, False, "train", f"{source}/{number}", None))
                number += 1
                size += len(text.encode())
                if size >= bytes_wanted:
                    break
            # Ids must rise: the sources' names would part them.
            batch = pl.DataFrame(rows, schema=DOCUMENT_SCHEMA, orient="row")
            writer.write(batch.with_columns(document_id=pl.lit("text/") + pl.col("document_id").str.split("/").list.last()))


def filter_grown(folder: str, workers: int) -> None:
    """One measured run of the chain."""
    place = Path(folder)
    began = perf_counter()
    settings = FilterSettings(dialogues=frozenset())
    with (
        TemporaryDirectory(dir=place) as work,
        PartWriter(place / "kept", KEPT_SCHEMA) as kept,
        PartWriter(place / "gone", REJECT_SCHEMA) as gone,
    ):
        documents = batches(read_parts(place / "in"))
        said: list[str] = []
        filter_corpus(documents, settings, kept=kept.write, rejected=gone.write, work=Path(work), workers=workers, say=said.append)
        disk = sum(file.stat().st_size for file in Path(work).rglob("*") if file.is_file())
    print("\n".join(said), file=sys.stderr)
    report(perf_counter() - began, kept=kept.rows, gone=gone.rows, disk=disk)


def growth(factors: list[int], base_bytes: int, workers: int) -> None:
    """The curve."""
    for factor in factors:
        with TemporaryDirectory() as folder:
            grown(base_bytes * factor, Path(folder) / "in")
            rows = sum(part.height for part in read_parts(Path(folder) / "in", ["document_id"]))
            found = one(["filter-grown", folder, str(workers)], workers)
            size = base_bytes * factor
            print(
                f"{factor:>4}x: {size / 1e6:,.0f} MB, {rows:,} documents, {found['kept']:,} kept: {found['seconds']:,.0f} s, "
                f"{rows / found['seconds']:,.0f} documents/s, {size / 1e6 / found['seconds']:.2f} MB/s, "
                f"peak {found['memory'] / 1e9:.2f} GB, temporary files {found['disk'] / 1e9:.2f} GB",
                flush=True,
            )


# Contamination


def contamination(tokens: int, vocabulary: int = 32_000, samples: int = 2_000, length: int = 200, seed: int = 0) -> None:
    """Samples of which every tenth stands in the training text, three of its tokens changed; tokens are as frequent as Zipf's law has them."""
    random = np.random.default_rng(seed)
    frequencies = 1 / np.arange(1, vocabulary - 2)
    sums = np.cumsum(frequencies / frequencies.sum())

    def draw(count: int) -> np.ndarray:
        return np.minimum(np.searchsorted(sums, random.random(count)), vocabulary - 4).astype(np.uint16) + np.uint16(3)

    asked = [draw(length) for _ in range(samples)]
    with TemporaryDirectory() as folder:
        writer = ShardWriter(Path(folder), "train", vocabulary)
        parts = tokens // 1_000_000
        for number in range(parts):
            part = draw(1_000_000)
            part[::1000] = 1
            for slot, sample in enumerate(asked[::10][number::parts]):
                copy = part[1000 * slot + 100 :][:length]
                copy[:] = sample
                copy[[50, 90, 150]] = 2
            writer.write(part, np.array([len(part)]))
        writer.close()
        began = perf_counter()
        shards = TokenShards(Path(folder), "train").shards
        matches = find_matches([sample.astype(np.int64) for sample in asked], CorpusTokens(shards, border=1))
        shares = contaminated_share(matches, 50)
        report(perf_counter() - began, tokens=tokens, planted=len(asked[::10]), found=int((shares > 0.9).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("compare").add_argument("--documents", type=int, default=6133)
    commands.add_parser("duplicates")
    commands.add_parser("personal-data")
    grow = commands.add_parser("growth")
    grow.add_argument("factors", nargs="+", type=int)
    grow.add_argument("--megabytes", type=int, default=50, help="text at factor 1")
    grow.add_argument("--workers", type=int, default=2)
    commands.add_parser("contamination").add_argument("--tokens", type=int, default=100_000_000)
    measured = commands.add_parser("side", help="one measured run of compare")
    measured.add_argument("name", choices=SIDES)
    measured.add_argument("folder")
    measured.add_argument("workers", type=int)
    filtered = commands.add_parser("filter-grown", help="one measured run of growth")
    filtered.add_argument("folder")
    filtered.add_argument("workers", type=int)
    chosen = parser.parse_args()
    if chosen.command == "compare":
        compare(chosen.documents)
    elif chosen.command == "duplicates":
        duplicates()
    elif chosen.command == "personal-data":
        personal()
    elif chosen.command == "growth":
        growth(chosen.factors, chosen.megabytes * 1_000_000, chosen.workers)
    elif chosen.command == "contamination":
        contamination(chosen.tokens)
    elif chosen.command == "side":
        side(chosen.name, chosen.folder, chosen.workers)
    else:
        filter_grown(chosen.folder, chosen.workers)


if __name__ == "__main__":
    main()
