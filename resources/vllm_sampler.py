"""vLLM as a sampler: the same interface on a GPU fleet's engine. The weights go to it as an exported folder in Hugging Face's form.

vLLM pins its own torch, so it is installed into an environment of its own: `pip install '.[vllm]'` without the constraints file. Its
noise is its own: a seed gives other answers than ours does, and the same ones again only as far as vLLM promises that.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resources.errors import TampuError
from resources.prompts.prompt import Messages
from resources.sampler import Answer, Sampling, seeds_of, text_of

if TYPE_CHECKING:
    from model.chat import ChatFormat


@dataclass
class VllmSampler:
    """Answers of `engine`, a `vllm.LLM`, whose context takes `context` tokens of prompt and answer."""

    engine: Any
    chat: "ChatFormat"
    context: int
    exported: Any = None  # the temporary folder of the weights, kept as long as the engine

    @classmethod
    def load(cls, weights: Path, tokenizer: Path) -> "VllmSampler":
        """Export the weights of an artifact and start an engine on them. Raises TampuError where vLLM is not installed."""
        try:
            from vllm import LLM
        except ImportError as error:
            raise TampuError(
                f"the engine 'vllm' needs the package vllm ({error}): install it with `pip install '.[vllm]'` in an environment of its own, "
                "or sample with the engine 'local'"
            ) from None
        from model.huggingface import write_huggingface
        from model.tokenizer_files import load_chat, read_tokenizer
        from model.weights import load_llama

        folder = tempfile.TemporaryDirectory(prefix="tampu-vllm-")
        network = load_llama(weights)
        write_huggingface(network, read_tokenizer(tokenizer), Path(folder.name))
        engine = LLM(model=folder.name, skip_tokenizer_init=True, max_model_len=network.config.max_context, logprobs_mode="raw_logprobs")
        return cls(engine, load_chat(tokenizer), network.config.max_context, folder)

    def sample(self, dialogues: Sequence[Messages], sampling: Sampling, *, seed: int, samples: int = 1) -> list[list[Answer]]:
        """As `LocalSampler.sample`, with vLLM's noise. Raises TampuError for stop strings: the engine works on tokens alone here."""
        from vllm import SamplingParams

        if sampling.stop:
            raise TampuError(f"the engine 'vllm' takes no stop strings here, and was given {sampling.stop!r}: use the engine 'local'")
        prompts = [self.chat.prompt(messages) for messages in dialogues]
        asked = [{"prompt_token_ids": prompt} for prompt in prompts for _ in range(samples)]
        parameters = [
            SamplingParams(
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k,
                repetition_penalty=sampling.repetition_penalty,
                max_tokens=sampling.max_new_tokens,
                stop_token_ids=[self.chat.tokenizer.eos_id],
                seed=one % 2**63,
                logprobs=0,
                detokenize=False,
            )
            for one in seeds_of(dialogues, seed=seed, samples=samples)
        ]
        answers = [self._answer(output.outputs[0]) for output in self.engine.generate(asked, parameters)]
        return [answers[start : start + samples] for start in range(0, len(answers), samples)]

    def room(self, messages: Messages) -> int:
        return self.context - len(self.chat.prompt(messages))

    def _answer(self, output: Any) -> Answer:
        tokens = list(output.token_ids)
        logprobs = [float(each[token].logprob) for each, token in zip(output.logprobs, tokens, strict=True)]
        return Answer(text_of(self.chat, tokens), tokens, output.finish_reason == "stop", logprobs, None)
