"""GGUF in: a Llama checkpoint of llama.cpp's, its weights dequantized to fp32.

llama.cpp's converter brings query and key rows to adjacent pairs, which is the network's own layout.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import Checkpoint, Stored, built, config_of
from model.checkpoint_errors import CheckpointError
from model.llama import LlamaConfig, RopeScaling
from model.optional import optional
from model.tokenizer_files import JSON, open_tokenizer, with_settings
from model.tokenizer_json import BYTE, CONTROL, NORMAL, UNKNOWN, llama_json, tokenizer_json

_TOP = {"trunk.embedding.weight": "token_embd.weight", "trunk.norm.weight": "output_norm.weight", "output.weight": "output.weight"}
_LAYER = {
    "attention.query.weight": "attn_q.weight",
    "attention.key.weight": "attn_k.weight",
    "attention.value.weight": "attn_v.weight",
    "attention.output.weight": "attn_output.weight",
    "feed_forward.gate.weight": "ffn_gate.weight",
    "feed_forward.up.weight": "ffn_up.weight",
    "feed_forward.down.weight": "ffn_down.weight",
    "attention_norm.weight": "attn_norm.weight",
    "feed_forward_norm.weight": "ffn_norm.weight",
}
ROPE_FACTORS = "rope_freqs.weight"
# Llama 3.1's and 3.2's scaling, which GGUF holds as a tensor of divisors.
_KNOWN_SCALINGS = [RopeScaling("llama3", factor, 1.0, 4.0, 8192) for factor in (8.0, 32.0)]
_KINDS = {1: NORMAL, 2: UNKNOWN, 3: CONTROL, 6: BYTE}
_BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_LLAMA3_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# How text is cut into words before merging, by llama.cpp's name for it.
_PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_BYTE_LEVEL],
    "smollm": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL],
    "llama-bpe": [
        {"type": "Split", "pattern": {"Regex": _LLAMA3_WORDS}, "behavior": "Isolated", "invert": False},
        _BYTE_LEVEL | {"use_regex": False},
    ],
}


class _File:
    """The metadata and tensors of a file. Raises CheckpointError, naming the key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gguf = optional("gguf", "gguf", "a GGUF file")
        try:
            self.reader = self.gguf.GGUFReader(path)
            self.tensors = {tensor.name: tensor for tensor in self.reader.tensors}
        except Exception as error:  # numpy's, struct's and the package's own, for the many ways in which bytes can be wrong
            size = path.stat().st_size
            raise CheckpointError(path, None, expected="a whole GGUF file", found=f"{size} bytes that are not ({error})") from None

    def value(self, key: str, default: Any = None) -> Any:
        """A metadata value; without a default it must be there."""
        field = self.reader.get_field(key)
        if field is not None:
            return field.contents()
        if default is None:
            raise CheckpointError(self.path, key, expected="a value", found="no such key")
        return default

    def stored(self) -> Iterator[Stored]:
        for name, tensor in self.tensors.items():
            # GGUF counts axes from the innermost.
            yield Stored(self.path, name, tuple(int(size) for size in reversed(tensor.shape)), partial(self._read, tensor))

    def _read(self, tensor: Any) -> Tensor:
        try:
            return torch.from_numpy(self.gguf.dequantize(tensor.data, tensor.tensor_type).copy()).float()
        except NotImplementedError as error:
            raise CheckpointError(self.path, f"tensor {tensor.name}", expected="a quantization that can be undone", found=str(error)) from None


def read_gguf(path: Path) -> Checkpoint:
    """A GGUF file of a Llama. Raises CheckpointError for a damaged file, another architecture, or a tokenizer that is not known."""
    file = _File(Path(path))
    architecture = file.value("general.architecture")
    if architecture != "llama":
        raise CheckpointError(path, "general.architecture", expected="llama", found=str(architecture))
    tokenizer = _tokenizer(file)
    config = _config(file, open_tokenizer(tokenizer, str(path)).vocab_size)
    stored = [one for one in file.stored() if one.key != ROPE_FACTORS]
    model = built(config, "llama", stored, gguf_name, Path(path))
    return Checkpoint("gguf", config, model, tokenizer, [Path(path)])


def gguf_name(name: str) -> str:
    """llama.cpp's name for a tensor of ours."""
    if name in _TOP:
        return _TOP[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_LAYER[rest]}"


def _config(file: _File, vocabulary: int) -> LlamaConfig:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and int(embedding.shape[1]) != vocabulary:
        found = f"{embedding.shape[1]} rows"
        raise CheckpointError(file.path, "tensor token_embd.weight", expected=f"{vocabulary} rows, the size of the tokenizer", found=found)
    heads = int(file.value("llama.attention.head_count"))
    config = config_of(
        {
            "vocab_size": vocabulary,
            "dim": int(file.value("llama.embedding_length")),
            "layers": int(file.value("llama.block_count")),
            "heads": heads,
            "kv_heads": int(file.value("llama.attention.head_count_kv", heads)),
            "ffn_dim": int(file.value("llama.feed_forward_length")),
            "norm_eps": float(file.value("llama.attention.layer_norm_rms_epsilon")),
            "rope_theta": float(file.value("llama.rope.freq_base", 10000.0)),
            "rope_scaling": _scaling(file, heads),
            "max_context": int(file.value("llama.context_length")),
            "tie_embeddings": "output.weight" not in file.tensors,
        },
        file.path,
    )
    for key in ("llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"):
        if (size := int(file.value(key, config.head_dim))) != config.head_dim:
            raise CheckpointError(file.path, key, expected=f"{config.head_dim}, embedding_length / head_count", found=str(size))
    if file.value("llama.expert_count", 0) not in (0, None):
        raise CheckpointError(file.path, "llama.expert_count", expected="0", found=str(file.value("llama.expert_count")))
    return config


def _scaling(file: _File, heads: int) -> RopeScaling | None:
    kind = file.value("llama.rope.scaling.type", "none")
    if kind == "linear":
        return RopeScaling("linear", float(file.value("llama.rope.scaling.factor")))
    if kind != "none":
        raise CheckpointError(file.path, "llama.rope.scaling.type", expected="none or linear", found=str(kind))
    if ROPE_FACTORS not in file.tensors:
        return None
    head_dim = int(file.value("llama.embedding_length")) // heads
    theta = float(file.value("llama.rope.freq_base", 10000.0))
    frequencies_c = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    stored_c = torch.from_numpy(file.tensors[ROPE_FACTORS].data.copy()).float()
    for scaling in _KNOWN_SCALINGS:
        if stored_c.shape == frequencies_c.shape and torch.allclose(stored_c, scaling.divisors(frequencies_c), rtol=1e-3):
            return scaling
    expected = "the divisors of Llama 3.1's or 3.2's scaling"
    raise CheckpointError(file.path, f"tensor {ROPE_FACTORS}", expected=expected, found=str([round(float(one), 3) for one in stored_c[:8]]))


def _tokenizer(file: _File) -> dict[str, bytes]:
    """The vocabulary of the metadata as a tokenizer.json."""
    tokens = [str(token) for token in file.value("tokenizer.ggml.tokens")]
    kinds = [int(kind) for kind in file.value("tokenizer.ggml.token_type")]
    settings: dict[str, Any] = {}
    for name, key in (("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")):
        number = file.value(f"tokenizer.ggml.{key}_token_id", -1)
        if 0 <= number < len(tokens):
            settings[name] = tokens[number]
    if template := file.value("tokenizer.chat_template", ""):
        settings["chat_template"] = template
    kind = file.value("tokenizer.ggml.model")
    if kind == "llama":
        content = _sentencepiece(file, tokens, kinds, settings.get("bos_token"))
    elif kind == "gpt2":
        content = _byte_level(file, tokens, kinds, settings.get("bos_token"))
    else:
        raise CheckpointError(file.path, "tokenizer.ggml.model", expected="llama or gpt2", found=str(kind))
    return with_settings({JSON: content}, settings)


def _sentencepiece(file: _File, tokens: list[str], kinds: list[int], bos: str | None) -> bytes:
    for number, kind in enumerate(kinds):
        if kind not in _KINDS:
            raise CheckpointError(file.path, f"tokenizer.ggml.token_type[{number}]", expected="a kind of 1, 2, 3 or 6", found=str(kind))
    if not file.value("tokenizer.ggml.add_space_prefix", True):
        raise CheckpointError(file.path, "tokenizer.ggml.add_space_prefix", expected="true, as Llama's tokenizer has it", found="false")
    scores = [float(score) for score in file.value("tokenizer.ggml.scores")]
    adds_bos = bool(file.value("tokenizer.ggml.add_bos_token", True))
    return llama_json(tokens, scores, [_KINDS[kind] for kind in kinds], bos if adds_bos else None)


def _byte_level(file: _File, tokens: list[str], kinds: list[int], bos: str | None) -> bytes:
    pre = file.value("tokenizer.ggml.pre", "gpt-2")
    if pre not in _PRE_TOKENIZERS:
        raise CheckpointError(file.path, "tokenizer.ggml.pre", expected=" or ".join(_PRE_TOKENIZERS), found=str(pre))
    ids = {token: i for i, token in enumerate(tokens)}
    adds_bos = bool(file.value("tokenizer.ggml.add_bos_token", pre == "llama-bpe"))
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": pre == "llama-bpe",
        "vocab": ids,
        "merges": [str(merge) for merge in file.value("tokenizer.ggml.merges")],
    }
    special = [(i, token) for i, token in enumerate(tokens) if kinds[i] in (2, 3)]
    pre_tokenizer = {"type": "Sequence", "pretokenizers": _PRE_TOKENIZERS[pre]}
    return tokenizer_json(model, special, None, pre_tokenizer, _BYTE_LEVEL, (bos, ids[bos]) if bos and adds_bos else None)
