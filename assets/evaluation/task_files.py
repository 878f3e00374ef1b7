"""Benchmarks from local JSONL files, in the layouts in which the field publishes them, checked row by row.

A file is JSON lines, plain or gzipped. `LAYOUTS` says for each benchmark which group of the paper's it belongs to (table 3), how many
shots the paper gives, and how a row becomes an item.
"""

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from resources.errors import TampuError

Row = Mapping[str, Any]


class BadRow(Exception):
    """Why a row is no item."""


@dataclass(frozen=True)
class Item:
    """A question. Multiple choice: `choices` and the index `answer`. Generation: `targets`, any of which is right. Cloze: one choice
    that has to be the greedy continuation. `contexts` (one a choice, the same continuation) stand in for `query` in WinoGrande's way."""

    query: str
    choices: tuple[str, ...] = ()
    answer: int = 0
    targets: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    subject: str = ""


Kind = Literal["multiple_choice", "generation", "cloze", "code"]


@dataclass(frozen=True)
class Layout:
    """How a benchmark's rows are read, and how the paper asks it."""

    group: str
    shots: int
    kind: Kind
    read: Callable[[Row], Item]
    description: str = ""


@dataclass(frozen=True)
class TaskFile:
    """The items of a file, and the lines that are none, by reason."""

    name: str
    layout: Layout
    items: list[Item]
    rejected: list[tuple[int, str]] = field(default_factory=list)

    @property
    def reasons(self) -> dict[str, int]:
        """Reason -> lines."""
        return dict(Counter(reason for _, reason in self.rejected))


def read_task(name: str, layout: str, path: Path, limit: int | None = None) -> TaskFile:
    """The items of a file, `limit` at most. Rows that lack a field or whose answer is none of the choices are counted and kept out.

    Raises TampuError for an unknown layout, a file that cannot be read, and a task without a single item.
    """
    if layout not in LAYOUTS:
        raise TampuError(f"task {name}: there is no layout {layout!r}; the layouts are {', '.join(LAYOUTS)}")
    task = TaskFile(name, LAYOUTS[layout], [])
    for line, row in json_rows(name, path):
        if limit is not None and len(task.items) >= limit:
            break
        try:
            task.items.append(task.layout.read(_object(row)))
        except BadRow as problem:
            task.rejected.append((line, str(problem)))
        except KeyError as missing:
            task.rejected.append((line, f"field {missing.args[0]!r} is missing"))
        except (TypeError, AttributeError, ValueError) as problem:
            task.rejected.append((line, f"a field has the wrong type ({problem})"))
    if not task.items:
        told = "; ".join(f"{number} × {reason}" for reason, number in task.reasons.items()) or "it has no rows"
        raise TampuError(f"task {name}: {path} gives no item in layout {layout!r}: {told}")
    return task


def json_rows(name: str, path: Path) -> Iterator[tuple[int, Any]]:
    """(line number, JSON value or None where the line is no JSON) of every line that is not blank.

    Raises TampuError when the file cannot be read.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    try:
                        yield number, json.loads(line)
                    except ValueError:
                        yield number, None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise TampuError(f"{name}: {path} can not be read ({error}): expected JSON lines in UTF-8, plain or .gz") from None


def _object(row: Any) -> Row:
    if not isinstance(row, dict):
        raise BadRow("the line is no JSON object")
    return row


def _choice(choices: list[str], answer: int) -> tuple[tuple[str, ...], int]:
    """Choices and answer, checked."""
    if len(choices) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise BadRow("fewer than two choices with text")
    if not 0 <= answer < len(choices):
        raise BadRow("the answer is none of the choices")
    return tuple(choice.strip() for choice in choices), answer


def _by_label(row: Row, question: str) -> Item:
    """ARC, OpenBookQA, CommonsenseQA: choices with text and label, and answerKey."""
    labels = list(row["choices"]["label"])
    if row["answerKey"] not in labels:
        raise BadRow("the answer is none of the choices")
    choices, answer = _choice(list(row["choices"]["text"]), labels.index(row["answerKey"]))
    return Item(question, choices, answer)


def _question(row: Row) -> Item:
    return _by_label(row, f"Question: {_text(row, 'question')}\nAnswer:")


def _openbookqa(row: Row) -> Item:
    return _by_label(row, _text(row, "question_stem"))


def _boolq(row: Row) -> Item:
    if not isinstance(row["answer"], bool):
        raise BadRow("the answer is neither true nor false")
    return Item(f"{_text(row, 'passage')}\nQuestion: {_text(row, 'question')}?\nAnswer:", ("no", "yes"), int(row["answer"]))


def _hellaswag(row: Row) -> Item:
    def clean(text: str) -> str:
        return re.sub(r"\s+", " ", re.sub(r"\[.*?\]", "", text.replace(" [title]", ". "))).strip()

    context = f"{row['activity_label']}: {row['ctx_a']} {str(row['ctx_b']).capitalize()}"
    choices, answer = _choice([clean(ending) for ending in row["endings"]], int(row["label"]))
    return Item(clean(context), choices, answer)


def _mmlu(row: Row) -> Item:
    choices, answer = _choice(list(row["choices"]), int(row["answer"]))
    letters = "ABCDEFGHIJ"[: len(choices)]
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(letters, choices, strict=True))
    return Item(f"{_text(row, 'question').strip()}\n{listed}\nAnswer:", tuple(letters), answer, subject=str(row.get("subject", "")))


def _piqa(row: Row) -> Item:
    choices, answer = _choice([row["sol1"], row["sol2"]], int(row["label"]))
    return Item(f"Question: {_text(row, 'goal')}\nAnswer:", choices, answer)


def _sciq(row: Row) -> Item:
    choices, answer = _choice([row["distractor1"], row["distractor2"], row["distractor3"], row["correct_answer"]], 3)
    return Item(f"{row.get('support', '')}\nQuestion: {_text(row, 'question')}\nAnswer:".lstrip(), choices, answer)


def _social_iqa(row: Row) -> Item:
    choices, answer = _choice([row["answerA"], row["answerB"], row["answerC"]], int(row["label"]) - 1)
    return Item(f"Q: {_text(row, 'context')} {_text(row, 'question')}\nA:", choices, answer)


def _winogrande(row: Row) -> Item:
    sentence = _text(row, "sentence")
    if sentence.count("_") != 1:
        raise BadRow("the sentence has not exactly one blank")
    before, after = sentence.split("_")
    choices, answer = _choice([row["option1"], row["option2"]], int(row["answer"]) - 1)
    return Item("", (after.strip(),), answer, contexts=tuple(before + choice for choice in choices))


def _truthfulqa(row: Row) -> Item:
    """MC1: the best answer among the incorrect ones."""
    wrong = [text.strip() for text in _text(row, "Incorrect Answers").split(";") if text.strip()]
    choices, answer = _choice([_text(row, "Best Answer"), *wrong], 0)
    return Item(f"Q: {_text(row, 'Question')}\nA:", choices, answer)


def _lambada(row: Row) -> Item:
    return Item(_text(row, "context"), (_text(row, "continuation").strip(),))


def _nq_open(row: Row) -> Item:
    return Item(f"Q: {_text(row, 'question')}?\nA:", targets=_targets(row["answer"]))


def _triviaqa(row: Row) -> Item:
    return Item(f"Q: {_text(row, 'question')}\nA:", targets=_targets([row["answer"]["value"], *row["answer"]["aliases"]]))


def _gsm8k(row: Row) -> Item:
    _, mark, answer = _text(row, "answer").rpartition("#### ")
    if not mark:
        raise BadRow("the answer has no final number after ####")
    return Item(f"Question: {_text(row, 'question')}\nAnswer:", targets=(answer.strip().replace(",", ""),), code=(_text(row, "answer"),))


def _humaneval(row: Row) -> Item:
    return Item(_text(row, "prompt"), code=(_text(row, "test"), f"check({_text(row, 'entry_point')})"))


def _mbpp(row: Row) -> Item:
    tests = [str(test) for test in row["test_list"]]
    if not tests:
        raise BadRow("there is no test")
    query = f"You are an expert Python programmer, and here is your task: {_text(row, 'text')} Your code should pass these tests:\n\n"
    return Item(query + "\n".join(tests) + "\n[BEGIN]\n", code=(str(row.get("test_setup_code") or ""), *tests))


def _targets(answers: Any) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(str(answer).strip() for answer in answers if str(answer).strip()))
    if not found:
        raise BadRow("there is no answer")
    return found


def _text(row: Row, name: str) -> str:
    value = row[name]
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"field {name!r} is no text")
    return value


# Groups and shots of the paper's tables 3 and 19 to 25; SciQ, LAMBADA and TruthfulQA MC1 are not in them.
LAYOUTS: dict[str, Layout] = {
    "arc_easy": Layout("Commonsense", 0, "multiple_choice", _question),
    "arc_challenge": Layout("Commonsense", 0, "multiple_choice", _question),
    "commonsense_qa": Layout("Commonsense", 7, "multiple_choice", _question),
    "hellaswag": Layout("Commonsense", 0, "multiple_choice", _hellaswag),
    "openbookqa": Layout("Commonsense", 0, "multiple_choice", _openbookqa),
    "piqa": Layout("Commonsense", 0, "multiple_choice", _piqa),
    "social_iqa": Layout("Commonsense", 0, "multiple_choice", _social_iqa),
    "winogrande": Layout("Commonsense", 0, "multiple_choice", _winogrande),
    "boolq": Layout("Reading", 0, "multiple_choice", _boolq),
    "mmlu": Layout("MMLU", 5, "multiple_choice", _mmlu, "The following are multiple choice questions (with answers).\n\n"),
    "sciq": Layout("Other", 0, "multiple_choice", _sciq),
    "truthfulqa": Layout("Other", 0, "multiple_choice", _truthfulqa),
    "lambada": Layout("Other", 0, "cloze", _lambada),
    "nq_open": Layout("World knowledge", 5, "generation", _nq_open, "Answer these questions:\n\n"),
    "triviaqa": Layout("World knowledge", 5, "generation", _triviaqa, "Answer these questions:\n\n"),
    "gsm8k": Layout("Math", 8, "generation", _gsm8k),
    "humaneval": Layout("Code", 0, "code", _humaneval),
    "mbpp": Layout("Code", 3, "code", _mbpp),
}


def normalized(answer: str) -> str:
    """The exact-match form of open questions: lower case, no articles, no punctuation, single spaces (LLaMA, arXiv:2302.13971, 3.2)."""
    text = re.sub(r"\b(a|an|the)\b", " ", re.sub(r"[^\w\s]", "", answer.lower()))
    return " ".join(text.split())


def is_right(item: Item, text: str, layout: str) -> bool:
    """Whether a generated answer matches a target: for GSM8K its last number, else its beginning up to a newline, period or comma."""
    if layout == "gsm8k":
        numbers = re.findall(r"-?\d+(?:\.\d+)?", text.replace(",", ""))
        return bool(numbers) and float(numbers[-1]) == float(item.targets[0])
    return normalized(re.split(r"[\n.,]", text.strip())[0]) in {normalized(target) for target in item.targets}
