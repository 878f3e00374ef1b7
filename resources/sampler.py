"""Rollouts behind one interface: dialogues in, sampled answers out. Ours runs in process on whatever the model is on."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tqdm import tqdm

from resources.prompts.prompt import Messages, prompt_identity

if TYPE_CHECKING:
    from model.chat import ChatFormat
    from model.llama import Llama


BATCH = 512  # sequences decoded together; the best of 128, 256, 512 and 1024 on two cores


@dataclass(frozen=True)
class Answer:
    """A sampled answer: text, token ids (with EOS if it stopped by itself), and whether it did."""

    text: str
    tokens: list[int]
    finished: bool


@dataclass(frozen=True)
class Sampling:
    """How to sample; temperature 0 is greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64


class Sampler(Protocol):
    """What rejection sampling, collection and evaluation need of a generation engine."""

    def sample(self, dialogues: Sequence[Messages], sampling: Sampling, *, seed: int, samples: int = 1) -> list[list[Answer]]:
        """`samples` answers to each dialogue (the last message is the user's), in the dialogues' order."""
        ...


class LocalSampler:
    """The engine of `model.generation` on weights of an artifact."""

    def __init__(self, network: "Llama", chat: "ChatFormat", label: str | None = None) -> None:
        self.network, self.chat, self.label = network, chat, label

    @classmethod
    def load(cls, weights: Path, tokenizer: Path, *, name: str = "model", label: str | None = None) -> "LocalSampler":
        """From a folder with `<name>.safetensors` and the folder of the tokenizer."""
        from model.tokenizer_files import load_chat
        from model.weights import load_llama

        return cls(load_llama(weights, name=name), load_chat(tokenizer), label)

    def sample(self, dialogues: Sequence[Messages], sampling: Sampling, *, seed: int, samples: int = 1) -> list[list[Answer]]:
        """Each answer's noise comes from `seed`, its dialogue and its number: it does not depend on what is sampled beside it."""
        from model.generation import SamplingParameters, generate

        prompts = [self.chat.prompt(messages) for messages in dialogues]
        parameters = SamplingParameters(temperature=sampling.temperature, top_p=sampling.top_p, max_new_tokens=sampling.max_new_tokens)
        repeated = [prompt for prompt in prompts for _ in range(samples)]
        seeds = [_seed(seed, messages, number) for messages in dialogues for number in range(samples)]
        with tqdm(total=len(repeated), desc=self.label, disable=not (self.label and sys.stderr.isatty()), leave=False) as bar:
            completions = generate(
                self.network,
                repeated,
                parameters,
                seeds,
                eos_id=self.chat.tokenizer.eos_id,
                batch_size=BATCH,
                precision="bf16",
                on_progress=lambda done, _: bar.update(done - bar.n),
            )
        answers = [Answer(" ".join(self.chat.answer(c.tokens).split()), c.tokens, c.finished) for c in completions]
        return [answers[start : start + samples] for start in range(0, len(answers), samples)]


def _seed(seed: int, messages: Messages, number: int) -> int:
    digest = hashlib.sha256(f"{seed}/{prompt_identity(messages)}/{number}".encode()).digest()
    return int.from_bytes(digest[:7], "big")
