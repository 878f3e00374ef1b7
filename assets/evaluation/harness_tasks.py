"""Academic benchmarks of a model: local files and tasks by name through the harness, code tasks in the sandbox; the paper's groups."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from assets.evaluation.harness import benchmark_rows, evaluate, file_task, harness_model
from assets.evaluation.statistics import share
from assets.evaluation.task_files import LAYOUTS, Item, TaskFile, read_task
from resources.errors import TampuError

if TYPE_CHECKING:
    from model.llama import Llama
    from model.tokenizer import Tokenizer


class TaskSource(dg.Config):
    """A benchmark: a local file in a known layout, or a task of the harness by name (needs a hub)."""

    name: str = Field(min_length=1, description="what tables call it; without a path, the harness's own name of a task")
    path: str = Field("", description="JSON lines, plain or .gz")
    layout: str = Field("", description=f"one of {', '.join(LAYOUTS)}; default: the name")
    shots: int = Field(-1, ge=-1, description="examples before each question; -1: as in the paper")
    shots_path: str = Field("", description="file of the examples; default: the first rows of `path`, which are then not asked")
    limit: int = Field(0, ge=0, description="questions at most; 0: all")


@dataclass
class Found:
    """Rows of `benchmarks`, one row a question, and rows of files that are no question."""

    rows: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    rejected: list[dict[str, Any]]


def task_files(sources: Sequence[TaskSource]) -> dict[str, Path]:
    """The raw files of the sources, which enter the key: {name in the key: path}."""
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise TampuError(f"evaluation/benchmarks.tasks: two tasks have the same name ({', '.join(names)})")
    files = {f"{one.name}/questions": Path(one.path) for one in sources if one.path}
    return files | {f"{one.name}/shots": Path(one.shots_path) for one in sources if one.shots_path}


def read_sources(sources: Sequence[TaskSource], files: Mapping[str, Path]) -> dict[str, tuple[TaskFile, list[Item]]]:
    """(questions, examples) of every source with a file. Raises TampuError where there are not enough examples."""
    found = {}
    for source in sources:
        if not source.path:
            continue
        layout = source.layout or source.name
        task = read_task(source.name, layout, files[f"{source.name}/questions"])
        shots = task.layout.shots if source.shots < 0 else source.shots
        examples: list[Item] = []
        if source.shots_path:
            examples = read_task(source.name, layout, files[f"{source.name}/shots"]).items
        elif shots:
            examples, task = task.items[:shots], replace(task, items=task.items[shots:])
        if not any(item.subject for item in examples) and len(examples) < shots:
            raise TampuError(f"task {source.name}: {shots} examples are wanted before each question, and there are {len(examples)}")
        if source.limit:
            task = replace(task, items=task.items[: source.limit])
        if not task.items:
            raise TampuError(f"task {source.name}: no question is left after {shots} examples")
        by_subject = {item.subject for item in examples}
        found[source.name] = (task, [item for subject in sorted(by_subject) for item in [e for e in examples if e.subject == subject][:shots]])
    return found


def run_tasks(
    network: "Llama",
    tokenizer: "Tokenizer",
    model: str,
    sources: Sequence[TaskSource],
    files: Mapping[str, Path],
    *,
    run_code: bool,
) -> Found:
    """Every source for one model. Code tasks are left out unless `run_code`. Raises TampuError where the harness or a file is missing."""
    lm = harness_model(network, tokenizer)
    found = Found([], [], [])
    local = read_sources(sources, files)
    for source in sources:
        if source.name not in local:
            results = evaluate(lm, [source.name], limit=source.limit or None)
            found.rows += benchmark_rows(results["results"], model, {})
            continue
        task, examples = local[source.name]
        layout = source.layout or source.name
        found.rejected += [{"task": source.name, "line": line, "reason": reason} for line, reason in task.rejected]
        if task.layout.kind == "code":
            if run_code:
                found.rows.append(_code_row(lm, model, task, examples, layout, found))
            continue
        found.rows += _file_rows(lm, model, task, examples, layout, found)
    return found


def _file_rows(lm: Any, model: str, task: TaskFile, examples: Sequence[Item], layout: str, found: Found) -> list[dict[str, Any]]:
    """One row a metric; subjects (MMLU) are asked with their own examples and counted together, question by question."""
    subjects = dict.fromkeys(item.subject for item in task.items)
    values: dict[str, list[float]] = {}
    shots = 0
    for subject in subjects:
        shown = [item for item in examples if item.subject == subject] or list(examples if not subject else [])
        shots = max(shots, len(shown))
        name = f"{task.name}_{subject}" if subject else task.name
        part = replace(task, name=name, items=[item for item in task.items if item.subject == subject])
        results = evaluate(lm, [file_task(part, layout, shown)])
        for number, sample in enumerate(results["samples"][name]):
            for metric in sample["metrics"]:
                value = float(sample[metric])
                values.setdefault(metric, []).append(value)
                found.samples.append({"model": model, "task": name, "question": number, "metric": metric, "value": value})
    return [_row(model, task, shots, metric, of) for metric, of in values.items()]


def _code_row(lm: Any, model: str, task: TaskFile, examples: Sequence[Item], layout: str, found: Found) -> dict[str, Any]:
    """pass@1 of greedy programs that ran in the sandbox."""
    from resources.sandbox import run_python

    stops = ["\nclass", "\ndef", "\n#", "\nif", "\nprint"] if layout == "humaneval" else ["[DONE]"]
    header = "".join(f"{item.query}{item.targets[0] if item.targets else ''}\n[DONE]\n\n" for item in examples)
    programs = lm.generate_until([_Asked((header + item.query, {"until": stops, "max_gen_toks": 256})) for item in task.items])
    passed = []
    for number, (item, text) in enumerate(zip(task.items, programs, strict=True)):
        body = item.query + text if layout == "humaneval" else text
        outcome = run_python("\n".join([body, *item.code]))
        passed.append(float(outcome.passed))
        found.samples.append({"model": model, "task": task.name, "question": number, "metric": "pass@1", "value": passed[-1]})
    return _row(model, task, len(examples), "pass@1", passed)


@dataclass(frozen=True)
class _Asked:
    args: tuple[str, dict[str, Any]]


def _row(model: str, task: TaskFile, shots: int, metric: str, values: Sequence[float]) -> dict[str, Any]:
    value, n = share(values)
    stderr = math.sqrt(sum((one - value) ** 2 for one in values) / (n - 1) / n) if n > 1 else None
    group = {"model": model, "task": task.name, "task_group": task.layout.group, "shots": shots}
    return {**group, "metric": metric, "value": value, "stderr": stderr, "n": n}


def group_means(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The paper's group scores: the plain mean over a group's tasks, of `acc_norm` where a task has it (recipe of table 3)."""
    preferred: dict[tuple[str, str, str], Mapping[str, Any]] = {}
    for row in rows:
        key = (row["model"], row["task_group"], row["task"])
        if key not in preferred or row["metric"] == "acc_norm":
            preferred[key] = row
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for (model, group, _), row in preferred.items():
        groups.setdefault((model, group), []).append(row)
    return [
        {
            "model": model,
            "task": f"{group}: mean of {len(members)} tasks",
            "task_group": group,
            "shots": None,
            "metric": "mean",
            "value": sum(row["value"] for row in members) / len(members),
            "stderr": math.sqrt(sum(row["stderr"] ** 2 for row in members)) / len(members)
            if all(row["stderr"] is not None for row in members)
            else None,
            "n": sum(row["n"] for row in members),
        }
        for (model, group), members in groups.items()
        if len(members) > 1
    ]
