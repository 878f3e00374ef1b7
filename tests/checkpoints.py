"""Small networks and tokenizers for the tests of checkpoint formats."""

import functools
import json
import random
import tempfile
from pathlib import Path

import torch

from model.llama import Llama, LlamaConfig
from model.reward import RewardModel
from model.tokenizer import train_sentencepiece
from model.tokenizer_files import JSON, PIECES, with_settings

PIECE_COUNT = 400
# ChatML, as SmolLM2's template has it: a system message of its own unless one is given.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are small.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HARD_TEXTS = (
    "",
    " ",
    "   ",
    "a",
    " a ",
    "two  spaces   three    four",
    "tab\tand\t\ttabs\n\nlines\r\nend\n",
    "1234567890 3.14 -7 00012",
    "naïve café e\u0301 Straße ﬁ Ⅳ",
    "日本語のテキスト 中文 한국어",
    "🙂🙃 👩‍👩‍👧‍👦 🏳️‍🌈",
    "مرحبا שלום",
    "[INST] <<SYS>> tags </SYS>",
    "x" * 300,
    b"half \xf0\x9f a byte \xff\xfe pair".decode(errors="replace"),
    "Don't we'll I'M",
    "\u200b\u00a0\u3000",
)


def texts() -> list[str]:
    choose = random.Random(0)
    syllables = ["ka", "lo", "mi", "ta", "ru", "se", "no", "pi", "wan", "chay"]
    words = ["".join(choose.choices(syllables, k=choose.randint(1, 3))) for _ in range(300)]
    return [" ".join(choose.choices(words, k=12)) + f" in {choose.randint(0, 9999)}. Two  spaces, café 日本 🙂." for _ in range(200)]


@functools.cache
def pieces() -> bytes:
    """A SentencePiece tokenizer with Llama's settings."""
    with tempfile.TemporaryDirectory() as folder:
        return train_sentencepiece(texts(), Path(folder), PIECE_COUNT).read_bytes()


def sentencepiece_files() -> dict[str, bytes]:
    return {PIECES: pieces()}


@functools.cache
def byte_level() -> bytes:
    """A byte-level tokenizer.json as SmolLM2's is: digits alone, a few special tokens, no BOS before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(
        texts(), trainers.BpeTrainer(vocab_size=PIECE_COUNT, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return tokenizer.to_str().encode()


def chatml_files() -> dict[str, bytes]:
    settings = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML}
    return with_settings({JSON: byte_level()}, settings)


def write_tokenizer(files: dict[str, bytes], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def small(**changes) -> LlamaConfig:
    sizes = {"vocab_size": PIECE_COUNT, "dim": 32, "layers": 3, "heads": 4, "kv_heads": 2, "multiple_of": 16, "max_context": 96}
    return LlamaConfig(**sizes | changes)


def made(config: LlamaConfig, seed: int = 0, spread: float = 8.0) -> Llama:
    """A network with weights large enough that attention is far from uniform, and norm gains that are not 1."""
    model = Llama(config)
    _spread(model, seed, spread)
    return model


def made_reward(config: LlamaConfig, seed: int = 0) -> RewardModel:
    model = RewardModel.from_llama(made(config, seed))
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(seed))
    return model


def _spread(model: Llama, seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
        else:
            parameter.data.mul_(spread)


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, PIECE_COUNT, shape, generator=torch.Generator().manual_seed(seed))


def equal(one: torch.nn.Module, two: torch.nn.Module) -> bool:
    """Whether two networks have the same weights, bit for bit."""
    first, second = one.state_dict(), two.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def change_json(path: Path, **values) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
