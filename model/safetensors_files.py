"""Safetensors as Hugging Face lays them out: one file, or shards with an index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.checkpoint import Stored
from model.checkpoint_errors import CheckpointError, read_json

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
WHOLE = "a whole safetensors file"


def stored_tensors(folder: Path) -> tuple[list[Stored], list[Path]]:
    """All tensors of a folder, unread, and the files that hold or list them.

    Raises CheckpointError for a file that is missing, cut short or damaged in its header, and for an index that disagrees with the shards.
    """
    if (folder / SINGLE).is_file():
        return list(_tensors_of(folder / SINGLE)), [folder / SINGLE]
    index = folder / INDEX
    if not index.is_file():
        others = ", ".join(sorted(path.name for path in folder.glob("*.bin"))) or "neither"
        raise CheckpointError(folder, None, expected=f"{SINGLE} or {INDEX}", found=others)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) and Path(name).name == name for name in places.values()):
        raise CheckpointError(index, "weight_map", expected="an object from tensors to file names", found=repr(places)[:100])
    shards = [folder / name for name in sorted(set(places.values()))]
    stored = [one for shard in shards for one in _tensors_of(shard)]
    for one in stored:
        if places.get(one.key) != one.file.name:
            raise CheckpointError(index, f"weight_map.{one.key}", expected=one.file.name, found=str(places.get(one.key)))
    for key in sorted(places.keys() - {one.key for one in stored}):
        raise CheckpointError(folder / places[key], f"tensor {key}", expected=f"it here by {INDEX}", found="no such tensor")
    return stored, [index, *shards]


def _tensors_of(path: Path) -> Iterator[Stored]:
    if not path.is_file():
        raise CheckpointError(path, None, expected=f"this shard by {INDEX}", found="no such file")
    try:
        file = safe_open(path, framework="pt")
        for key in file.keys():  # noqa: SIM118  it is no dictionary
            yield Stored(path, key, tuple(file.get_slice(key).get_shape()), partial(_read, path, file, key))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(path, None, expected=WHOLE, found=f"one of {path.stat().st_size} bytes that is not ({error})") from None


def _read(path: Path, file: safe_open, key: str) -> Tensor:
    try:
        return file.get_tensor(key)
    except (SafetensorError, OSError, AttributeError) as error:
        raise CheckpointError(path, f"tensor {key}", expected=WHOLE, found=str(error)) from None


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, shard_bytes: int) -> None:
    """Write one file, or, where the tensors take more than `shard_bytes`, shards of at most that (or of one tensor) with their index."""
    shards: list[dict[str, Tensor]] = [{}]
    filled = total = 0
    for key, tensor in tensors.items():
        size = tensor.nbytes
        if shards[-1] and filled + size > shard_bytes:
            shards.append({})
            filled = 0
        shards[-1][key] = tensor
        filled, total = filled + size, total + size
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE, metadata={"format": "pt"})
        return
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
