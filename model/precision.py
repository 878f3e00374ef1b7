"""The two precisions: fp32, and bf16 products with fp32 weights, norms, softmaxes and logits."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import nn

Precision = Literal["fp32", "bf16"]
# Lightning's names.
TRAINER_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed"}


def autocast(model: nn.Module, precision: Precision) -> AbstractContextManager:
    """The context in which a forward pass of `model` runs with this precision; another name raises ValueError."""
    if precision not in TRAINER_PRECISION:
        raise ValueError(f"precision is {precision!r}; it must be one of {', '.join(TRAINER_PRECISION)}")
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(next(model.parameters()).device.type, torch.bfloat16)
