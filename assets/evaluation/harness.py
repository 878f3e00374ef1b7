"""EleutherAI's lm-evaluation-harness (the extra `harness`): our models as its `LM`, local files and tasks by name as its tasks."""

import importlib.util
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from assets.evaluation.task_files import Item, TaskFile, is_right
from resources.errors import TampuError

if TYPE_CHECKING:
    from model.llama import Llama
    from model.tokenizer import Tokenizer

CHUNKS = (32, 96, 128)  # tokens generated between two looks for a stop string
NEEDED = "install it with `pip install --constraint constraints.txt 'tampu[harness]'`"


def require_harness() -> None:
    """Raise TampuError, with the way to get it, where the harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise TampuError(f"benchmarks beyond the built-in ones run through lm-evaluation-harness, which is not here: {NEEDED}")


def harness_model(network: "Llama", tokenizer: "Tokenizer") -> Any:
    """An `lm_eval.api.model.LM` of our weights; numbers are those of the harness's Hugging Face backend on the exported checkpoint."""
    require_harness()
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    from model.generation import SamplingParameters, generate
    from model.likelihood import loglikelihoods

    class TampuLM(TemplateLM):
        """Tokens as the tokenizer in transformers gives them: BOS, where it adds one, then the text."""

        @property
        def eot_token_id(self) -> int:
            return tokenizer.eos_id

        @property
        def prefix_token_id(self) -> int:
            return tokenizer.bos_id

        @property
        def max_length(self) -> int:
            return network.config.max_context

        @property
        def max_gen_toks(self) -> int:
            return 256

        @property
        def tokenizer_name(self) -> str:
            return f"sentencepiece-{tokenizer.vocab_size}"

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            ids = tokenizer.encode(string)
            return ids if add_special_tokens is False else [tokenizer.bos_id] * tokenizer.adds_bos + ids

        def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
            found = loglikelihoods(network, [(context, continuation) for _, context, continuation in requests])
            for (asked, _, _), result in zip(requests, found, strict=True):
                if asked is not None:
                    self.cache_hook.add_partial("loglikelihood", asked, result)
            return found

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            windows: list[Any] = []
            owners: list[int] = []
            for number, request in enumerate(requests):
                (text,) = request.args
                parts = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1)
                for part in map(make_disjoint_window, parts):
                    windows.append((None, *part))
                    owners.append(number)
            totals = [0.0] * len(requests)
            for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
                totals[owner] += logprob
            return totals

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            texts = [""] * len(requests)
            tokens: dict[int, list[int]] = {number: [] for number in range(len(requests))}
            settings = []
            for request in requests:
                context, arguments = request.args
                wanted = normalize_gen_kwargs(arguments, self.max_gen_toks)
                stops = handle_stop_sequences(wanted.pop("until", None), eos=None)
                longest = self.max_length - wanted["max_gen_toks"]
                if longest <= 0:
                    raise TampuError(
                        f"a task asks for {wanted['max_gen_toks']} tokens, and the model's context has {self.max_length}: lower max_gen_toks"
                    )
                settings.append((self.tok_encode(context)[-longest:], stops, wanted))
            for step in range(100):
                if not tokens:
                    break
                order = list(tokens)
                parameters = [_parameters(settings[i][2], len(tokens[i]), CHUNKS[min(step, len(CHUNKS) - 1)]) for i in order]
                prompts = [settings[i][0] + tokens[i] for i in order]
                made = generate(network, prompts, [SamplingParameters(**one) for one in parameters], order, eos_id=self.eot_token_id)
                for i, one in zip(order, made, strict=True):
                    tokens[i] += one.tokens[:-1] if one.finished else one.tokens
                    text = tokenizer.decode(tokens[i])
                    stops, most = settings[i][1], settings[i][2]["max_gen_toks"]
                    if one.finished or len(tokens[i]) >= most or any(stop and stop in text for stop in stops):
                        texts[i] = postprocess_generated_text(text, stops, None)
                        self.cache_hook.add_partial("generate_until", requests[i].args, texts[i])
                        del tokens[i]
            return texts

    return TampuLM()


def _parameters(wanted: Mapping[str, Any], done: int, chunk: int) -> dict[str, Any]:
    """Sampling parameters for the next tokens of a request."""
    sampled = bool(wanted.get("do_sample"))
    return {
        "temperature": float(wanted.get("temperature", 1.0)) if sampled else 0.0,
        "top_p": float(wanted.get("top_p", 1.0)) if sampled else 1.0,
        "max_new_tokens": min(chunk, int(wanted["max_gen_toks"]) - done),
    }


def file_task(task: TaskFile, layout: str, examples: Sequence[Item] = ()) -> Any:
    """A task of the harness of a local file; the first of `examples` are the shots, the same before every question."""
    require_harness()
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask

    def rows(items: Iterable[Item]) -> Any:
        return Dataset.from_list([{name: list(v) if isinstance(v, tuple) else v for name, v in vars(item).items()} for item in items])

    def dataset(**_: Any) -> Any:
        parts = {"test": rows(task.items)}
        return DatasetDict(parts | ({"shots": rows(examples)} if examples else {}))

    config: dict[str, Any] = {
        "task": task.name,
        "custom_dataset": dataset,
        "test_split": "test",
        "doc_to_text": _query,
        "description": task.layout.description,
        "metadata": {},
    }
    if examples:
        config |= {"fewshot_split": "shots", "fewshot_config": {"sampler": "first_n"}, "num_fewshot": len(examples)}
    if task.layout.kind == "multiple_choice":
        metrics = ["acc"] if layout in ("winogrande", "mmlu") else ["acc", "acc_norm"]
        config |= {
            "output_type": "multiple_choice",
            "doc_to_choice": lambda doc: doc["contexts"] or doc["choices"],
            "doc_to_target": (lambda doc: doc["choices"][0]) if layout == "winogrande" else (lambda doc: doc["answer"]),
            "metric_list": [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics],
        }
        if layout == "winogrande":
            config["doc_to_text"] = lambda doc: doc["answer"]
    elif task.layout.kind == "cloze":
        config |= {"output_type": "loglikelihood", "doc_to_target": lambda doc: doc["choices"][0]}
        config["metric_list"] = [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}]
    else:
        config |= {
            "output_type": "generate_until",
            "doc_to_target": lambda doc: doc["code"][0] if layout == "gsm8k" else doc["targets"][0],
            "generation_kwargs": {"until": ["\n\n", "Question:", "Q:"], "max_gen_toks": 256 if layout == "gsm8k" else 32, "do_sample": False},
            "process_results": lambda doc, found: {"exact_match": float(is_right(_item(doc), found[0], layout))},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }
    return ConfigurableTask(config=config)


def _query(doc: Mapping[str, Any]) -> str:
    return str(doc["query"])


def _item(doc: Mapping[str, Any]) -> Item:
    return Item(doc["query"], targets=tuple(doc["targets"]))


def evaluate(lm: Any, tasks: Sequence[Any], *, limit: int | None = None, bootstrap: int = 0) -> dict[str, Any]:
    """`lm_eval.simple_evaluate` without its chatter: {"results": …, "samples": …}. Tasks are names or objects; names need a hub.

    Raises TampuError when a task's data cannot be had.
    """
    require_harness()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import lm_eval

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        found = lm_eval.simple_evaluate(lm, tasks=list(tasks), limit=limit, bootstrap_iters=bootstrap, log_samples=True)
    except (OSError, ConnectionError, KeyError) as error:
        names = ", ".join(task for task in tasks if isinstance(task, str))
        raise TampuError(f"the harness can not run {names or 'these tasks'}: {error}; offline, give the task as a file (`path`)") from None
    return {"results": found["results"], "samples": found.get("samples", {})}


def benchmark_rows(results: Mapping[str, Mapping[str, Any]], model: str, groups: Mapping[str, tuple[str, int]]) -> list[dict[str, Any]]:
    """Rows of `benchmarks` of the harness's results; `groups` gives (group, shots) by task."""
    rows = []
    for task, found in results.items():
        group, shots = groups.get(task, ("harness", 0))
        n = int(found.get("sample_len", found.get("samples", 0)) or 0)
        for name, value in found.items():
            metric, comma, _ = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = found.get(name.replace(metric, f"{metric}_stderr", 1))
            stderr = float(error) if isinstance(error, int | float) else None
            rows.append(
                {
                    "model": model,
                    "task": task,
                    "task_group": group,
                    "shots": shots,
                    "metric": metric,
                    "value": float(value),
                    "stderr": stderr,
                    "n": n,
                }
            )
    return rows
