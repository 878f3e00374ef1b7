"""What a stage of the recipe needs, planned before anybody rents it: memory a GPU, tokens/s, GPU-hours, energy and emissions.

Arithmetic on a preset's sizes (`model.costs`), with the paper's numbers as defaults. A GPU's memory is taken for what its name says, in
10⁹ bytes. The board holds some 7 % more; that margin is for what is not counted: the CUDA context, kernels' temporary buffers and
fragmentation (our choice).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TypeVar

from model.costs import GPU, Memory, Network, kv_cache_bytes, memory, networks, seconds_per_sequence
from model.emissions import emissions
from model.llama import PRESETS

T = TypeVar("T")

GPUS = {
    "A100-80GB": GPU(312e12, 80e9, 2.039e12, 400.0),
    "H100": GPU(989e12, 80e9, 3.35e12, 700.0),
    "H200": GPU(989e12, 141e9, 4.8e12, 700.0),
}


@dataclass(frozen=True)
class Stage:
    """A stage's sizes: tokens a `sequence`, sequences an update of all GPUs (`batch`; PPO: an iteration), sequences a GPU reads at a
    time (`micro_batch`), and `tokens` in all."""

    sequence: int
    batch: int
    micro_batch: int
    tokens: int


# arXiv 2307.09288 gives pretraining's numbers (§2.2), every batch, SFT's length and the counts of examples. Our choices: the 798.5 tokens
# of a mean comparison (table 6) also for a demonstration (27,540 of them, 2 epochs); a reward model reads Meta's 1,418,091 comparisons
# once, both answers; PPO's longest run of 400 iterations, with sequences like the last preference batch's (1,008 tokens, table 26).
STAGES = {
    "pretraining": Stage(4096, 1024, 1, 2_000_000_000_000),
    "sft": Stage(4096, 64, 1, round(2 * 27_540 * 798.5)),
    "reward": Stage(4096, 1024, 2, round(2 * 1_418_091 * 798.5)),
    "ppo": Stage(1024, 512, 1, 400 * 512 * 1024),
}
PPO_UPDATES = 8  # an iteration: 512 answers in minibatches of 64 (§3.2.3)

# The one model FLOPs utilization that comes near the paper's GPU-hours of all four sizes (within 11 %); also for newer GPUs: our choice.
MFU = 0.42
# GPU-hours (A100-80GB) and watts of arXiv 2307.09288 table 2.
PUBLISHED = {"7b": (184_320, 400.0), "13b": (368_640, 400.0), "34b": (1_038_336, 350.0), "70b": (1_720_320, 400.0)}


@dataclass(frozen=True)
class Plan:
    """One stage of one preset on some GPUs. `memory` and `fewest_gpus` are with and without activation checkpointing.

    `hours` are wall-clock; `tokens_per_second` is that of all GPUs; `decoding_share` is the part of the time in which PPO's answers are
    made token by token; `sizes.batch` as given, so that `updates` are 8 an iteration in PPO.
    """

    preset: str
    stage: str
    networks: tuple[Network, ...]
    gpu: str
    gpus: int
    mfu: float
    sizes: Stage
    updates: int
    flops_per_token: float
    tokens_per_second: float
    decoding_share: float
    hours: float
    gpu_hours: float
    kwh: float
    tco2e: float
    kv_cache_bytes_per_token: int
    memory: tuple[Memory, Memory]
    fewest_gpus: tuple[int | None, int | None]

    def fits(self, memory: Memory) -> bool:
        return memory.peak <= GPUS[self.gpu].memory

    def published(self) -> dict[str, float] | None:
        """This very training in the paper: GPU-hours and watts as printed, kWh and tCO2e from them, and by what share the plan's
        hours deviate. None for what the paper did not train."""
        usual = STAGES["pretraining"]
        asked = (self.stage, self.gpu, self.sizes.tokens, self.sizes.sequence)
        if self.preset not in PUBLISHED or asked != ("pretraining", "A100-80GB", usual.tokens, usual.sequence):
            return None
        hours, watts = PUBLISHED[self.preset]
        return {"gpu_hours": hours, "watts": watts, **asdict(emissions(hours, watts)), "deviation": self.gpu_hours / hours - 1}

    def to_dict(self) -> dict:
        """The plan for a program, in bytes, FLOP/s, hours and watts."""
        modes = zip(self.memory, self.fewest_gpus, strict=True)
        rows = [asdict(one) | {"peak": one.peak, "fits": self.fits(one), "fewest_gpus": fewest} for one, fewest in modes]
        values = asdict(self) | {"gpu": {"name": self.gpu, **asdict(GPUS[self.gpu])}, "memory": rows, "published": self.published()}
        del values["fewest_gpus"]
        return values


def plan(
    preset: str,
    stage: str = "pretraining",
    *,
    gpu: str = "A100-80GB",
    gpus: int | None = None,
    mfu: float = MFU,
    tokens: int | None = None,
    sequence: int | None = None,
    batch: int | None = None,
    micro_batch: int | None = None,
) -> Plan:
    """What a stage needs. Left out, `gpus` are the fewest (1, 2, 4, …) that hold it with checkpointing, other sizes the stage's own.

    Raises ValueError with one line that names the thing, its value and the way out.
    """
    config, usual, board = _known("preset", preset, PRESETS), _known("stage", stage, STAGES), _known("GPU", gpu, GPUS)
    sizes = Stage(
        sequence=min(usual.sequence, config.max_context) if sequence is None else sequence,
        batch=usual.batch if batch is None else batch,
        micro_batch=usual.micro_batch if micro_batch is None else micro_batch,
        tokens=usual.tokens if tokens is None else tokens,
    )
    if not 0 < mfu <= 1:
        raise ValueError(f"mfu is {mfu:g}: give a share of the GPU's peak above 0 and at most 1, such as {MFU}")
    if sizes.sequence > config.max_context:
        raise ValueError(f"sequence is {sequence} tokens, but {preset} reads at most {config.max_context}: give a shorter one")
    at_once = _update(stage, sizes)
    most = at_once // sizes.micro_batch
    if gpus is not None and not 1 <= gpus <= most:
        way_out = f"an update of {at_once} sequences, {sizes.micro_batch} a GPU, feeds 1 to {most}; give as many, or a larger batch"
        raise ValueError(f"gpus is {gpus}: {way_out}")

    def needed(count: int, checkpointing: bool) -> Memory:
        return memory(
            config,
            stage,
            gpus=count,
            sequence=sizes.sequence,
            batch=sizes.batch,
            micro_batch=sizes.micro_batch,
            checkpointing=checkpointing,
        )

    powers = [2**power for power in range(most.bit_length())]
    fewest = [next((n for n in powers if needed(n, mode).peak <= board.memory), None) for mode in (True, False)]
    chosen = gpus or fewest[0] or powers[-1]
    products, decoding = seconds_per_sequence(config, stage, board, gpus=chosen, mfu=mfu, sequence=sizes.sequence, batch=sizes.batch)
    gpu_hours = sizes.tokens / sizes.sequence * (products + decoding) / 3600
    used = emissions(gpu_hours, board.watts)
    return Plan(
        preset=preset,
        stage=stage,
        networks=tuple(networks(config, stage)),
        gpu=gpu,
        gpus=chosen,
        mfu=mfu,
        sizes=sizes,
        updates=-(-sizes.tokens // (sizes.sequence * at_once)),
        flops_per_token=products * board.flops * mfu / sizes.sequence,
        tokens_per_second=chosen * sizes.sequence / (products + decoding),
        decoding_share=decoding / (products + decoding),
        hours=gpu_hours / chosen,
        gpu_hours=gpu_hours,
        kwh=used.kwh,
        tco2e=used.tco2e,
        kv_cache_bytes_per_token=kv_cache_bytes(config),
        memory=(needed(chosen, True), needed(chosen, False)),
        fewest_gpus=(fewest[0], fewest[1]),
    )


def _update(stage: str, sizes: Stage) -> int:
    """Sequences an update; raises ValueError for sizes that make none."""
    for name, value in asdict(sizes).items():
        if value < 1:
            raise ValueError(f"{name.replace('_', '-')} is {value}: give at least 1")
    if stage == "ppo" and sizes.batch % PPO_UPDATES:
        raise ValueError(f"batch is {sizes.batch}: PPO makes {PPO_UPDATES} updates of a batch; give a multiple of {PPO_UPDATES}")
    if stage == "reward" and (sizes.batch % 2 or sizes.micro_batch % 2):
        raise ValueError(f"batch is {sizes.batch} and micro-batch {sizes.micro_batch}: a comparison is two sequences; give even numbers")
    at_once = sizes.batch // PPO_UPDATES if stage == "ppo" else sizes.batch
    if sizes.micro_batch > at_once:
        raise ValueError(f"micro-batch is {sizes.micro_batch}, but an update reads {at_once} sequences: give a smaller one, or a larger batch")
    return at_once


def _known(kind: str, name: str, table: dict[str, T]) -> T:
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}: choose one of {', '.join(table)}")
    return table[name]


def count(text: str) -> int:
    """A number of tokens as people write it: 2000000, 2e12, 1.5T, 300B, 20M or 5k. ValueError for anything else."""
    scale = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}.get(text[-1:].lower())
    try:
        return round(float(text[:-1]) * scale) if scale else round(float(text))
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is no number of tokens: write it like 2000000, 2e12, 300B or 2T") from None


def table(plan: Plan) -> str:
    """The plan for a person."""
    board, sizes = GPUS[plan.gpu], plan.sizes
    gpus = f"{plan.gpus} GPU{'s' if plan.gpus > 1 else ''}"
    peak = f"{board.flops / 1e12:g} TFLOP/s in bf16, {board.memory / 1e9:g} GB, {board.watts:g} W"
    lines = [f"{plan.preset}, {plan.stage}, on {gpus}: {plan.gpu} ({peak}) at {plan.mfu:.0%} of its peak", ""]
    for network in plan.networks:
        lines.append(_line(network.name, f"{network.parameters:,}", "parameters" if network.trained else "parameters, frozen"))
    unit = "iteration" if plan.stage == "ppo" else "update"
    lines += [
        "",
        _line("tokens", f"{sizes.tokens:,}", f"in {plan.updates:,} updates; {sizes.batch:,} sequences of {sizes.sequence:,} an {unit}"),
        _line("GFLOP a token", _number(plan.flops_per_token / 1e9)),
        _line("tokens/s", _number(plan.tokens_per_second), f"{_number(plan.tokens_per_second / plan.gpus)} a GPU"),
        _line("GPU-hours", _number(plan.gpu_hours), f"{_span(plan.hours)} on {gpus}"),
        _line("kWh", _number(plan.kwh)),
        _line("tCO2e", _number(plan.tco2e)),
    ]
    if plan.stage == "ppo":
        seconds = sizes.batch * sizes.sequence / plan.tokens_per_second
        lines.append(_line("seconds an iteration", _number(seconds), f"{plan.decoding_share:.0%} of them decoding"))
        lines.append(_line("KV cache", f"{plan.kv_cache_bytes_per_token:,}", "bytes a token"))
    if published := plan.published():
        tons = math.floor(published["tco2e"] * 100) / 100  # the paper's table 2 cuts after two digits
        paper = f"{tons:.2f} tCO2e at {published['watts']:g} W; the plan's hours deviate by {published['deviation']:+.1%}"
        lines.append(_line("GPU-hours in the paper", f"{published['gpu_hours']:,.0f}", paper))
    lines += ["", _columns("GB a GPU", ("checkpointing", "without"))]
    for name in ("weights", "gradients", "optimizer", "frozen", "activations", "working", "rollout_weights", "kv_cache", "peak"):
        values = [getattr(one, name) / 1e9 for one in plan.memory]
        if any(values):
            lines.append(_columns(name.replace("_", " "), map(_number, values)))
    lines.append(_columns("fits", ("yes" if plan.fits(one) else "no" for one in plan.memory)))
    lines.append(_columns("fewest GPUs", (str(fewest or "none") for fewest in plan.fewest_gpus)))
    if not plan.fits(plan.memory[0]):
        more = f"{plan.fewest_gpus[0]} GPUs" if plan.fewest_gpus[0] else "a larger batch (which feeds more GPUs), a larger GPU"
        lines += ["", f"{gpus} can not hold it: plan {more}, a smaller micro-batch or a shorter sequence"]
    return "\n".join(lines)


def _line(name: str, value: str, note: str = "") -> str:
    return f"{name:<26}{value:>18}  {note}".rstrip()


def _columns(name: str, values: Iterable[str]) -> str:
    return f"{name:<26}" + "".join(f"{value:>18}" for value in values)


def _number(value: float) -> str:
    """Three significant digits or more, never an exponent above 1."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3g}"


def _span(hours: float) -> str:
    for length, unit in ((24.0, "days"), (1.0, "hours"), (1 / 60, "minutes")):
        if hours >= 2 * length:
            return f"{_number(hours / length)} {unit}"
    return f"{_number(hours * 3600)} seconds"
