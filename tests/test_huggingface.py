"""Hugging Face folders: parity with transformers on the way out, the same weights on the way in, one clear error for whatever is wrong."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from checkpoints import change_json, chatml_files, equal, made, made_reward, sentencepiece_files, small, tokens
from safetensors.torch import load_file, save_file

from model.checkpoint_errors import CheckpointError
from model.formats import read_checkpoint
from model.huggingface import write_huggingface
from model.llama import Llama, RopeScaling
from model.reward import RewardModel, score
from model.tokenizer_files import JSON, PIECES

torch.set_num_threads(1)

LLAMA3 = RopeScaling("llama3", 8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=24)
CONFIGS = {
    "every head its own keys": {"kv_heads": 4},
    "grouped queries": {"kv_heads": 2, "norm_eps": 1e-4},
    "one key head, tied": {"kv_heads": 1, "tie_embeddings": True},
    "linear scaling": {"rope_scaling": RopeScaling("linear", 4.0)},
    "Llama 3 scaling, tied": {"rope_scaling": LLAMA3, "rope_theta": 500000.0, "tie_embeddings": True, "ffn_dim": 40},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_equal_those_of_transformers_and_the_weights_come_back(tmp_path: Path, changes: dict) -> None:
    model = made(small(**changes))
    write_huggingface(model, sentencepiece_files(), tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    assert type(theirs) is transformers.LlamaForCausalLM
    batch = tokens(3, 90)
    with torch.no_grad():
        ours, expected = model(batch), theirs(batch).logits
    assert expected.abs().max() > 1
    assert (ours - expected).abs().max() < 1e-4
    read = read_checkpoint(tmp_path)
    assert (read.format, read.kind) == ("huggingface", "llama")
    assert read.config == small(**changes | {"ffn_dim": model.config.feed_forward_dim, "multiple_of": 256})
    assert equal(read.model, model)
    assert read.tokenizer[PIECES] == sentencepiece_files()[PIECES]


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True, "kv_heads": 4, "rope_scaling": LLAMA3}], ids=["grouped", "scaled"])
def test_reward_models_score_alike_in_transformers(tmp_path: Path, changes: dict) -> None:
    model = made_reward(small(**changes))
    write_huggingface(model, sentencepiece_files(), tmp_path)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    assert type(theirs) is transformers.LlamaForSequenceClassification
    sequences = [tokens(n, seed=n).clamp(min=3).tolist() for n in (5, 31, 12)]
    padded = torch.tensor([sequence + [theirs.config.pad_token_id] * (31 - len(sequence)) for sequence in sequences])
    with torch.no_grad():
        expected = theirs(padded, attention_mask=(padded != theirs.config.pad_token_id).long()).logits[:, 0].numpy()
    np.testing.assert_allclose(score(model, sequences), expected, atol=1e-4)
    assert np.abs(expected).max() > 0.1
    read = read_checkpoint(tmp_path)
    assert read.kind == "reward" and isinstance(read.model, RewardModel)
    assert equal(read.model, model)


def test_a_model_that_transformers_saved_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = transformers.LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=96,
        rms_norm_eps=1e-5,
        rope_parameters=rope | {"original_max_position_embeddings": 24},
        initializer_range=0.15,
        tie_word_embeddings=False,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    for name, content in chatml_files().items():
        (tmp_path / name).write_bytes(content)
    read = read_checkpoint(tmp_path)
    assert isinstance(read.model, Llama)
    assert read.config.rope_scaling == LLAMA3
    batch = tokens(2, 80)
    with torch.no_grad():
        assert (read.model(batch) - theirs(batch).logits).abs().max() < 1e-4
    assert {path.name for path in read.files} >= {"config.json", "model.safetensors.index.json", JSON}


@pytest.mark.parametrize("tied", [False, True])
def test_shards_with_their_index_come_back_and_load_in_transformers(tmp_path: Path, tied: bool) -> None:
    model = made(small(tie_embeddings=tied))
    write_huggingface(model, chatml_files(), tmp_path, shard_bytes=30_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    assert equal(read_checkpoint(tmp_path).model, model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert (theirs(tokens(1, 40)).logits - model(tokens(1, 40))).abs().max() < 1e-4


def test_exports_of_equal_models_have_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_huggingface(made(small()), sentencepiece_files(), tmp_path / name)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == [
        "SHA256SUMS",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "a" / "generation_config.json").read_text())["temperature"] == 0.6


def test_half_precision_is_kept(tmp_path: Path) -> None:
    model = made(small()).bfloat16()
    write_huggingface(model, sentencepiece_files(), tmp_path)
    read = read_checkpoint(tmp_path).model
    assert {parameter.dtype for parameter in read.parameters()} == {torch.bfloat16}
    assert equal(read, model)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sharded folder without sums, as most are."""
    write_huggingface(made(small()), sentencepiece_files(), tmp_path / "hf", shard_bytes=60_000)
    (tmp_path / "hf" / "SHA256SUMS").unlink()
    return tmp_path / "hf"


def refused(folder: Path, *said: str) -> None:
    """Reading fails with one line that says all of this."""
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and "found" in message
    for part in said:
        assert part in message, message


def test_a_truncated_shard_is_named(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(folder, shard.name, "a whole safetensors file")


def test_a_flipped_bit_in_the_header_is_named(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    content = bytearray(shard.read_bytes())
    content[9] ^= 0x40
    shard.write_bytes(bytes(content))
    refused(folder, shard.name, "a whole safetensors file")


def test_a_flipped_bit_in_the_weights_is_found_by_the_sums_beside_them(tmp_path: Path) -> None:
    write_huggingface(made(small()), sentencepiece_files(), tmp_path)
    path = tmp_path / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(bytes(content))
    refused(tmp_path, "model.safetensors", "sha256")


def test_weights_that_are_no_numbers_are_named(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    content = load_file(shard)
    key = sorted(content)[0]
    content[key].view(-1)[3] = float("nan")
    save_file(content, shard)
    refused(folder, shard.name, key, "1 that are infinite or no number")


def test_a_missing_shard_is_named(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[2]
    shard.unlink()
    refused(folder, shard.name, "no such file", "index.json")


def test_a_missing_and_an_unknown_tensor_are_named(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[-1]
    content = load_file(shard)
    key = sorted(content)[-1]
    save_file({name: tensor for name, tensor in content.items() if name != key}, shard)
    refused(folder, shard.name, key, "no such tensor")
    save_file(content | {"model.layers.9.mlp.gate_proj.bias": torch.zeros(4)}, shard)
    refused(folder, "model.layers.9.mlp.gate_proj.bias")


def test_a_wrong_shape_is_told_with_both_shapes(folder: Path) -> None:
    change_json(folder / "config.json", intermediate_size=64)
    refused(folder, ".safetensors", "mlp.", "64", "96")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["MistralForCausalLM"]}, ("architectures", "MistralForCausalLM", "LlamaForCausalLM")),
        ({"vocab_size": 401}, ("vocab_size", "401", "400", "tokenizer")),
        ({"hidden_size": None}, ("hidden_size", "None")),
        ({"hidden_act": "gelu"}, ("hidden_act", "gelu", "silu")),
        ({"attention_bias": True}, ("attention_bias", "True")),
        ({"head_dim": 16}, ("head_dim", "16")),
        ({"num_key_value_heads": 3}, ("kv_heads", "3")),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ("rope_scaling.rope_type", "yarn")),
        ({"rope_scaling": {"rope_type": "linear", "factor": 0.5}}, ("rope_scaling", "0.5")),
        ({"quantization_config": {"quant_method": "gptq"}}, ("quantization_config", "gptq")),
        ({"num_hidden_layers": 4}, ("model.layers.3", "no such tensor")),
    ],
)
def test_a_config_that_is_no_llama_is_told_with_key_expected_and_found(folder: Path, changes: dict, said: tuple[str, ...]) -> None:
    if "hidden_size" in changes:
        change_json(folder / "config.json", hidden_size=None)
    else:
        change_json(folder / "config.json", **changes)
    refused(folder, *said)


def test_broken_json_a_missing_tokenizer_and_pickled_weights_are_named(folder: Path) -> None:
    for name in (PIECES, JSON):
        (folder / name).rename(folder / f"{name}.away")
    refused(folder, PIECES, JSON)
    for name in (PIECES, JSON):
        (folder / f"{name}.away").rename(folder / name)
    for shard in folder.glob("*.safetensors*"):
        shard.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    refused(folder, "model.safetensors", "pytorch_model.bin")
    (folder / "config.json").write_text("{not json")
    refused(folder, "config.json", "JSON")


def test_a_path_that_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "nowhere", "no such file or folder")
    refused(tmp_path, "a folder without either")
    (tmp_path / "weights.bin").write_bytes(b"abcdef")
    refused(tmp_path / "weights.bin", "a file of another kind")


def test_an_output_matrix_that_should_be_tied_and_differs_is_refused(tmp_path: Path) -> None:
    model = made(small())
    write_huggingface(model, sentencepiece_files(), tmp_path)
    shutil.rmtree(tmp_path / ".cache", ignore_errors=True)
    (tmp_path / "SHA256SUMS").unlink()
    change_json(tmp_path / "config.json", tie_word_embeddings=True)
    refused(tmp_path, "lm_head.weight", "tie_word_embeddings")
