"""Contenders side by side: each run is a process of its own, and they take turns, so that a slow quarter of an hour hits all of them."""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

Run = Callable[[], dict[str, float]]  # measures once; names of figures to their values


def contest(module: str, contenders: Mapping[str, Run], packages: tuple[str, ...], *, runs: int, description: str | None) -> None:
    """The command line of a benchmark: run every contender that this installation can, and print median, least and most of each figure."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"contenders; default: all of {', '.join(contenders)}")
    parser.add_argument("--runs", type=int, default=runs)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        figures = contenders[chosen.one]()
        figures["peak memory (MB)"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(figures))
        return
    names = chosen.names or list(contenders)
    if unknown := [name for name in names if name not in contenders]:
        parser.error(f"there is no contender {unknown[0]!r}; there are {', '.join(contenders)}")
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    failed: dict[str, str] = {}
    for _ in range(chosen.runs):
        for name in names:
            if name not in failed:
                _run(module, name, measured, failed)
    machine = {"date": date.today().isoformat(), "device": _device(), **{each: _version(each) for each in ("torch", *packages)}}
    results = {name: _summary(several) for name, several in measured.items() if several}
    if chosen.json:
        print(json.dumps({"machine": machine, "runs": chosen.runs, "results": results, "failed": failed}, indent=2))
        return
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for name, figures in results.items():
        print(name)
        for figure, (median, least, most) in figures.items():
            print(f"  {figure:<40} {median:>10,.2f}  ({least:,.2f} to {most:,.2f}, {len(measured[name])} runs)")
    for name, reason in failed.items():
        print(f"{name}: did not run ({reason})")


def _run(module: str, name: str, measured: dict[str, list[dict[str, float]]], failed: dict[str, str]) -> None:
    command = [sys.executable, "-m", module, "--one", name]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"TOKENIZERS_PARALLELISM": "false"})
    if done.returncode:
        failed[name] = (done.stderr.strip().splitlines() or ["no message"])[-1]
    else:
        measured[name].append(json.loads(done.stdout.strip().splitlines()[-1]))


def _summary(several: list[dict[str, float]]) -> dict[str, tuple[float, float, float]]:
    columns = {figure: [each[figure] for each in several] for figure in several[0]}
    return {figure: (statistics.median(values), min(values), max(values)) for figure, values in columns.items()}


def _device() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def _version(package: str) -> Any:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
