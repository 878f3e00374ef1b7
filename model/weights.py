"""Weights on disk: `config.json` and a safetensors file, in the network's own names; equal weights give equal bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from model.llama import Llama, LlamaConfig
from model.reward import RewardModel

M = TypeVar("M", bound=nn.Module)


def save_llama(model: Llama, directory: Path, *, name: str = "model") -> None:
    """Write `config.json` and `<name>.safetensors`; several names may share a directory if their config is the same."""
    _save(model, model.config, "llama", directory, name)


def load_llama(directory: Path, *, name: str = "model", device: torch.device | str = "cpu") -> Llama:
    """The model that `save_llama` wrote, on `device`. Raises ValueError if the directory holds another kind or other tensors."""
    config = _config(directory, "llama")
    with torch.device("meta"):
        model = Llama(config)
    return _load(model, directory, name, device)


def save_reward(model: RewardModel, directory: Path, *, name: str = "model") -> None:
    """As `save_llama`, for a reward model."""
    _save(model, model.config, "reward", directory, name)


def load_reward(directory: Path, *, name: str = "model", device: torch.device | str = "cpu") -> RewardModel:
    """The reward model that `save_reward` wrote; errors as for `load_llama`."""
    config = _config(directory, "reward")
    with torch.device("meta"):
        model = RewardModel(config)
    return _load(model, directory, name, device)


def save(model: Llama | RewardModel, directory: Path) -> None:
    """`save_llama` or `save_reward`, by the model's kind."""
    save_llama(model, directory) if isinstance(model, Llama) else save_reward(model, directory)


def load(directory: Path, *, name: str = "model") -> Llama | RewardModel:
    """`load_llama` or `load_reward`, by what the directory holds."""
    kind = json.loads((Path(directory) / "config.json").read_text()).get("kind")
    return load_reward(directory, name=name) if kind == "reward" else load_llama(directory, name=name)


def _save(model: nn.Module, config: LlamaConfig, kind: str, directory: Path, name: str) -> None:
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"kind": kind, **config.to_dict()}, indent=2, sort_keys=True) + "\n"
    path = directory / "config.json"
    if path.exists() and path.read_text() != text:
        raise ValueError(f"{path} describes another model; save {name!r} to a directory of its own")
    path.write_text(text)
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    save_file(tensors, directory / f"{name}.safetensors")


def _config(directory: Path, kind: str) -> LlamaConfig:
    path = Path(directory) / "config.json"
    values = json.loads(path.read_text())
    found = values.pop("kind", None)
    if found != kind:
        raise ValueError(f"{path} describes a model of kind {found!r}, where {kind!r} was expected")
    return LlamaConfig.from_dict(values)


def _load(model: M, directory: Path, name: str, device: torch.device | str) -> M:
    path = Path(directory) / f"{name}.safetensors"
    # Cloned, because the file's tensors are not aligned as torch's own are, and sums round differently where alignment differs.
    tensors = {key: tensor.clone() for key, tensor in load_file(path, device=str(device)).items()}
    expected = model.state_dict()
    for key in sorted(expected.keys() | tensors.keys()):
        if key not in tensors or key not in expected:
            raise ValueError(f"{path}: tensor {key!r} is {'missing' if key not in tensors else 'unknown'}")
        if tensors[key].shape != expected[key].shape:
            raise ValueError(f"{path}: tensor {key!r} has shape {tuple(tensors[key].shape)}, the config says {tuple(expected[key].shape)}")
    return filled(model, tensors)


def filled(model: M, tensors: dict[str, Tensor]) -> M:
    """`model` with these tensors as its parameters, which training may change; names and shapes are those of its state."""
    model.load_state_dict(tensors, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model
