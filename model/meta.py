"""Meta's form of a checkpoint, in and out: `params.json` and `consolidated.NN.pth`, one shard for each GPU of tensor parallelism.

Its layout of query and key rows (adjacent pairs) is the network's own.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model import checksums
from model.checkpoint import Checkpoint, Stored, built, config_of
from model.checkpoint_errors import CheckpointError, number, read_json
from model.llama import Llama, LlamaConfig, RopeScaling
from model.tokenizer_files import JSON, PIECES, open_tokenizer, tokenizer_files

_TOP = {"trunk.embedding.weight": "tok_embeddings.weight", "trunk.norm.weight": "norm.weight", "output.weight": "output.weight"}
_LAYER = {
    "attention.query.weight": "attention.wq.weight",
    "attention.key.weight": "attention.wk.weight",
    "attention.value.weight": "attention.wv.weight",
    "attention.output.weight": "attention.wo.weight",
    "feed_forward.gate.weight": "feed_forward.w1.weight",
    "feed_forward.up.weight": "feed_forward.w3.weight",
    "feed_forward.down.weight": "feed_forward.w2.weight",
    "attention_norm.weight": "attention_norm.weight",
    "feed_forward_norm.weight": "ffn_norm.weight",
}
# The axis along which tensor parallelism cuts a matrix (fairscale's column- and row-parallel layers); norms are whole in every shard.
_AXIS = {"wq": 0, "wk": 0, "wv": 0, "wo": 1, "w1": 0, "w3": 0, "w2": 1, "output": 0, "tok_embeddings": 1}
_KNOWN = {
    "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "multiple_of", "ffn_dim_multiplier", "norm_eps", "rope_theta",
    "use_scaled_rope", "rope_scaling_factor",
}  # fmt: skip
CONTEXT = 4096
# Llama 3.1's scaling is written into Meta's code; only its factor can be in params.json.
_SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_context": 8192}


def read_meta(folder: Path, *, context: int = CONTEXT) -> Checkpoint:
    """A folder with `params.json`, the shards and `tokenizer.model` (which may lie one folder above, as in Meta's download).

    Shards are read with `weights_only=True`: one that carries code is refused. `context` (tokens) is not in the format; 4096 is Llama 2's.
    Raises CheckpointError for whatever is missing, damaged or does not fit together.
    """
    folder = Path(folder)
    path = folder / "params.json"
    params = read_json(path)
    checksums.check(folder)
    shards = sorted(folder.glob("consolidated.*.pth"))
    wanted = [folder / f"consolidated.{index:02}.pth" for index in range(max(1, len(shards)))]
    for shard in wanted:
        if shard not in shards:
            raise CheckpointError(shard, None, expected=f"shard {wanted.index(shard)} of at least {len(wanted)}", found="no such file")
    beside = (folder / PIECES).is_file() or (folder / JSON).is_file()
    tokenizer, tokenizer_paths = tokenizer_files(folder if beside else folder.parent)
    size = open_tokenizer(tokenizer, str(folder)).vocab_size
    config = _read_config(params, path, size, context)
    loaded = [_load(shard) for shard in shards]
    # Llama 3 cuts the embedding by rows; its shards then have the whole width.
    by_rows = all(tuple(tensors.get("tok_embeddings.weight", torch.empty(0)).shape[1:]) == (config.dim,) for tensors in loaded)
    stored = [_stored(shards, loaded, key, by_rows) for key in loaded[0] if key != "rope.freqs"]
    model = built(config, "llama", stored, meta_name, path)
    return Checkpoint("meta", config, model, tokenizer, [path, *shards, *tokenizer_paths])


def _read_config(params: Mapping[str, Any], path: Path, vocabulary: int, context: int) -> LlamaConfig:
    for key in sorted(params.keys() - _KNOWN):
        raise CheckpointError(path, key, expected=f"only {', '.join(sorted(_KNOWN))}", found="a key of another architecture")
    size = number(params, "vocab_size", path, int, -1)
    if size not in (-1, vocabulary):
        raise CheckpointError(path, "vocab_size", expected=f"-1, or {vocabulary} as the tokenizer has", found=str(size))
    scaling = None
    if params.get("use_scaled_rope"):
        scaling = RopeScaling("llama3", number(params, "rope_scaling_factor", path, float, 8.0), **_SCALING)  # type: ignore[arg-type]
    heads = number(params, "n_heads", path, int)
    multiplier = params.get("ffn_dim_multiplier")
    values = {
        "vocab_size": vocabulary,
        "dim": number(params, "dim", path, int),
        "layers": number(params, "n_layers", path, int),
        "heads": heads,
        "kv_heads": number(params, "n_kv_heads", path, int, heads),
        "multiple_of": number(params, "multiple_of", path, int, 256),
        "ffn_multiplier": None if multiplier is None else number(params, "ffn_dim_multiplier", path, float),
        "norm_eps": number(params, "norm_eps", path, float, 1e-5),
        "rope_theta": number(params, "rope_theta", path, float, 10000.0),
        "rope_scaling": scaling,
        "max_context": context,
    }
    return config_of(values, path)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))  # an old file is one pickle
    except pickle.UnpicklingError as error:
        reason = str(error).replace("WeightsUnpickler error: ", "").splitlines()
        found = next((line for line in reason if "GLOBAL" in line or "Unsupported" in line), reason[0])
        found = f"a pickle with code or other things in it ({found.strip()})"
        raise CheckpointError(path, None, expected="tensors and nothing else", found=found) from None
    except (RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise CheckpointError(path, None, expected="a whole file of torch.save", found=f"{str(error).splitlines()[0]}") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise CheckpointError(path, None, expected="a dictionary of tensors", found=type(tensors).__name__)
    return tensors


def _stored(shards: list[Path], loaded: list[dict[str, Tensor]], key: str, by_rows: bool) -> Stored:
    """One tensor, its parts joined."""
    parts = []
    for path, tensors in zip(shards, loaded, strict=True):
        if key not in tensors:
            raise CheckpointError(path, f"tensor {key}", expected=f"its part of the tensor in {shards[0].name}", found="no such tensor")
        parts.append(tensors[key])
    axis = _axis(key, by_rows)
    if axis is None or len(parts) == 1:
        return Stored(shards[0], key, tuple(parts[0].shape), lambda: parts[0])
    for path, part in zip(shards, parts, strict=True):
        if part.shape != parts[0].shape:
            expected = f"shape {tuple(parts[0].shape)} as in {shards[0].name}"
            raise CheckpointError(path, f"tensor {key}", expected=expected, found=f"shape {tuple(part.shape)}")
    shape = list(parts[0].shape)
    shape[axis] *= len(parts)
    return Stored(shards[0], key, tuple(shape), lambda: torch.cat(parts, dim=axis))


def _axis(key: str, by_rows: bool) -> int | None:
    if key == "tok_embeddings.weight" and by_rows:
        return 0
    return _AXIS.get(key.removesuffix(".weight").rpartition(".")[2])


def meta_name(name: str) -> str:
    """Meta's name for a tensor of ours."""
    if name in _TOP:
        return _TOP[name]
    _, _, layer, rest = name.split(".", 3)
    return f"layers.{layer}.{_LAYER[rest]}"


def write_meta(model: Llama, tokenizer: Mapping[str, bytes], directory: Path, *, shards: int = 1) -> None:
    """Write `params.json`, the shards, `tokenizer.model` and Meta's `checklist.chk`. A tied embedding is written twice.

    Raises ValueError for what the format cannot say: another tokenizer than SentencePiece, a linear scaling of rotary positions, heads
    that cannot be shared among the shards.
    """
    config = model.config
    if PIECES not in tokenizer:
        raise ValueError("Meta's format holds a SentencePiece tokenizer.model, and this model has a tokenizer.json; export it as hf")
    if config.kv_heads % shards or config.feed_forward_dim % shards or config.vocab_size % shards:
        sizes = f"{config.kv_heads} key/value heads, {config.feed_forward_dim} feed-forward units and {config.vocab_size} pieces"
        raise ValueError(f"{shards} shards can not share {sizes} evenly; choose a common divisor")
    params = _params(config)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    state = {meta_name(name): tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    state.setdefault("output.weight", state["tok_embeddings.weight"])
    for index in range(shards):
        torch.save({key: _part(key, tensor, index, shards) for key, tensor in state.items()}, directory / f"consolidated.{index:02}.pth")
    (directory / "params.json").write_text(json.dumps(params, indent=2) + "\n")
    (directory / PIECES).write_bytes(tokenizer[PIECES])
    checksums.write(directory, checksums.METAS)


def _part(key: str, tensor: Tensor, index: int, shards: int) -> Tensor:
    axis = _axis(key, by_rows=False)
    return (tensor if axis is None else tensor.chunk(shards, dim=axis)[index]).clone()


def _params(config: LlamaConfig) -> dict[str, Any]:
    width, rule = config.feed_forward_dim, int(2 * (4 * config.dim) / 3)
    params: dict[str, Any] = {"dim": config.dim, "n_layers": config.layers, "n_heads": config.heads, "n_kv_heads": config.kv_heads}
    # Any width is the rule's for `multiple_of` = width and a multiplier that keeps the rule's width below it.
    params |= {"vocab_size": config.vocab_size, "multiple_of": width, "norm_eps": config.norm_eps}
    if rule > width:
        params["ffn_dim_multiplier"] = width / rule / 2
    if config.ffn_dim is None:
        params["multiple_of"] = config.multiple_of
        params.pop("ffn_dim_multiplier", None)
        if config.ffn_multiplier is not None:
            params["ffn_dim_multiplier"] = config.ffn_multiplier
    if config.rope_theta != 10000.0:
        params["rope_theta"] = config.rope_theta
    scaling = config.rope_scaling
    if scaling is not None:
        if scaling != RopeScaling("llama3", scaling.factor, **_SCALING):  # type: ignore[arg-type]
            raise ValueError(f"Meta's format has Llama 3.1's scaling of rotary positions only ({_SCALING}), and this model has {scaling}")
        params |= {"use_scaled_rope": True, "rope_scaling_factor": scaling.factor}
    return params
