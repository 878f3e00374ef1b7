"""lm-evaluation-harness: our model as its LM against its own Hugging Face backend on the exported checkpoint, to the sample."""

import gzip
import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from test_task_files import ROWS

from assets.evaluation.harness import harness_model, require_harness
from assets.evaluation.harness_tasks import TaskSource, run_tasks, task_files
from assets.evaluation.task_files import Item, TaskFile, read_task
from model.huggingface import write_huggingface
from model.llama import Llama, LlamaConfig
from model.tokenizer import SentencePieceTokenizer, train_sentencepiece
from resources.errors import TampuError

HERE = all(importlib.util.find_spec(name) for name in ("lm_eval", "accelerate", "transformers"))
needs_harness = pytest.mark.skipif(not HERE, reason="the extra `harness` is not installed")
WORDS = "the cat dog sat on a mat red blue house tree sky runs sleeps eats big small old and very is was in under".split()


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> tuple[Llama, SentencePieceTokenizer, Path]:
    """A model with uneven predictions, its tokenizer, and its export."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("export")
    chance = random.Random(0)
    texts = [" ".join(chance.choice(WORDS) for _ in range(12)).capitalize() + ".\nQuestion: 12? Answer: A, B" for _ in range(400)]
    tokenizer = SentencePieceTokenizer(train_sentencepiece(texts, folder, 320))
    model = Llama(LlamaConfig(vocab_size=tokenizer.vocab_size, dim=32, layers=2, heads=2, kv_heads=1, multiple_of=16, max_context=128))
    model.init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6)
        model.output.weight[3:259] = 0  # no bytes: the libraries write those that are no text in different ways
    export = folder / "export"
    write_huggingface(model, {"tokenizer.model": tokenizer.path.read_bytes()}, export)
    return model.eval(), tokenizer, export


@pytest.fixture(scope="module")
def theirs(ours: tuple[Llama, SentencePieceTokenizer, Path]) -> Any:
    """The harness's own backend on the export."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = ours[2]
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return HFLM(network, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=4, device="cpu", add_bos_token=True)


def choice_items(count: int, seed: int = 0) -> list[Item]:
    chance = random.Random(seed)
    text = lambda words: " ".join(chance.choice(WORDS) for _ in range(words))  # noqa: E731
    return [
        Item(f"Question: {text(chance.randint(3, 12))}?\nAnswer:", tuple(dict.fromkeys(text(chance.randint(1, 5)) for _ in range(4))), 0)
        for _ in range(count)
    ]


def both(lm: Any, other: Any, kind: str, arguments: list[tuple[Any, ...]]) -> tuple[list[Any], list[Any]]:
    from lm_eval.api.instance import Instance

    requests = [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]  # type: ignore[arg-type]
    return getattr(lm, kind)(requests), getattr(other, kind)(requests)


@needs_harness
def test_loglikelihoods_are_the_backends_to_the_sample(ours: Any, theirs: Any) -> None:
    asked = [(item.query, f" {choice}") for item in choice_items(25) for choice in item.choices]
    asked += [("", "the cat"), ("the cat ", "sat"), ("the cat\n", "sat on"), ("mat " * 120, " red blue"), ("Question: A, B", " A")]
    mine, other = both(harness_model(ours[0], ours[1]), theirs, "loglikelihood", asked)
    assert [one[0] for one in mine] == pytest.approx([one[0] for one in other], abs=2e-3)
    assert [one[1] for one in mine] == [bool(one[1]) for one in other]


@needs_harness
def test_rolling_loglikelihoods_are_the_backends(ours: Any, theirs: Any) -> None:
    texts = [("the cat sat on a mat",), ("red blue house tree " * 80,), ("A",)]
    mine, other = both(harness_model(ours[0], ours[1]), theirs, "loglikelihood_rolling", texts)
    assert mine == pytest.approx(other, rel=1e-5)


@needs_harness
def test_greedy_texts_are_the_backends_with_stops_and_limits(ours: Any, theirs: Any) -> None:
    settings = [
        {"until": ["\n"], "max_gen_toks": 40},
        {"until": ["the", "."], "max_gen_toks": 12, "do_sample": False},
        {"until": [], "max_gen_toks": 5},
    ]
    asked = [(item.query, one) for item in choice_items(4, seed=3) for one in settings]
    mine, other = both(harness_model(ours[0], ours[1]), theirs, "generate_until", asked)
    assert mine == other


@needs_harness
@pytest.mark.parametrize("layout", ["arc_easy", "mmlu", "winogrande", "lambada", "nq_open"])
def test_a_local_task_gives_both_backends_the_same_result_for_every_question(ours: Any, theirs: Any, layout: str, tmp_path: Path) -> None:
    from assets.evaluation.harness import evaluate, file_task

    chance = random.Random(layout)
    rows = []
    for _ in range(12):
        row = json.loads(json.dumps(ROWS[layout]))
        for name, value in row.items():
            if isinstance(value, str) and name not in ("answerKey", "answer", "label", "subject"):
                row[name] = f"{value} {' '.join(chance.choice(WORDS) for _ in range(4))}"
        rows.append(row)
    path = tmp_path / "task.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    read = read_task("local", layout, path)
    shots, task = read.items[:2], TaskFile("local", read.layout, read.items[2:])
    found = [evaluate(lm, [file_task(task, layout, shots)]) for lm in (harness_model(ours[0], ours[1]), theirs)]
    metrics = found[0]["samples"]["local"][0]["metrics"]
    for mine, other in zip(found[0]["samples"]["local"], found[1]["samples"]["local"], strict=True):
        assert [mine[name] for name in metrics] == [other[name] for name in metrics]
        assert mine["arguments"] == other["arguments"]
    assert {k: v for k, v in found[0]["results"]["local"].items() if "," in k} == {
        k: v for k, v in found[1]["results"]["local"].items() if "," in k
    }


@needs_harness
def test_a_file_becomes_rows_with_standard_errors_samples_and_rejects(ours: Any, tmp_path: Path) -> None:
    rows = [{"goal": f"eat a {word}", "sol1": "sit on a mat", "sol2": "run", "label": i % 2} for i, word in enumerate(WORDS[:10])] + [
        {"goal": "x"}
    ]
    path = tmp_path / "piqa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = [TaskSource(name="piqa", path=str(path), limit=8)]
    found = run_tasks(ours[0], ours[1], "m", sources, task_files(sources), run_code=False)
    by_metric = {row["metric"]: row for row in found.rows}
    assert set(by_metric) == {"acc", "acc_norm"} and all(row["n"] == 8 and row["task_group"] == "Commonsense" for row in found.rows)
    right = [sample["value"] for sample in found.samples if sample["metric"] == "acc"]
    assert by_metric["acc"]["value"] == sum(right) / 8
    assert by_metric["acc"]["stderr"] == pytest.approx((by_metric["acc"]["value"] * (1 - by_metric["acc"]["value"]) / 7) ** 0.5)
    assert found.rejected == [{"task": "piqa", "line": 11, "reason": "field 'sol1' is missing"}]


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="the extra `harness` is installed")
def test_without_the_extra_the_way_to_get_it_is_told(ours: Any) -> None:
    with pytest.raises(TampuError, match=r"pip install --constraint constraints\.txt 'tampu\[harness\]'"):
        require_harness()
    with pytest.raises(TampuError, match="lm-evaluation-harness"):
        harness_model(ours[0], ours[1])
