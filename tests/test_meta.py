"""Meta folders: the layout that transformers' conversion defines, shards of tensor parallelism, and pickles that carry code."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from checkpoints import change_json, chatml_files, equal, made, pieces, sentencepiece_files, small, tokens

from model.checkpoint_errors import CheckpointError
from model.formats import read_checkpoint
from model.huggingface import write_huggingface
from model.llama import RopeScaling
from model.meta import write_meta

torch.set_num_threads(1)

META = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attention_norm",
}
COLUMNS = ("wo", "w2", "tok_embeddings")  # cut along the second axis in Llama 2's shards; norms are not cut, the rest along the first


def meta_state(theirs: transformers.LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """transformers' weights in Meta's naming: its conversion script's `permute` of query and key rows, undone."""
    state = {}
    for name, tensor in theirs.state_dict().items():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            rows, columns = tensor.shape
            head = theirs.config.head_dim
            tensor = tensor.reshape(rows // head, 2, head // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        for old, new in META.items():
            name = name.replace(old, new)
        state[name.removeprefix("model.")] = tensor
    return state


def cut(state: dict[str, torch.Tensor], shards: int) -> list[dict[str, torch.Tensor]]:
    parts: list[dict[str, torch.Tensor]] = [{} for _ in range(shards)]
    for name, tensor in state.items():
        module = name.split(".")[-2]
        whole = module.endswith("norm")
        for part, piece in zip(parts, [tensor] * shards if whole else tensor.chunk(shards, int(module in COLUMNS)), strict=True):
            part[name] = piece.clone()
    return parts


@pytest.mark.parametrize("shards", [1, 2])
def test_a_folder_of_metas_has_the_logits_that_transformers_gives_its_weights(tmp_path: Path, shards: int) -> None:
    write_huggingface(made(small(rope_theta=50000.0)), sentencepiece_files(), tmp_path / "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    folder = tmp_path / "models" / "7B"
    folder.mkdir(parents=True)
    for number, part in enumerate(cut(meta_state(theirs), shards)):
        torch.save(part | {"rope.freqs": torch.ones(4)}, folder / f"consolidated.{number:02}.pth")
    params = {"dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "multiple_of": 16, "norm_eps": 1e-05, "vocab_size": -1}
    (folder / "params.json").write_text(json.dumps(params | {"rope_theta": 50000.0}))
    (folder.parent / "tokenizer.model").write_bytes(pieces())
    read = read_checkpoint(folder, context=96)
    assert (read.format, read.config.max_context) == ("meta", 96)
    with torch.no_grad():
        assert (read.model(tokens(2, 90)) - theirs(tokens(2, 90)).logits).abs().max() < 1e-4
    assert len(read.files) == shards + 2


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [{}, {"kv_heads": 4, "ffn_multiplier": 1.3}, {"ffn_dim": 40, "rope_scaling": RopeScaling("llama3", 8.0)}],
    ids=["rule", "multiplier", "any width, scaled"],
)
def test_what_is_written_comes_back(tmp_path: Path, changes: dict, shards: int) -> None:
    model = made(small(**changes))
    write_meta(model, sentencepiece_files(), tmp_path, shards=shards)
    read = read_checkpoint(tmp_path, context=96)
    assert equal(read.model, model)
    assert read.config.feed_forward_dim == model.config.feed_forward_dim
    assert read.config.rope_scaling == model.config.rope_scaling
    assert len(list(tmp_path.glob("consolidated.*.pth"))) == shards
    assert read.tokenizer["tokenizer.model"] == pieces()


def test_a_tied_embedding_is_written_as_the_output_matrix_too(tmp_path: Path) -> None:
    model = made(small(tie_embeddings=True))
    write_meta(model, sentencepiece_files(), tmp_path)
    read = read_checkpoint(tmp_path, context=96).model
    assert torch.equal(read(tokens(1, 20)), model(tokens(1, 20)))


def test_what_the_format_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json; export it as hf"):
        write_meta(made(small()), chatml_files(), tmp_path)
    with pytest.raises(ValueError, match="3 shards"):
        write_meta(made(small()), sentencepiece_files(), tmp_path, shards=3)
    with pytest.raises(ValueError, match="linear"):
        write_meta(made(small(rope_scaling=RopeScaling("linear", 2.0))), sentencepiece_files(), tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of two shards without sums."""
    write_meta(made(small()), sentencepiece_files(), tmp_path / "meta", shards=2)
    (tmp_path / "meta" / "checklist.chk").unlink()
    return tmp_path / "meta"


def refused(folder: Path, *said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message and "expected" in message and "found" in message
    for part in said:
        assert part in message, message


class Payload:
    """What a malicious pickle does: run a command when it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple:
        return os.system, (self.command,)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_that_carries_code_is_refused_and_does_not_run(folder: Path, how: str) -> None:
    shard, ran = folder / "consolidated.01.pth", folder / "ran"
    content = {"tok_embeddings.weight": Payload(f"touch {ran}")}
    if how == "torch":
        torch.save(content, shard)
    else:
        shard.write_bytes(pickle.dumps(content, protocol=2))
    refused(folder, "consolidated.01.pth", "tensors and nothing else", "system")
    assert not ran.exists()


def test_a_truncated_and_a_missing_shard_are_named(folder: Path) -> None:
    shard = folder / "consolidated.01.pth"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    refused(folder, "consolidated.01.pth", "a whole file of torch.save")
    shard.write_bytes(content)
    (folder / "consolidated.00.pth").unlink()
    refused(folder, "consolidated.00.pth", "no such file")


def test_a_flipped_bit_is_found_by_the_list_beside_the_shards(tmp_path: Path) -> None:
    write_meta(made(small()), sentencepiece_files(), tmp_path)
    shard = tmp_path / "consolidated.00.pth"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    refused(tmp_path, "consolidated.00.pth", "md5", "checklist.chk")


def test_params_that_do_not_fit_are_told_with_key_expected_and_found(folder: Path) -> None:
    change_json(folder / "params.json", moe={"num_experts": 8})
    refused(folder, "params.json", "moe", "another architecture")
    change_json(folder / "params.json", moe=None, vocab_size=401)
    refused(folder, "params.json", "vocab_size", "401", "400")
    change_json(folder / "params.json", vocab_size=400, n_kv_heads=4)
    refused(folder, "wk.weight", "(32, 32)", "(16, 32)")
    change_json(folder / "params.json", n_kv_heads=2, dim="32")
    refused(folder, "params.json", "dim", "'32'")


def test_llama_3s_own_tokenizer_file_is_refused_with_the_way_out(folder: Path) -> None:
    (folder / "tokenizer.model").write_text("IQ== 0\nIg== 1\n")
    refused(folder, "tokenizer.model", "tokenizer.json")


def test_a_context_is_for_metas_format_alone(tmp_path: Path, folder: Path) -> None:
    write_huggingface(made(small()), sentencepiece_files(), tmp_path / "hf")
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="says its context itself"):
        read_checkpoint(tmp_path / "hf", context=8)
