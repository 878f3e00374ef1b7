"""Rollouts behind one interface: dialogues in, sampled answers out. Ours runs in process on whatever the model is on; vLLM is an extra."""

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from tqdm import tqdm

from resources.errors import TampuError
from resources.prompts.prompt import Messages, Prompt, prompt_identity

if TYPE_CHECKING:
    from model.chat import ChatFormat
    from model.llama import Llama
    from model.precision import Precision


BATCH = 512  # sequences decoded together; the best of 128, 256, 512 and 1024 on two cores
Engine = Literal["local", "vllm"]


@dataclass(frozen=True)
class Answer:
    """A sampled answer: text, token ids (with EOS if that ended it), and whether it ended by itself, by EOS or by a stop string.

    `logprobs` are those of the tokens (nats) under the model's own distribution, untempered and untruncated; `normalizers` the
    log-sum-exp of the logits beside each, None where the engine does not tell.
    """

    text: str
    tokens: list[int]
    finished: bool
    logprobs: list[float]
    normalizers: list[float] | None


@dataclass(frozen=True)
class Sampling:
    """How to sample; temperature 0 is greedy, top_k 0 is all. The text ends before the first of the `stop` strings that appears."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()


class Sampler(Protocol):
    """What rejection sampling, collection and evaluation need of a generation engine."""

    def sample(self, dialogues: Sequence[Messages], sampling: Sampling, *, seed: int, samples: int = 1) -> list[list[Answer]]:
        """`samples` answers to each dialogue (the last message is the user's), in the dialogues' order.

        Raises ValueError for a dialogue that the chat format or the model's context can not take, and for parameters out of range.
        """
        ...

    def room(self, messages: Messages) -> int:
        """Tokens that the model's context has left for an answer to this dialogue; less than 1 if there is no room."""
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
        from model.generation import generate
        from model.sampling import SamplingParameters

        prompts = [self.chat.prompt(messages) for messages in dialogues]
        repeated = [prompt for prompt in prompts for _ in range(samples)]
        with tqdm(total=len(repeated), desc=self.label, disable=not (self.label and sys.stderr.isatty()), leave=False) as bar:
            completions = generate(
                self.network,
                repeated,
                SamplingParameters(**asdict(sampling)),
                seeds_of(dialogues, seed=seed, samples=samples),
                eos_id=self.chat.tokenizer.eos_id,
                batch_size=BATCH,
                precision="bf16",
                decode=self.chat.tokenizer.decode,
                on_progress=lambda done, _: bar.update(done - bar.n),
            )
        answers = [Answer(text_of(self.chat, c.tokens, sampling.stop), c.tokens, c.finished, c.logprobs, c.normalizers) for c in completions]
        return [answers[start : start + samples] for start in range(0, len(answers), samples)]

    def stream(self, messages: Messages, sampling: Sampling, *, seed: int, precision: "Precision" = "bf16") -> Iterator[str]:
        """The text of `sample`'s first answer to a dialogue, piece by piece as it is sampled; spaces and tags are as the model wrote them."""
        from model.detokenizing import Detokenizer
        from model.generation import stream
        from model.sampling import SamplingParameters

        tokenizer = self.chat.tokenizer
        text = Detokenizer(tokenizer.decode, sampling.stop)
        tokens = stream(
            self.network,
            self.chat.prompt(messages),
            SamplingParameters(**asdict(sampling)),
            seeds_of([messages], seed=seed, samples=1)[0],
            eos_id=tokenizer.eos_id,
            precision=precision,
            decode=tokenizer.decode,
        )
        for token in tokens:
            if token != tokenizer.eos_id and (piece := text.push(token)):
                yield piece
        if piece := text.close():
            yield piece

    def room(self, messages: Messages) -> int:
        return self.network.config.max_context - len(self.chat.prompt(messages))


def load_sampler(engine: Engine, weights: Path, tokenizer: Path, *, label: str | None = None) -> Sampler:
    """A sampler of this engine with the weights of an artifact."""
    if engine == "local":
        return LocalSampler.load(weights, tokenizer, label=label)
    from resources.vllm_sampler import VllmSampler

    return VllmSampler.load(weights, tokenizer)


def answerable(
    prompts: Sequence[Prompt],
    sampler: Sampler,
    new_tokens: int,
    *,
    asset: str,
    asked: Callable[[Prompt], Messages] = lambda prompt: prompt.messages,
) -> tuple[list[Prompt], int]:
    """The prompts after which the model's context has room for `new_tokens`, and how many do not leave it.

    `asked` is the dialogue that a prompt is put to the model as. Raises TampuError when there are no prompts, or none of them fits.
    """
    if not prompts:
        raise TampuError(f"{asset} has no prompts to sample answers for: look at rlhf/prompts, and at the counts in its config")
    room = [sampler.room(asked(prompt)) for prompt in prompts]
    kept = [prompt for prompt, left in zip(prompts, room, strict=True) if left >= new_tokens]
    if not kept:
        raise TampuError(
            f"{asset}: none of {len(prompts)} prompts leaves room for {new_tokens} tokens in the model's context "
            f"(the shortest leaves {max(room)}): use shorter prompts, a smaller {asset}.max_new_tokens, or a model with a longer context"
        )
    return kept, len(prompts) - len(kept)


def seeds_of(dialogues: Sequence[Messages], *, seed: int, samples: int) -> list[int]:
    """A seed for each sample of each dialogue, from `seed`, the dialogue and the sample's number."""
    return [_seed(seed, messages, number) for messages in dialogues for number in range(samples)]


def _seed(seed: int, messages: Messages, number: int) -> int:
    digest = hashlib.sha256(f"{seed}/{prompt_identity(messages)}/{number}".encode()).digest()
    return int.from_bytes(digest[:7], "big")


def text_of(chat: "ChatFormat", tokens: list[int], stop: Sequence[str] = ()) -> str:
    """An answer's text up to its EOS and its first stop string, in one line and without the chat format's tags."""
    if not stop:
        return " ".join(chat.answer(tokens).split())
    from model.detokenizing import Detokenizer

    text = Detokenizer(chat.tokenizer.decode, stop)
    for token in tokens:
        if token == chat.tokenizer.eos_id or text.stopped is not None:
            break
        text.push(token)
    text.close()
    cut = text.text
    for tag in chat.tags:
        cut = cut.replace(tag, "")
    return " ".join(cut.split())
