"""What every checkpoint format is read into: a config, weights under the network's own names, and the tokenizer's files."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from model.checkpoint_errors import CheckpointError
from model.llama import Llama, LlamaConfig
from model.reward import RewardModel
from model.weights import filled

Kind = Literal["llama", "reward"]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Checkpoint:
    """A model read from somewhere. `files` are all files that were read; `tokenizer` maps file names to contents (`model.tokenizer_files`)."""

    format: str
    config: LlamaConfig
    model: Llama | RewardModel
    tokenizer: dict[str, bytes]
    files: list[Path] = field(default_factory=list)

    @property
    def kind(self) -> Kind:
        return "llama" if isinstance(self.model, Llama) else "reward"


@dataclass(frozen=True)
class Stored:
    """A tensor as a file holds it, not yet read."""

    file: Path
    key: str
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def built(config: LlamaConfig, kind: Kind, stored: Iterable[Stored], keys: Callable[[str], str], config_file: Path) -> Llama | RewardModel:
    """The model of `config` with the stored tensors; `keys` gives a format's name for one of ours.

    Tensors of several precisions are brought to the widest of them. Raises CheckpointError for a tensor that is missing, unknown, of
    another shape than the config says, no floating point, or not finite.
    """
    with torch.device("meta"):
        model = Llama(config) if kind == "llama" else RewardModel(config)
    found = {one.key: one for one in stored}
    wanted = {name: keys(name) for name in model.state_dict()}
    for name, parameter in model.state_dict().items():
        shape = tuple(parameter.shape)
        one = found.get(wanted[name])
        if one is None:
            files = {other.file for other in found.values()}
            place = files.pop() if len(files) == 1 else config_file.parent
            raise CheckpointError(place, f"tensor {wanted[name]}", expected=f"shape {shape}", found="no such tensor")
        if one.shape != shape:
            expected = f"shape {shape} by {config_file.name}"
            raise CheckpointError(one.file, f"tensor {one.key}", expected=expected, found=f"shape {one.shape}")
    for key in sorted(found.keys() - wanted.values()):
        expected = f"only the tensors of a Llama of {config.layers} layers"
        raise CheckpointError(found[key].file, f"tensor {key}", expected=expected, found=f"this one besides, of shape {found[key].shape}")
    tensors = {name: _read(found[key]) for name, key in wanted.items()}
    dtype = _widest(tensors.values())
    return filled(model, {name: tensor.to(dtype) for name, tensor in tensors.items()})


def _read(stored: Stored) -> Tensor:
    tensor = stored.read()
    if tensor.dtype not in DTYPES:
        kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise CheckpointError(stored.file, f"tensor {stored.key}", expected=kinds, found=str(tensor.dtype).removeprefix("torch."))
    if not tensor.isfinite().all():
        count = int((~tensor.isfinite()).sum())
        raise CheckpointError(stored.file, f"tensor {stored.key}", expected="finite numbers", found=f"{count} that are infinite or no number")
    # A tensor that maps a file is not aligned as torch's own are, and sums round differently where alignment differs.
    return tensor.clone(memory_format=torch.contiguous_format)


def _widest(tensors: Iterable[Tensor]) -> torch.dtype:
    return functools.reduce(torch.promote_types, {tensor.dtype for tensor in tensors})


def config_of(values: Mapping[str, Any], path: Path) -> LlamaConfig:
    """LlamaConfig(**values), its complaints with the file's name before them."""
    try:
        return LlamaConfig(**values)
    except ValueError as error:
        raise CheckpointError(path, None, expected="sizes that make a network", found=str(error)) from None
