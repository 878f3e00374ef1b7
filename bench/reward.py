"""Pairs a second of reward-model training, beside TRL's RewardTrainer in one run on the same pairs and shapes.

    python -m bench.reward            # ours, and TRL's where `pip install trl` has put it
    python -m bench.reward --steps 4 --repeats 3 --json

The network has 6.5 M parameters (vocabulary 2048, width 256, 7 layers, 8 heads, SwiGLU 688), a pair a prompt of 60 to 200 tokens and two
answers of 10 to 60. Both train the same pairs, as many a step, with the same margins, AdamW, gradient clipping and length bound, from token
ids, so that no tokenizer is measured; TRL without gradient checkpointing (its default), which would only slow it. The contestants take turns,
so that another program on the machine slows both.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any

import numpy as np
import torch

from model.llama import Llama, LlamaConfig
from model.losses import MARGINS, RATINGS
from model.memory import keep_freed_memory
from model.reward import RewardModel
from model.reward_training import Comparison, ComparisonLoader, RewardTraining, reward_optimization
from model.training import fit

SHAPE = {"vocab_size": 2048, "dim": 256, "layers": 7, "heads": 8, "ffn": 688}
CONTEXT = 512
PROMPT, ANSWER = (60, 200), (10, 60)
PAIRS_A_STEP = 32
MARGIN = "small"


def make_pairs(count: int) -> list[Comparison]:
    """Random token ids in the lengths above; the first token is BOS, the last EOS."""
    chance = np.random.default_rng(0)

    def ids(bounds: tuple[int, int]) -> list[int]:
        return chance.integers(3, SHAPE["vocab_size"], int(chance.integers(bounds[0], bounds[1] + 1))).tolist()

    made = []
    for number in range(count):
        prompt = [1, *ids(PROMPT)]
        made.append(Comparison([*prompt, *ids(ANSWER), 2], [*prompt, *ids(ANSWER), 2], RATINGS[number % len(RATINGS)]))
    return made


def ours(pairs: Sequence[Comparison], steps: int, precision: str) -> Callable[[], float]:
    """Seconds of a training of `steps` updates by this repository."""
    shape = LlamaConfig(
        vocab_size=SHAPE["vocab_size"],
        dim=SHAPE["dim"],
        layers=SHAPE["layers"],
        heads=SHAPE["heads"],
        kv_heads=SHAPE["heads"],
        ffn_dim=SHAPE["ffn"],
        max_context=CONTEXT,
    )
    network = Llama(shape)
    network.init_weights(torch.Generator().manual_seed(0))

    def work() -> float:
        training = RewardTraining(RewardModel.from_llama(network), reward_optimization(1e-5, steps))
        loader = ComparisonLoader(pairs, PAIRS_A_STEP, seed=0, margin=MARGIN)
        began = perf_counter()
        fit(training, loader, steps=steps, seed=0, precision=precision, log_every=1000)  # type: ignore[arg-type]
        return perf_counter() - began

    return work


def trl(pairs: Sequence[Comparison], steps: int, precision: str) -> Callable[[], float]:
    """Seconds of the same training by TRL."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig as TheirConfig
    from transformers import LlamaForSequenceClassification, PreTrainedTokenizerFast
    from transformers.utils import logging as their_logging
    from trl import RewardConfig, RewardTrainer

    their_logging.set_verbosity_error()
    vocabulary = {f"t{number}": number for number in range(SHAPE["vocab_size"])}
    plain = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")), bos_token="t1", eos_token="t2", pad_token="t0"
    )
    config = TheirConfig(
        vocab_size=SHAPE["vocab_size"],
        hidden_size=SHAPE["dim"],
        intermediate_size=SHAPE["ffn"],
        num_hidden_layers=SHAPE["layers"],
        num_attention_heads=SHAPE["heads"],
        num_key_value_heads=SHAPE["heads"],
        max_position_embeddings=CONTEXT,
        num_labels=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    rows = [{"chosen_ids": p.chosen, "rejected_ids": p.rejected, "margin": MARGINS[MARGIN][p.rating]} for p in pairs]
    data = Dataset.from_list(rows)

    def work() -> float:
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory() as folder:
            arguments = RewardConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=PAIRS_A_STEP,
                learning_rate=1e-5,
                bf16=precision == "bf16",
                gradient_checkpointing=False,
                use_cpu=not torch.cuda.is_available(),
                max_length=CONTEXT,
                save_strategy="no",
                report_to=[],
                logging_strategy="no",
                disable_tqdm=True,
                dataloader_pin_memory=False,
            )
            trainer = RewardTrainer(LlamaForSequenceClassification(config), args=arguments, train_dataset=data, processing_class=plain)
            began = perf_counter()
            trainer.train()
            return perf_counter() - began

    return work


def measure(contestants: dict[str, Callable[[], float]], steps: int, repeats: int) -> list[dict[str, Any]]:
    """Pairs a second of each, median, least and most of `repeats` rounds in turn after one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(repeats + 1):
        for name, work in contestants.items():
            took = work()
            print(f"{'warm-up' if number == 0 else f'run {number}'}: {name} {steps * PAIRS_A_STEP / took:.1f} pairs/s", file=sys.stderr)
            if number:
                seconds[name].append(took)
    results = []
    for name, all_seconds in seconds.items():
        rates = [steps * PAIRS_A_STEP / took for took in all_seconds]
        results.append({"trainer": name, "median": statistics.median(rates), "least": min(rates), "most": max(rates), "runs": repeats})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help=f"updates a run, of {PAIRS_A_STEP} pairs each")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    keep_freed_memory()
    pairs = make_pairs(chosen.steps * PAIRS_A_STEP)
    contestants = {f"tampu {precision}": ours(pairs, chosen.steps, precision) for precision in ("fp32", "bf16")}
    try:
        contestants |= {f"trl {version('trl')} {precision}": trl(pairs, chosen.steps, precision) for precision in ("fp32", "bf16")}
    except PackageNotFoundError:
        print("trl is not installed: ours alone", file=sys.stderr)
    results = measure(contestants, chosen.steps, chosen.repeats)
    by_name = {row["trainer"]: row["median"] for row in results}
    theirs = {name.split()[-1]: rate for name, rate in by_name.items() if name.startswith("trl")}
    machine = {
        "date": date.today().isoformat(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()}, {torch.get_num_threads()} threads",
        "torch": version("torch"),
        "tokens_a_pair": round(sum(len(p.chosen) + len(p.rejected) for p in pairs) / len(pairs), 1),
        "times_trl": {kind: round(by_name[f"tampu {kind}"] / rate, 2) for kind, rate in theirs.items()},
    }
    if chosen.json:
        print(json.dumps({"machine": machine, "results": results}, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for row in results:
        print(f"{row['trainer']:<18} {row['median']:>8.1f} pairs/s  ({row['least']:.1f} to {row['most']:.1f}, {row['runs']} runs)")


if __name__ == "__main__":
    main()
