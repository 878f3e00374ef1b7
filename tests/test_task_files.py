"""Benchmark files in the field's layouts: what becomes an item, what is counted out, and the right answers."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from assets.evaluation.harness_tasks import TaskSource, group_means, read_sources, task_files
from assets.evaluation.task_files import LAYOUTS, Item, is_right, normalized, read_task
from resources.errors import TampuError

FOUR = {"text": ["red", "green", "blue", "black"], "label": ["A", "B", "C", "D"]}
ROWS: dict[str, dict[str, Any]] = {
    "arc_easy": {"question": "What colour is grass?", "choices": FOUR, "answerKey": "B"},
    "arc_challenge": {"question": "What colour is coal?", "choices": FOUR, "answerKey": "D"},
    "commonsense_qa": {"question": "Sky?", "choices": FOUR, "answerKey": "C"},
    "hellaswag": {
        "activity_label": "Cooking",
        "ctx_a": "[header] A man fries an egg.",
        "ctx_b": "he",
        "endings": ["eats [title] it.", "drives away.", "sings.", "swims."],
        "label": "0",
    },
    "openbookqa": {"question_stem": "Grass is", "choices": FOUR, "answerKey": "B"},
    "piqa": {"goal": "boil water", "sol1": "heat it", "sol2": "cool it", "label": 0},
    "social_iqa": {
        "context": "Ann fell.",
        "question": "How does she feel?",
        "answerA": "hurt",
        "answerB": "rich",
        "answerC": "tall",
        "label": "1",
    },
    "winogrande": {"sentence": "The cup did not fit the box because _ was too big.", "option1": "the cup", "option2": "the box", "answer": "1"},
    "boolq": {"question": "is grass green", "answer": True, "passage": "Grass is green."},
    "mmlu": {"subject": "maths", "question": "1 + 1?", "choices": ["1", "2", "3", "4"], "answer": 1},
    "sciq": {
        "question": "What do plants take in?",
        "distractor1": "gold",
        "distractor2": "tin",
        "distractor3": "lead",
        "correct_answer": "water",
        "support": "",
    },
    "truthfulqa": {
        "Question": "Do pigs fly?",
        "Best Answer": "No",
        "Correct Answers": "No; They do not",
        "Incorrect Answers": "Yes; On Mondays",
    },
    "lambada": {"context": "He drank the", "continuation": "tea"},
    "nq_open": {"question": "who wrote hamlet", "answer": ["Shakespeare", "William Shakespeare"]},
    "triviaqa": {"question": "Who wrote Hamlet?", "answer": {"value": "Shakespeare", "aliases": ["The Bard"]}},
    "gsm8k": {"question": "2 and 2?", "answer": "2 + 2 = 4\n#### 4"},
    "humaneval": {"prompt": "def one():\n", "test": "def check(f):\n    assert f() == 1", "entry_point": "one"},
    "mbpp": {"text": "Write a function one.", "test_list": ["assert one() == 1"], "test_setup_code": ""},
}


def written(path: Path, rows: list[Any]) -> Path:
    text = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n"
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def test_every_layout_has_an_example_here_and_the_papers_shots() -> None:
    assert list(ROWS) and set(ROWS) == set(LAYOUTS)
    shots = {name: layout.shots for name, layout in LAYOUTS.items() if layout.shots}
    assert shots == {"commonsense_qa": 7, "mmlu": 5, "nq_open": 5, "triviaqa": 5, "gsm8k": 8, "mbpp": 3}
    assert {name for name, layout in LAYOUTS.items() if layout.group == "Commonsense"} == {
        "arc_easy", "arc_challenge", "commonsense_qa", "hellaswag", "openbookqa", "piqa", "social_iqa", "winogrande"
    }  # fmt: skip


@pytest.mark.parametrize("layout", list(ROWS))
def test_a_row_of_every_layout_is_read_plain_and_gzipped(layout: str, tmp_path: Path) -> None:
    plain = read_task("t", layout, written(tmp_path / "a.jsonl", [ROWS[layout], "", ROWS[layout]]))
    packed = read_task("t", layout, written(tmp_path / "a.jsonl.gz", [ROWS[layout]]))
    assert len(plain.items) == 2 and packed.items == plain.items[:1] and not plain.rejected
    item = plain.items[0]
    right = {"mmlu": "B", "boolq": "yes", "hellaswag": "eats. it.", "lambada": "tea", "sciq": "water", "truthfulqa": "No", "piqa": "heat it"}
    if layout in right:
        assert item.choices[item.answer] == right[layout]
    if layout == "winogrande":
        assert item.contexts[item.answer] == "The cup did not fit the box because the cup" and item.choices == ("was too big.",)


@pytest.mark.parametrize("layout", list(ROWS))
def test_a_missing_field_is_named_counted_and_the_other_rows_are_kept(layout: str, tmp_path: Path) -> None:
    for name in ROWS[layout]:
        if name in ("support", "subject", "test_setup_code", "Correct Answers"):
            continue
        broken = {key: value for key, value in ROWS[layout].items() if key != name}
        task = read_task("t", layout, written(tmp_path / "a.jsonl", [broken, ROWS[layout]]))
        assert len(task.items) == 1 and task.rejected == [(1, f"field {name!r} is missing")]


@pytest.mark.parametrize(
    ("layout", "change", "reason"),
    [
        ("arc_easy", {"answerKey": "E"}, "the answer is none of the choices"),
        ("piqa", {"label": 2}, "the answer is none of the choices"),
        ("mmlu", {"answer": -1}, "the answer is none of the choices"),
        ("social_iqa", {"label": "4"}, "the answer is none of the choices"),
        ("hellaswag", {"endings": ["a"]}, "fewer than two choices with text"),
        ("winogrande", {"sentence": "No blank."}, "the sentence has not exactly one blank"),
        ("boolq", {"answer": "yes"}, "the answer is neither true nor false"),
        ("nq_open", {"answer": []}, "there is no answer"),
        ("gsm8k", {"answer": "4"}, "the answer has no final number after ####"),
        ("lambada", {"context": ""}, "field 'context' is no text"),
    ],
)
def test_what_is_no_question_says_why(layout: str, change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    task = read_task("t", layout, written(tmp_path / "a.jsonl", [ROWS[layout] | change, ROWS[layout], "[1]", "{broken"]))
    assert len(task.items) == 1
    assert task.reasons == {reason: 1, "the line is no JSON object": 2}


def test_an_empty_task_an_unknown_layout_and_an_unreadable_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TampuError, match=r"task t: .*a\.jsonl gives no item in layout 'piqa': 1 × field 'goal' is missing"):
        read_task("t", "piqa", written(tmp_path / "a.jsonl", [{"sol1": "a", "sol2": "b", "label": 0}]))
    with pytest.raises(TampuError, match="it has no rows"):
        read_task("t", "piqa", written(tmp_path / "a.jsonl", []))
    with pytest.raises(TampuError, match="there is no layout 'quiz'; the layouts are arc_easy"):
        read_task("t", "quiz", tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl.gz").write_bytes(b"no gzip")
    for name in ("missing.jsonl", "b.jsonl.gz"):
        with pytest.raises(TampuError, match="can not be read"):
            read_task("t", "piqa", tmp_path / name)


@pytest.mark.parametrize(
    ("layout", "text", "right"),
    [
        ("nq_open", " The Bard!\nQ: next", True),
        ("nq_open", "william shakespeare. He", True),
        ("nq_open", "Marlowe", False),
        ("gsm8k", "2 + 2 = 4, so 1,004", True),
        ("gsm8k", "It is 1003.", False),
        ("gsm8k", "no number", False),
    ],
)
def test_generated_answers_match_as_in_the_paper(layout: str, text: str, right: bool) -> None:
    targets = ("1004",) if layout == "gsm8k" else ("Bard", "William Shakespeare")
    assert is_right(Item("", targets=targets), text, layout) is right
    assert normalized("The  U.S.A., a country") == "usa country"


def test_examples_come_from_their_own_file_or_are_taken_out_of_the_questions(tmp_path: Path) -> None:
    rows = [ROWS["nq_open"] | {"question": f"question {i}"} for i in range(8)]
    source = TaskSource(name="nq_open", path=str(written(tmp_path / "a.jsonl", rows)))
    (task, examples) = read_sources([source], task_files([source]))["nq_open"]
    assert len(examples) == 5 and [item.query for item in task.items] == [f"Q: question {i}?\nA:" for i in (5, 6, 7)]
    dev = [ROWS["mmlu"] | {"subject": subject, "question": f"{subject} {i}"} for subject in ("law", "maths") for i in range(6)]
    source = TaskSource(name="mmlu", path=str(written(tmp_path / "b.jsonl", [ROWS["mmlu"]])), shots_path=str(written(tmp_path / "c.jsonl", dev)))
    (task, examples) = read_sources([source], task_files([source]))["mmlu"]
    assert len(task.items) == 1 and [item.subject for item in examples] == ["law"] * 5 + ["maths"] * 5
    with pytest.raises(TampuError, match="no question is left after 8 examples"):
        source = TaskSource(name="nq", layout="nq_open", path=str(tmp_path / "a.jsonl"), shots=8)
        read_sources([source], task_files([source]))
    with pytest.raises(TampuError, match="two tasks have the same name"):
        task_files([source, source])


def test_a_group_is_the_plain_mean_of_its_tasks_and_keeps_a_standard_error() -> None:
    common = {"model": "m", "shots": 0, "n": 100}
    rows = [
        {**common, "task": "piqa", "task_group": "Commonsense", "metric": "acc", "value": 0.1, "stderr": 0.01},
        {**common, "task": "piqa", "task_group": "Commonsense", "metric": "acc_norm", "value": 0.6, "stderr": 0.03},
        {**common, "task": "winogrande", "task_group": "Commonsense", "metric": "acc", "value": 0.5, "stderr": 0.04},
        {**common, "task": "boolq", "task_group": "Reading", "metric": "acc", "value": 0.7, "stderr": 0.02},
    ]
    (group,) = group_means(rows)
    assert (group["task_group"], group["value"], group["n"]) == ("Commonsense", 0.55, 200)
    assert group["stderr"] == pytest.approx(0.025)


@pytest.mark.skipif(not os.environ.get("TAMPU_EVALS"), reason="TAMPU_EVALS names no folder with the public benchmark files")
def test_the_public_files_are_read_whole() -> None:
    names = {"hellaswag": "hellaswag_val", "mmlu": "mmlu_val", "gsm8k": "gsm8k_train", "mbpp": "mbpp_test"}
    for layout in LAYOUTS:
        task = read_task(layout, layout, Path(os.environ["TAMPU_EVALS"]) / f"{names.get(layout, layout)}.jsonl.gz")
        assert len(task.rejected) <= 0.01 * len(task.items), (layout, task.reasons)
