"""Speed of evaluation: requests of multiple-choice tasks, the twenty questions on a large warehouse, readers while runs write.

    python -m bench.evaluation requests            # ours beside the harness's Hugging Face backend on the same weights (extra `harness`)
    python -m bench.evaluation queries --rows 1000000
    python -m bench.evaluation readers --readers 4 --seconds 20

Each prints a table, or JSON with --json. Close other programs first.
"""

import argparse
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from resources.disk import parquet_bytes
from resources.store import ArtifactStore
from resources.tables import COMMON, TABLES
from resources.warehouse import CURRENT, query, rebuild_views

PAGE = Path(__file__).resolve().parent.parent / "docs" / "queries.md"
RUNS = 5
ROUNDS = 40


def spread(work: Callable[[], Any], runs: int = RUNS) -> tuple[float, float, float]:
    """Median, least and most seconds of `runs` runs after one that does not count."""
    work()
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), min(seconds), max(seconds)


def requests(_: argparse.Namespace) -> list[dict[str, Any]]:
    """Requests a second of questions with four choices, for three lengths of what the choices share."""
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer, LlamaForCausalLM

    from assets.evaluation.harness import harness_model
    from bench.setting import network
    from model.huggingface import write_huggingface
    from model.tokenizer import SentencePieceTokenizer, train_sentencepiece
    from resources.profiles import active

    chance = random.Random(0)
    words = ["".join(chance.choice("aeiourstnlmdp") for _ in range(chance.randint(2, 7))) for _ in range(3000)]
    text = lambda count: " ".join(chance.choice(words) for _ in range(count))  # noqa: E731
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = SentencePieceTokenizer(train_sentencepiece([text(200) for _ in range(300)], Path(folder), active().vocab_size))
        model = network().eval()
        write_huggingface(model, {"tokenizer.model": tokenizer.path.read_bytes()}, Path(folder))
        theirs = HFLM(
            LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32),
            tokenizer=AutoTokenizer.from_pretrained(folder),
            batch_size=32,
            device="cpu",
            add_bos_token=True,
        )
        ours = harness_model(model, tokenizer)
        examples = "".join(f"Question: {text(12)}?\nAnswer: {text(3)}\n\n" for _ in range(5))
        for name, before, length, answer in (
            ("0 shots, 15 words", "", 15, 4),
            ("0 shots, 60 words", "", 60, 8),
            ("5 shots, one letter", examples, 15, 0),
        ):
            asked = []
            for _ in range(100):
                question = f"{before}Question: {text(length)}?\nAnswer:"
                asked += [(question, f" {text(chance.randint(1, 2 * answer)) if answer else letter}") for letter in "ABCD"]
            batch = [Instance(request_type="loglikelihood", doc={}, arguments=one, idx=0) for one in asked]  # type: ignore[arg-type]
            found = {}
            for side, lm in (("ours", ours), ("harness, Hugging Face", theirs)):
                values = lm.loglikelihood(batch, disable_tqdm=True)
                median, least, most = spread(lambda lm=lm, batch=batch: lm.loglikelihood(batch, disable_tqdm=True))
                found[side] = (values, median)
                rows.append(
                    {
                        "what": name,
                        "side": side,
                        "requests_a_second": len(asked) / median,
                        "least": len(asked) / most,
                        "most": len(asked) / least,
                    }
                )
            off = max(abs(a[0] - b[0]) for a, b in zip(found["ours"][0], found["harness, Hugging Face"][0], strict=True))
            rows[-2] |= {"times": found["harness, Hugging Face"][1] / found["ours"][1], "largest_difference_nats": off}
    return rows


def queries(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds of each question of docs/queries.md on a warehouse with so many rows."""
    questions = re.findall(r"^## (\d+\. .*?)$.*?^```sql\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(home=folder)
        made = fill(store, arguments.rows)
        rebuild_views(store)
        rows = []
        for title, sql in questions:
            median, least, most = spread(lambda sql=sql: query(store, sql), runs=3)
            rows.append({"question": title, "seconds": median, "least": least, "most": most, "rows_found": query(store, sql).height})
    slowest = max(row["seconds"] for row in rows)
    rows.append(
        {
            "question": f"slowest of {len(rows)} with {made:,} rows in {arguments.rows:,}",
            "seconds": slowest,
            "least": None,
            "most": None,
            "rows_found": None,
        }
    )
    return rows


def fill(store: ArtifactStore, rows: int) -> int:
    """A warehouse of `ROUNDS` rounds: half of the rows are training metrics, the rest is spread over the other tables, a file a round."""
    chance = random.Random(0)
    share = {table: rows // 2 if table == "training_metrics" else rows // 2 // (len(TABLES) - 1) for table in TABLES}
    current: list[dict[str, Any]] = []
    total = 0
    for number in range(1, ROUNDS + 1):
        for table, count in share.items():
            each = max(1, count // ROUNDS)
            asset = {"training_metrics": "rlhf/policy", "lineage": "rlhf/policy", "artifacts": "rlhf/policy"}.get(table, f"evaluation/{table}")
            key = f"{number:020x}"
            columns: dict[str, Any] = {
                "asset": [asset] * each,
                "key": [key] * each,
                "data_version": [key * 3] * each,
                "profile": ["tiny"] * each,
                "round": [f"v{number}"] * each,
            }
            for name, kind in TABLES[table].items():
                columns[name] = _values(table, name, kind, each, number, chance)
            schema = {**COMMON, **TABLES[table]}
            path = store.root / "warehouse" / table / f"{asset.replace('/', '__')}@v{number}@tiny@{key}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(parquet_bytes(pl.DataFrame(columns, schema=schema)))
            total += each
            current.append(
                {"profile": "tiny", "asset": asset, "partition": f"v{number}", "round": f"v{number}", "key": key, "data_version": key * 3}
            )
    frame = pl.DataFrame(current).unique(maintain_order=True).with_columns(materialized_at=pl.datetime(2026, 1, 1)).select(*CURRENT)
    path = store.root / "warehouse" / "current" / "all.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(parquet_bytes(frame.cast(dict(CURRENT))))
    return total


VOCABULARY: dict[str, tuple[str, ...]] = {
    "metric": ("train_loss", "validation_loss", "violation", "false_refusal", "acc"),
    "model": ("sft/model", "rlhf/chat_model", "rlhf/policy"),
    "opponent": ("sft/model", "rlhf/policy"),
    "judge": ("annotator", "helpfulness_reward", "safety_reward", "human"),
    "axis": ("helpfulness", "safety", "helpfulness: task"),
    "suite": ("unsafe", "borderline", "unseen_actions"),
    "category": ("all", "illicit_and_criminal", "hateful_and_harmful"),
    "reward_model": ("reward/helpfulness", "reward/safety", "longer wins"),
    "test_set": ("helpfulness", "safety"),
    "rating": ("significantly better", "better", "all"),
    "variant": ("with", "without"),
    "relation": ("parent", "batch", "file"),
    "child": ("rlhf/policy", "preferences/dataset", "rlhf/samples"),
    "parent": ("preferences/batches", "sft/data", "rlhf/samples"),
    "question": ("preference", "violation"),
    "person": ("all", "ann", "ben"),
}


def _values(table: str, name: str, kind: pl.DataType, count: int, number: int, chance: random.Random) -> Any:
    if name in VOCABULARY:
        words = VOCABULARY[name]
        return [words[i % len(words)] for i in range(count)]
    if name == "parent_partition" or name == "batch":
        return [f"week-{1 + i % number}" for i in range(count)]
    if kind == pl.String():
        return [f"{name} {i % 50}" for i in range(count)]
    if kind == pl.Int64():
        return range(count)
    if kind == pl.Boolean():
        return [i % 2 == 0 for i in range(count)]
    if kind == pl.Float64():
        return [chance.random() for _ in range(count)]
    return pl.Series([None] * count, dtype=kind)


READER = """
import sys, time, json
from resources.store import ArtifactStore
from resources.warehouse import query
store, until = ArtifactStore(home=sys.argv[1]), time.time() + float(sys.argv[2])
asked, errors, longest = 0, [], 0.0
while time.time() < until:
    began = time.perf_counter()
    try:
        row = query(store, "SELECT count(*), count(value), count(DISTINCT key) FROM training_metrics_current").row(0)
        if row[0] != row[1] or row[2] != 1:
            errors.append(str(row))
    except Exception as error:
        errors.append(str(error))
    longest = max(longest, time.perf_counter() - began)
    asked += 1
print(json.dumps([asked, errors[:3], len(errors), longest]))
"""


def readers(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Queries and errors of several processes while another publishes new versions and rebuilds the views as fast as it can."""
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(home=folder)
        _publish(store, 0)
        rebuild_views(store)
        command = [sys.executable, "-c", READER, folder, str(arguments.seconds)]
        started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(arguments.readers)]
        written = 0
        while any(process.poll() is None for process in started):
            written += 1
            _publish(store, written)
            rebuild_views(store)
        told = [json.loads(process.communicate()[0]) for process in started]
    return [
        {
            "readers": arguments.readers,
            "seconds": arguments.seconds,
            "versions_written": written,
            "queries": sum(one[0] for one in told),
            "errors": sum(one[2] for one in told),
            "first_errors": [text for one in told for text in one[1]][:3],
            "longest_query_seconds": max(one[3] for one in told),
        }
    ]


def _publish(store: ArtifactStore, number: int) -> None:
    """Another version of 1,000 rows, made current by the same steps as an asset's: rows first, then what is current."""
    from resources.disk import write_whole

    key = f"{number:020x}"
    common = {"asset": "sft/model", "key": key, "data_version": key, "profile": "tiny", "round": None}
    frame = pl.DataFrame(
        [{**common, "step": step, "tokens": step, "metric": "train_loss", "value": 1.0} for step in range(1000)],
        schema={**COMMON, **TABLES["training_metrics"]},
    )
    write_whole(store.root / "warehouse" / "training_metrics" / f"sft__model@_@tiny@{key}.parquet", parquet_bytes(frame), durable=False)
    now = datetime.now(UTC).replace(tzinfo=None)
    row = {"profile": "tiny", "asset": "sft/model", "partition": None, "round": None, "key": key, "data_version": key, "materialized_at": now}
    path = store.root / "warehouse" / "current" / f"sft__model@_@tiny@{key}.parquet"
    write_whole(path, parquet_bytes(pl.DataFrame([row], schema=CURRENT)), durable=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["requests", "queries", "readers"])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = {"requests": requests, "queries": queries, "readers": readers}[arguments.what](arguments)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    with pl.Config(tbl_rows=60, tbl_cols=20, fmt_str_lengths=90, tbl_width_chars=180):
        print(pl.DataFrame(rows, infer_schema_length=None))


if __name__ == "__main__":
    main()
