"""The Hugging Face form of a checkpoint, which transformers, vLLM and llama.cpp's converter read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from model.llama import Llama

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


def to_huggingface(llama: Llama, tokenizer_model_path: Path, directory: Path) -> None:
    """Write `config.json`, `generation_config.json`, `model.safetensors` and `tokenizer.model` for `LlamaForCausalLM`.

    Logits are the same in both layouts. Equal models give equal bytes.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(huggingface_tensors(llama), directory / "model.safetensors", metadata={"format": "pt"})
    for name, values in (("config.json", _config(llama)), ("generation_config.json", _generation_config())):
        (directory / name).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    shutil.copyfile(tokenizer_model_path, directory / "tokenizer.model")


def huggingface_tensors(llama: Llama) -> dict[str, Tensor]:
    """The weights under Hugging Face's names, query and key rows permuted (`split_pairs`)."""
    tensors = {}
    for name, tensor in llama.state_dict().items():
        tensor = tensor.detach().cpu()
        if name == "output.weight":
            target = "lm_head.weight"
        elif name == "trunk.embedding.weight":
            target = "model.embed_tokens.weight"
        elif name == "trunk.norm.weight":
            target = "model.norm.weight"
        else:
            _, _, layer, rest = name.split(".", 3)
            target = f"model.layers.{layer}.{_LAYER[rest]}"
            if rest in ("attention.query.weight", "attention.key.weight"):
                tensor = split_pairs(tensor, llama.config.head_dim)
        tensors[target] = tensor.contiguous()
    return tensors


def split_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Reorder the rows of each head from adjacent pairs (0, 1), (2, 3), … to halves, (0, 2, …, 1, 3, …).

    Meta rotates rows (2i, 2i+1), Hugging Face rows (i, i + head_dim/2); attention scores do not change under a common permutation.
    """
    return weight.view(-1, head_dim // 2, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def _config(llama: Llama) -> dict:
    config = llama.config
    return {
        "architectures": ["LlamaForCausalLM"],
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
        "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": str(next(llama.parameters()).dtype).removeprefix("torch."),
        "use_cache": True,
    }


def _generation_config() -> dict:
    return {"bos_token_id": 1, "eos_token_id": 2, "do_sample": True, "temperature": 0.6, "top_p": 0.9}
