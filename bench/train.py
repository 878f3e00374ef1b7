"""Training beside its peers, in one run on the same work: `python -m bench.train [pretraining|sft]`.

Tampu's trainer, transformers' Trainer, TRL's SFTTrainer, and litgpt's network under the Lightning Trainer train the same Llama (6.6 M
parameters) from scratch on the same tokens. Each run is a process of its own, contenders take turns, and a contender's rate is counted
from its second update on. Peers are those that are installed (transformers, accelerate, trl, litgpt), each in the variants that its users
would try.

- `pretraining`: updates of 16 rows of 256 tokens, one document a row, all tokens learned.
- `sft`: one epoch of 512 dialogues of log-normal length (56 k tokens in all), 16 dialogues an update on average; the second half of a
  dialogue is learned. Counted are the dialogues' own tokens, no padding.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

VOCAB, DIM, LAYERS, HEADS, FFN = 2048, 256, 7, 8, 688
ROWS, CONTEXT, UPDATES = 16, 256, 12
DIALOGUES, LONGEST, DIALOGUES_AN_UPDATE = 512, 512, 16
LEARNING_RATE = 1e-3


class Clock:
    """Tokens a second from the end of the first update on."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.tokens: list[int] = []

    def update(self, tokens: int) -> None:
        self.ends.append(perf_counter())
        self.tokens.append(tokens)

    def rate(self) -> float:
        if len(self.ends) < 2:
            raise ValueError(f"{len(self.ends)} updates are too few to time; at least 2 are needed")
        return sum(self.tokens[1:]) / (self.ends[-1] - self.ends[0])


def documents() -> np.ndarray:
    """int64 [rows, CONTEXT], BOS first."""
    rows = np.random.default_rng(0).integers(3, VOCAB, (ROWS * UPDATES, CONTEXT))
    rows[:, 0] = 1
    return rows


def dialogues() -> list[np.ndarray]:
    """Token sequences of log-normal length with a mean near 110, BOS first."""
    chance = np.random.default_rng(0)
    lengths = np.clip(chance.lognormal(4.5, 0.65, DIALOGUES), 8, LONGEST).astype(int)
    return [np.concatenate(([1], chance.integers(3, VOCAB, n - 1))) for n in lengths]


# The contenders: each trains once and returns its clock


def tampu_pretraining(precision: str) -> Clock:
    from model.causal_lm import PackedLoader
    from model.packing import Packed

    rows = documents().astype(np.int32)
    packed = Packed(rows, np.ones(rows.shape, bool), np.ones(rows.shape, np.int32))
    return _tampu(PackedLoader(packed, ROWS, seed=0), UPDATES, precision)


def tampu_sft(precision: str) -> Clock:
    from model.causal_lm import PackedLoader
    from model.dialogue import Example
    from model.packing import pack

    examples = [Example(d.tolist(), [i >= len(d) // 2 for i in range(len(d))]) for d in dialogues()]
    packed = pack(examples, LONGEST, seed=0)
    updates = DIALOGUES // DIALOGUES_AN_UPDATE
    return _tampu(PackedLoader(packed, round(len(packed) / updates), seed=0), None, precision)


def _tampu(loader: Any, updates: int | None, precision: str) -> Clock:
    from model.causal_lm import CausalLM
    from model.llama import Llama, LlamaConfig
    from model.memory import keep_freed_memory
    from model.training import Optimization, fit

    keep_freed_memory()
    network = Llama(
        LlamaConfig(vocab_size=VOCAB, dim=DIM, layers=LAYERS, heads=HEADS, kv_heads=HEADS, multiple_of=16, max_context=max(CONTEXT, LONGEST))
    )
    network.init_weights(torch.Generator().manual_seed(0))
    updates = updates or loader.steps(1)
    clock = Clock()

    class Timed(CausalLM):
        def on_train_batch_end(self, outputs: Any, batch: dict[str, torch.Tensor], batch_idx: int) -> None:
            clock.update(int((batch["segments"] > 0).sum()))

    module = Timed(network, Optimization(LEARNING_RATE, 1, updates))
    fit(module, loader, steps=updates, seed=0, precision=precision)
    return clock


def transformers_trainer(precision: str, attention: str = "sdpa", compiled: bool = False) -> Clock:
    from transformers import Trainer, TrainingArguments

    rows = documents()
    data = [{"input_ids": torch.from_numpy(row), "labels": torch.from_numpy(row)} for row in rows]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(per_device_train_batch_size=ROWS, **_settings(folder, precision), max_steps=UPDATES, torch_compile=compiled)
        Trainer(model=_llama(attention), args=settings, train_dataset=data, callbacks=[_timer(clock, lambda step: ROWS * CONTEXT)]).train()
    return clock


def trl_sft(precision: str, packing: bool = False, by_length: bool = False) -> Clock:
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCAB)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<pad>")), pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    several = dialogues()
    data = Dataset.from_list([{"input_ids": d.tolist(), "completion_mask": [int(i >= len(d) // 2) for i in range(len(d))]} for d in several])
    clock = Clock()
    seen: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        rows = DIALOGUES_AN_UPDATE if not packing else max(1, round(DIALOGUES_AN_UPDATE * sum(map(len, several)) / DIALOGUES / LONGEST))
        settings = SFTConfig(
            per_device_train_batch_size=rows,
            **_settings(folder, precision),
            num_train_epochs=1,
            max_length=LONGEST,
            packing=packing,
            completion_only_loss=True,
            **({"train_sampling_strategy": "group_by_length"} if by_length else {}),
        )
        trainer = SFTTrainer(
            model=_llama("sdpa"),
            args=settings,
            train_dataset=data,
            processing_class=tokenizer,
            callbacks=[_timer(clock, lambda step: seen[step - 1])],
        )
        collate = trainer.data_collator

        def counted(rows: list[dict[str, Any]]) -> Any:
            seen.append(sum(len(row["input_ids"]) for row in rows))
            return collate(rows)

        trainer.data_collator = counted
        trainer.train()
    return clock


def litgpt_lightning(precision: str, compiled: bool = False) -> Clock:
    """litgpt's network and loss in a LightningModule, as its documentation shows."""
    import lightning as L
    from litgpt import GPT, Config
    from litgpt.utils import chunked_cross_entropy

    shape = Config(
        block_size=CONTEXT,
        vocab_size=VOCAB,
        padded_vocab_size=VOCAB,
        n_layer=LAYERS,
        n_head=HEADS,
        n_query_groups=HEADS,
        n_embd=DIM,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=FFN,
    )
    clock = Clock()

    class Pretraining(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = GPT(shape)
            self.run = torch.compile(self.model) if compiled else self.model

        def training_step(self, rows_bt: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return chunked_cross_entropy(self.run(rows_bt)[:, :-1], rows_bt[:, 1:])

        def on_train_batch_end(self, outputs: Any, rows_bt: torch.Tensor, batch_idx: int) -> None:
            clock.update(rows_bt.numel())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(
                self.model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1
            )  # Lightning clips no fused one

    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=UPDATES,
        precision="bf16-mixed" if precision == "bf16" else "32-true",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Pretraining(), torch.utils.data.DataLoader(torch.from_numpy(documents()), batch_size=ROWS, shuffle=True))
    return clock


def _llama(attention: str) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=DIM,
            intermediate_size=FFN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=max(CONTEXT, LONGEST),
            tie_word_embeddings=False,
            pad_token_id=0,
            attn_implementation=attention,
            use_cache=False,
        )
    )


def _settings(folder: str, precision: str) -> dict[str, Any]:
    return {
        "output_dir": folder,
        "learning_rate": LEARNING_RATE,
        "bf16": precision == "bf16",
        "use_cpu": True,
        "optim": "adamw_torch_fused",
        "adam_beta2": 0.95,
        "weight_decay": 0.1,
        "max_grad_norm": 1.0,
        "lr_scheduler_type": "cosine",
        "gradient_checkpointing": False,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
    }


def _timer(clock: Clock, tokens: Callable[[int], int]) -> Any:
    from transformers import TrainerCallback

    class Timer(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.update(tokens(state.global_step))

    return Timer()


CONTENDERS: dict[str, dict[str, tuple[str, Callable[[], Clock]]]] = {
    "pretraining": {
        "tampu fp32": ("torch", lambda: tampu_pretraining("fp32")),
        "tampu bf16": ("torch", lambda: tampu_pretraining("bf16")),
        "transformers fp32": ("transformers", lambda: transformers_trainer("fp32")),
        "transformers bf16": ("transformers", lambda: transformers_trainer("bf16")),
        "transformers bf16, eager attention": ("transformers", lambda: transformers_trainer("bf16", "eager")),
        "transformers bf16, compiled": ("transformers", lambda: transformers_trainer("bf16", compiled=True)),
        "litgpt fp32": ("litgpt", lambda: litgpt_lightning("fp32")),
        "litgpt bf16": ("litgpt", lambda: litgpt_lightning("bf16")),
        "litgpt bf16, compiled": ("litgpt", lambda: litgpt_lightning("bf16", compiled=True)),
    },
    "sft": {
        "tampu fp32": ("torch", lambda: tampu_sft("fp32")),
        "tampu bf16": ("torch", lambda: tampu_sft("bf16")),
        "trl fp32, padded": ("trl", lambda: trl_sft("fp32")),
        "trl bf16, padded": ("trl", lambda: trl_sft("bf16")),
        "trl bf16, grouped by length": ("trl", lambda: trl_sft("bf16", by_length=True)),
        "trl bf16, packed": ("trl", lambda: trl_sft("bf16", packing=True)),
    },
}


def once(task: str, contender: str) -> dict[str, Any]:
    """One run of a contender in a process of its own: its tokens a second and its peak of memory in bytes."""
    command = [sys.executable, "-m", "bench.train", task, "--run", contender]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "TOKENIZERS_PARALLELISM": "false"}, cwd=Path(__file__).parents[1]
    )
    if done.returncode:
        raise RuntimeError(f"{contender} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def compare(task: str, runs: int) -> Iterator[dict[str, Any]]:
    """Median and spread of each contender; round by round, so that a slow minute hits all of them."""
    names = [name for name, (package, _) in CONTENDERS[task].items() if installed(package)]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(runs):
        for name in names:
            found[name].append(once(task, name))
    for name, results in found.items():
        rates = [result["rate"] for result in results]
        yield {
            "task": task,
            "contender": name,
            "median": statistics.median(rates),
            "least": min(rates),
            "most": max(rates),
            "runs": runs,
            "peak_gb": max(result["peak_bytes"] for result in results) / 1e9,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", metavar="task", help=f"of {', '.join(CONTENDERS)} (default: all)")
    parser.add_argument("--runs", type=int, default=3, help="runs a contender")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    unknown = set(chosen.tasks) - set(CONTENDERS)
    if unknown:
        parser.error(f"no task {', '.join(sorted(unknown))}; there are {', '.join(CONTENDERS)}")
    if chosen.run:
        rate = CONTENDERS[chosen.tasks[0]][chosen.run][1]().rate()
        print(json.dumps({"rate": rate, "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))
        return
    versions = {name: version(name) for name in ("torch", "lightning", "transformers", "accelerate", "trl", "litgpt") if installed(name)}
    machine = {"date": date.today().isoformat(), "device": f"{platform.machine()}, {torch.get_num_threads()} threads", **versions}
    rows = [row for task in chosen.tasks or CONTENDERS for row in compare(task, chosen.runs)]
    if chosen.json:
        print(json.dumps({"machine": machine, "results": rows}, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for row in rows:
        peers = [other["median"] for other in rows if other["task"] == row["task"] and not other["contender"].startswith("tampu")]
        ratio = f"{row['median'] / max(peers):.2f} of the best peer" if peers else ""
        spread = f"({row['least']:,.0f} to {row['most']:,.0f}, {row['runs']} runs)"
        print(f"{row['task']:<12} {row['contender']:<36} {row['median']:>8,.0f} tokens/s {spread}, {row['peak_gb']:.2f} GB  {ratio}")


if __name__ == "__main__":
    main()
