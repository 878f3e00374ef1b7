"""Model FLOPs of training, and the peak of a device: what a run does of that peak is its MFU (arXiv 2204.02311 appendix B)."""

from __future__ import annotations

import functools
import time
from typing import Literal

import torch

from model.llama import LlamaConfig
from model.precision import Precision

# Dense peaks in FLOP/s by the vendors' data sheets: bf16 with fp32 sums, and fp32 outside the tensor cores, which is what torch uses for
# fp32 unless told otherwise. The first name found in the device's name counts.
PEAKS: dict[str, dict[Precision, float]] = {
    "GB200": {"bf16": 2500e12, "fp32": 80e12},
    "B200": {"bf16": 2250e12, "fp32": 75e12},
    "H200": {"bf16": 989e12, "fp32": 67e12},
    "H100 PCIe": {"bf16": 756e12, "fp32": 51e12},
    "H100 NVL": {"bf16": 835e12, "fp32": 60e12},
    "H100": {"bf16": 989e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp32": 19.5e12},
    "L40S": {"bf16": 362e12, "fp32": 91.6e12},
    "L40": {"bf16": 181e12, "fp32": 90.5e12},
    "L4": {"bf16": 121e12, "fp32": 30.3e12},
    "A10": {"bf16": 125e12, "fp32": 31.2e12},
    "RTX 4090": {"bf16": 165e12, "fp32": 82.6e12},
    "RTX 3090": {"bf16": 71e12, "fp32": 35.6e12},
}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def flops_per_token(config: LlamaConfig, sequence: int, head: Literal["tokens", "scalar"] = "tokens") -> float:
    """Model FLOPs to train on a token of a sequence of that length: 6·(weights of products) + 12·layers·dim·sequence.

    arXiv 2204.02311 appendix B. The input embedding is a lookup and costs nothing; attention counts the whole square; what activation
    checkpointing computes again does not count, as is usual for MFU.
    """
    attention = 2 * config.dim * config.dim + 2 * config.dim * config.kv_heads * config.head_dim
    layers = config.layers * (attention + 3 * config.dim * config.feed_forward_dim)
    return 6.0 * (layers + config.dim * (config.vocab_size if head == "tokens" else 1)) + 12.0 * config.layers * config.dim * sequence


def peak_flops(device: torch.device, precision: Precision) -> float:
    """The device's dense peak in FLOP/s: of the data sheet where `PEAKS` has it, else the best of a few large products, measured once.

    A processor's cores and clock are shared and vary, so that its data sheet says little: measured, MFU is the share of what its products
    reach when they are alone.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for known, peaks in PEAKS.items():
            if known.lower() in name.lower():
                return peaks[precision]
    return _measured(device, precision, torch.get_num_threads())


@functools.cache
def _measured(device: torch.device, precision: Precision, threads: int) -> float:
    size = 512 if device.type == "cpu" else 8192
    square = torch.ones(size, size, dtype=DTYPES[precision], device=device)
    best, until = 0.0, time.perf_counter() + 0.2
    for attempt in range(10):
        began = time.perf_counter()
        square @ square
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        if attempt:  # the first one warms up
            best = max(best, 2 * size**3 / (now - began))
            if now > until:
                break
    return best
