"""The two precisions: fp32, and bf16 products with fp32 weights, norms, softmaxes and logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

Precision = Literal["fp32", "bf16"]
# Lightning's names.
TRAINER_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


@contextmanager
def autocast(model: nn.Module, precision: Precision) -> Iterator[None]:
    """Run forward passes of `model` with this precision; another name raises ValueError.

    PyTorch keeps the bf16 copies of the weights until the outermost autocast context ends. They are dropped on leaving this one, lest
    copies made without a graph, or before an update, be used by a training step around it.
    """
    if precision not in TRAINER_PRECISION:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(TRAINER_PRECISION)}")
    if precision == "fp32":
        yield
        return
    with torch.autocast(next(model.parameters()).device.type, torch.bfloat16):
        try:
            yield
        finally:
            torch.clear_autocast_cache()
