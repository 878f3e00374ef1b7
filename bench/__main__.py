"""Run benchmarks by name (default: all that this machine can run) and print median and spread, as a table and as JSON.

    python -m bench                 # everything
    python -m bench training decode # some
    python -m bench --json          # for a program

Each figure is the median of several runs after a warm-up, with the smallest and the largest. Close other programs first: two
trainings at once on two cores are several times slower than one after the other.
"""

import argparse
import json
import platform
import statistics
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from time import perf_counter

import torch

from bench.corpus import filtering
from bench.decoding import decode
from bench.resume import save_ppo, save_pretraining
from bench.scoring import score_pairs
from bench.tokenizer import encoding
from bench.training import train
from model.memory import keep_freed_memory

RUNS = 5
# What to do, in what unit, and, where that is no rate, the figure that a rate comes to.
BENCHMARKS: dict[str, Callable[[], tuple[Callable[[], int], str] | tuple[Callable[[], int], str, Callable[[float], float]]]] = {
    "corpus": filtering,
    "encoding": encoding,
    "training": train,
    "decode": decode,
    "score": score_pairs,
    "save_pretraining": save_pretraining,
    "save_ppo": save_ppo,
}


def measure(work: Callable[[], int]) -> list[float]:
    """Units a second of `RUNS` runs after one that does not count; `work` returns the units that it did."""
    work()
    rates = []
    for _ in range(RUNS):
        began = perf_counter()
        units = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        rates.append(units / (perf_counter() - began))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*BENCHMARKS, []], help="benchmarks to run")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    keep_freed_memory()
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    )
    machine = {"date": date.today().isoformat(), "device": device, "python": platform.python_version(), "torch": version("torch")}
    results = []
    for name in chosen.names or BENCHMARKS:
        work, unit, *figure = BENCHMARKS[name]()
        figures = [figure[0](rate) if figure else rate for rate in measure(work)]
        results.append(
            {"benchmark": name, "unit": unit, "median": statistics.median(figures), "least": min(figures), "most": max(figures), "runs": RUNS}
        )
    if chosen.json:
        print(json.dumps({"machine": machine, "results": results}, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for row in results:
        median, least, most = (f"{row[name]:,.0f}" if row["median"] >= 10 else f"{row[name]:.2g}" for name in ("median", "least", "most"))
        print(f"{row['benchmark']:<16} {median:>12} {row['unit']}  ({least} to {most}, {row['runs']} runs)")


if __name__ == "__main__":
    main()
