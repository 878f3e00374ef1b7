"""The Hugging Face form of a checkpoint, in and out: what transformers, vLLM and llama.cpp's converter read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from model import checksums
from model.checkpoint import Checkpoint, Kind, Stored, built, config_of
from model.checkpoint_errors import CheckpointError, number, read_json
from model.llama import Llama, LlamaConfig, RopeScaling
from model.reward import RewardModel
from model.safetensors_files import stored_tensors, write_tensors
from model.tokenizer import SentencePieceTokenizer
from model.tokenizer_files import JSON, PIECES, SETTINGS, open_tokenizer, tokenizer_files, tokenizer_settings
from model.tokenizer_json import from_sentencepiece

ARCHITECTURES: dict[str, Kind] = {"LlamaForCausalLM": "llama", "LlamaForSequenceClassification": "reward"}
SHARD_BYTES = 5_000_000_000

_TOP = {
    "trunk.embedding.weight": "model.embed_tokens.weight",
    "trunk.norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    "head.weight": "score.weight",
}
_LAYER = {
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.output.weight": "self_attn.o_proj.weight",
    "feed_forward.gate.weight": "mlp.gate_proj.weight",
    "feed_forward.up.weight": "mlp.up_proj.weight",
    "feed_forward.down.weight": "mlp.down_proj.weight",
    "attention_norm.weight": "input_layernorm.weight",
    "feed_forward_norm.weight": "post_attention_layernorm.weight",
}
_ROTATED = ("attention.query.weight", "attention.key.weight")
_SIZES = {
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn_dim": "intermediate_size",
}
# What LlamaConfig of transformers takes where the file is silent.
_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "rope_theta": 10000.0}
# Variants of the architecture that this network has not.
_FIXED = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "quantization_config": None}


def read_huggingface(folder: Path) -> Checkpoint:
    """A folder with `config.json`, safetensors (one file, or shards with an index) and a tokenizer.

    Query and key rows come back to adjacent pairs (`join_pairs`). Raises CheckpointError for whatever is missing, damaged, of another
    architecture, or does not fit together; sums that the folder has (`model.checksums`) are checked.
    """
    folder = Path(folder)
    path = folder / "config.json"
    kind, config = read_config(read_json(path), path)
    tokenizer, tokenizer_paths = tokenizer_files(folder)
    _check_vocabulary(tokenizer, config, path, folder)
    checksums.check(folder)
    stored, files = stored_tensors(folder)
    stored = [one for one in stored if not one.key.endswith("rotary_emb.inv_freq")]  # a constant that older files hold
    if config.tie_embeddings:
        stored = _untie(stored)
    model = built(config, kind, stored, huggingface_name, path)
    for name, parameter in model.named_parameters():
        if name.endswith(_ROTATED):
            parameter.data = join_pairs(parameter.data, config.head_dim)
    return Checkpoint("huggingface", config, model, tokenizer, [path, *files, *tokenizer_paths])


def _check_vocabulary(tokenizer: Mapping[str, bytes], config: LlamaConfig, path: Path, folder: Path) -> None:
    size = open_tokenizer(tokenizer, str(folder)).vocab_size
    if size != config.vocab_size:
        raise CheckpointError(path, "vocab_size", expected=f"{size}, the size of the tokenizer beside it", found=str(config.vocab_size))


def read_config(values: Mapping[str, Any], path: Path) -> tuple[Kind, LlamaConfig]:
    """What a `config.json` says, rotary scaling in its older and its newer spelling. Raises CheckpointError, naming the key."""
    architectures = values.get("architectures")
    if not isinstance(architectures, list) or len(architectures) != 1 or architectures[0] not in ARCHITECTURES:
        raise CheckpointError(path, "architectures", expected=" or ".join(ARCHITECTURES), found=str(architectures))
    kind = ARCHITECTURES[architectures[0]]
    for key, expected in _FIXED.items():
        if values.get(key, expected) != expected:
            raise CheckpointError(path, key, expected=str(expected), found=str(values[key]))
    sizes: dict[str, Any] = {ours: number(values, theirs, path, int) for ours, theirs in _SIZES.items()}
    config = config_of(
        {
            **sizes,
            "kv_heads": number(values, "num_key_value_heads", path, int, sizes["heads"]),
            "norm_eps": number(values, "rms_norm_eps", path, float, _DEFAULTS["rms_norm_eps"]),
            "max_context": number(values, "max_position_embeddings", path, int, _DEFAULTS["max_position_embeddings"]),
            "tie_embeddings": kind == "llama" and bool(values.get("tie_word_embeddings", False)),
            **_read_rope(values, path),
        },
        path,
    )
    if values.get("head_dim") not in (None, config.head_dim):
        raise CheckpointError(path, "head_dim", expected=f"{config.head_dim}, hidden_size / num_attention_heads", found=str(values["head_dim"]))
    if kind == "reward":
        labels = len(values.get("id2label") or range(values.get("num_labels") or 2))
        if labels != 1:
            raise CheckpointError(path, "id2label", expected="1 label, the score", found=f"{labels} labels")
    return kind, config


def _read_rope(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a LlamaConfig. transformers 5 keeps both in `rope_parameters`."""
    name = "rope_parameters" if values.get("rope_parameters") else "rope_scaling"
    rope = values.get(name) or {}
    if not isinstance(rope, dict):
        raise CheckpointError(path, name, expected="an object", found=repr(rope))
    theta = number(rope if "rope_theta" in rope else values, "rope_theta", path, float, _DEFAULTS["rope_theta"])
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0)) != 1.0:
        raise CheckpointError(path, f"{name}.partial_rotary_factor", expected="1.0", found="a part of each head only")
    if kind == "default":
        return {"rope_theta": theta}
    if kind not in ("linear", "llama3"):
        raise CheckpointError(path, f"{name}.rope_type", expected="default, linear or llama3", found=str(kind))
    fields: dict[str, Any] = {"kind": kind, "factor": number(rope, "factor", path, float)}
    if kind == "llama3":
        fields["low_freq_factor"] = number(rope, "low_freq_factor", path, float)
        fields["high_freq_factor"] = number(rope, "high_freq_factor", path, float)
        fields["original_context"] = number(rope, "original_max_position_embeddings", path, int)
    try:
        return {"rope_theta": theta, "rope_scaling": RopeScaling(**fields)}
    except ValueError as error:
        raise CheckpointError(path, name, expected="a scaling of rotary positions", found=str(error)) from None


def _untie(stored: list[Stored]) -> list[Stored]:
    """Without the output matrix that some files hold although it is tied to the embedding; one that differs is refused."""
    tensors = {one.key: one for one in stored}
    output, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if output is None or embedding is None:
        return stored
    if output.shape != embedding.shape or not output.read().equal(embedding.read()):
        raise CheckpointError(output.file, "tensor lm_head.weight", expected="the embedding (tie_word_embeddings)", found="another matrix")
    return [one for one in stored if one is not output]


def write_huggingface(model: Llama | RewardModel, tokenizer: Mapping[str, bytes], directory: Path, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write a folder that `AutoTokenizer` and `AutoModelForCausalLM` (a reward model: `…ForSequenceClassification`) load as it is.

    `tokenizer` maps file names to contents (`model.tokenizer_files`). A SentencePiece tokenizer also gets a `tokenizer.json` that splits
    every text alike; without a chat template of its own a model gets Llama 2's. Logits are the same in both layouts. Equal models give
    equal bytes. Raises CheckpointError where the tokenizer's size is not the embedding's.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    opened = open_tokenizer(tokenizer, "the tokenizer")
    if opened.vocab_size != model.config.vocab_size:
        raise CheckpointError(
            directory, "vocab_size", expected=f"{opened.vocab_size}, the size of the tokenizer", found=str(model.config.vocab_size)
        )
    settings = tokenizer_settings(tokenizer)
    ids = {"bos_token_id": opened.bos_id if settings.get("bos_token") else None, "eos_token_id": opened.eos_id}
    texts = {"config.json": _config(model, ids | {"pad_token_id": opened.pad_id} if isinstance(model, RewardModel) else ids)}
    if isinstance(model, Llama):
        texts["generation_config.json"] = {**ids, "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    texts[SETTINGS] = {
        **settings,
        "tokenizer_class": "PreTrainedTokenizerFast",  # reads tokenizer.json as it is
        "model_max_length": model.config.max_context,
        "clean_up_tokenization_spaces": False,
    }
    write_tensors(huggingface_tensors(model), directory, shard_bytes)
    for name, values in texts.items():
        (directory / name).write_text(json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    if isinstance(opened, SentencePieceTokenizer):
        (directory / PIECES).write_bytes(tokenizer[PIECES])
        (directory / JSON).write_bytes(from_sentencepiece(opened))
    else:
        (directory / JSON).write_bytes(tokenizer[JSON])
    checksums.write(directory)


def huggingface_name(name: str) -> str:
    """Hugging Face's name for a tensor of ours."""
    if name in _TOP:
        return _TOP[name]
    _, _, layer, rest = name.split(".", 3)
    return f"model.layers.{layer}.{_LAYER[rest]}"


def huggingface_tensors(model: Llama | RewardModel) -> dict[str, Tensor]:
    """The weights under Hugging Face's names, query and key rows permuted (`split_pairs`)."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        tensor = tensor.detach().cpu()
        if name.endswith(_ROTATED):
            tensor = split_pairs(tensor, model.config.head_dim)
        tensors[huggingface_name(name)] = tensor.contiguous()
    return tensors


def split_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of each head from adjacent pairs (0, 1), (2, 3), … to halves, (0, 2, …, 1, 3, …).

    Meta rotates rows (2i, 2i+1), Hugging Face rows (i, i + head_dim/2); attention scores do not change under a common permutation.
    """
    return weight.view(-1, head_dim // 2, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def join_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """The inverse of `split_pairs`."""
    return weight.view(-1, 2, head_dim // 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def _config(model: Llama | RewardModel, ids: Mapping[str, int | None]) -> dict[str, Any]:
    config, scaling = model.config, model.config.rope_scaling
    values: dict[str, Any] = {
        "architectures": [next(name for name, kind in ARCHITECTURES.items() if (kind == "llama") == isinstance(model, Llama))],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.feed_forward_dim,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": config.tie_embeddings and isinstance(model, Llama),
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "torch_dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "use_cache": True,
        **ids,
    }
    if scaling is not None:
        values["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor}
        if scaling.kind == "llama3":
            values["rope_scaling"] |= {
                "low_freq_factor": scaling.low_freq_factor,
                "high_freq_factor": scaling.high_freq_factor,
                "original_max_position_embeddings": scaling.original_context,
            }
    if isinstance(model, RewardModel):
        values |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    return values
