"""Samplers behind the one interface: text, streaming, what does not fit, and how vLLM is asked."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from model.dialogue import TAGS, encode_prompt
from model.llama import Llama, LlamaConfig
from model.rollouts import answer_logprobs
from model.tokenizer import SentencePieceTokenizer, train_sentencepiece
from model.weights import save_llama
from resources.errors import TampuError
from resources.prompts.prompt import Prompt
from resources.sampler import LocalSampler, Sampling, answerable, load_sampler

torch.set_num_threads(1)
CONTEXT = 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights and tokenizer."""
    made = tmp_path_factory.mktemp("model")
    lines = [f"the {word} and a {other} said so" for word in ("llama", "tampu", "road") for other in ("stone", "star", "sea")]
    train_sentencepiece(lines, made, 330)
    model = Llama(LlamaConfig(vocab_size=330, dim=32, layers=2, heads=2, kv_heads=1, multiple_of=16, max_context=CONTEXT))
    model.init_weights(torch.Generator().manual_seed(0))
    save_llama(model, made)
    return made


@pytest.fixture(scope="module")
def sampler(folder: Path) -> LocalSampler:
    return LocalSampler.load(folder, folder)


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


DIALOGUES = [asked(text) for text in ("the llama", "a star", "so", "a road and the sea")]


def test_streamed_text_is_the_sampled_text(sampler: LocalSampler) -> None:
    for sampling in (Sampling(max_new_tokens=20), Sampling(temperature=0.8, top_k=50, max_new_tokens=20, stop=("a", "s"))):
        for dialogue in DIALOGUES:
            pieces = list(sampler.stream(dialogue, sampling, seed=3))
            alone = sampler.sample([dialogue], sampling, seed=3)[0][0]
            assert " ".join("".join(pieces).split()) == alone.text
            assert not any(stop in alone.text for stop in sampling.stop)
            assert all(pieces)


def test_an_answer_does_not_depend_on_the_dialogues_beside_it(sampler: LocalSampler) -> None:
    sampling = Sampling(max_new_tokens=10, stop=("z",))
    together = sampler.sample(DIALOGUES, sampling, seed=1, samples=2)
    for dialogue, answers in zip(DIALOGUES, together, strict=True):
        again = sampler.sample([dialogue], sampling, seed=1, samples=2)[0]
        assert [a.text for a in answers] == [a.text for a in again]
    assert together[0][0].tokens != together[0][1].tokens


def test_answers_carry_what_a_trainer_would_compute(sampler: LocalSampler) -> None:
    answers = [several[0] for several in sampler.sample(DIALOGUES, Sampling(temperature=0.5, top_p=0.9, max_new_tokens=12), seed=0)]
    prompts = [encode_prompt(sampler.chat.tokenizer, dialogue) for dialogue in DIALOGUES]
    trained = answer_logprobs(sampler.network, prompts, [a.tokens for a in answers], precision="fp32")
    for answer, theirs in zip(answers, trained, strict=True):
        np.testing.assert_allclose(answer.logprobs, theirs, atol=0.05)
        assert answer.normalizers is not None
        assert len(answer.normalizers) == len(answer.tokens)


def test_prompts_that_leave_no_room_are_counted_and_none_at_all_is_an_error(sampler: LocalSampler) -> None:
    short, long = (Prompt(asked(text), "chat", "train") for text in ("so", "so " * 40))
    assert answerable([short, long, short], sampler, 10, asset="rlhf/samples") == ([short, short], 1)
    assert answerable([long], sampler, 10, asset="rlhf/samples", asked=lambda prompt: asked("so")) == ([long], 0)
    with pytest.raises(TampuError, match="rlhf/samples has no prompts"):
        answerable([], sampler, 10, asset="rlhf/samples")
    with pytest.raises(TampuError, match="none of 2 prompts leaves room for 10 tokens"):
        answerable([long, long], sampler, 10, asset="rlhf/samples")


def test_parameters_out_of_range_reach_the_person_by_name(sampler: LocalSampler) -> None:
    with pytest.raises(ValueError, match="top_p is 0"):
        sampler.sample(DIALOGUES, Sampling(top_p=0), seed=0)
    with pytest.raises(ValueError, match=r"contains the tag \[INST\]"):
        sampler.sample([asked(f"{TAGS[0]} hello")], Sampling(), seed=0)


def test_without_vllm_the_way_out_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(TampuError, match=r"pip install '.\[vllm\]'"):
        load_sampler("vllm", folder, folder)


@dataclass
class FakeOutput:
    token_ids: list[int]
    logprobs: list[dict[int, Any]]
    finish_reason: str


def test_vllm_is_asked_for_the_same_prompts_and_parameters(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with vLLM's signatures: what is sent and how answers are read, not vLLM itself."""
    heard: dict[str, Any] = {}

    class LLM:
        def __init__(self, **settings: Any) -> None:
            heard["settings"] = settings
            heard["files"] = {path.name for path in Path(settings["model"]).iterdir()}

        def generate(self, prompts: list[dict[str, list[int]]], parameters: list[Any]) -> list[Any]:
            heard["prompts"], heard["parameters"] = prompts, parameters
            answer = type("Logprob", (), {"logprob": -0.5})()
            whole = FakeOutput([259, 260, 2], [{259: answer}, {260: answer}, {2: answer}], "stop")
            cut = FakeOutput([261], [{261: answer}], "length")
            return [type("RequestOutput", (), {"outputs": [whole if i % 2 else cut]})() for i in range(len(prompts))]

    fake = ModuleType("vllm")
    fake.LLM, fake.SamplingParams = LLM, lambda **settings: settings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", fake)
    sampler = load_sampler("vllm", folder, folder)
    sampling = Sampling(temperature=0.7, top_p=0.9, top_k=5, repetition_penalty=1.1, max_new_tokens=9)
    answers = sampler.sample(DIALOGUES, sampling, seed=4, samples=2)
    tokenizer = SentencePieceTokenizer(folder / "tokenizer.model")
    assert {"config.json", "model.safetensors", "tokenizer.model"} <= heard["files"]
    assert heard["settings"]["max_model_len"] == CONTEXT
    assert [p["prompt_token_ids"] for p in heard["prompts"]] == [encode_prompt(tokenizer, d) for d in DIALOGUES for _ in range(2)]
    sent = heard["parameters"][0]
    assert (sent["temperature"], sent["top_p"], sent["top_k"], sent["repetition_penalty"], sent["max_tokens"]) == (0.7, 0.9, 5, 1.1, 9)
    assert sent["stop_token_ids"] == [2]
    assert len({each["seed"] for each in heard["parameters"]}) == 8
    assert [[a.finished for a in several] for several in answers] == [[False, True]] * 4
    assert answers[0][1].tokens == [259, 260, 2]
    assert answers[0][1].logprobs == [-0.5] * 3
    assert answers[0][1].normalizers is None
    assert answers[0][1].text == tokenizer.decode([259, 260]).strip()
    assert sampler.room(DIALOGUES[0]) == CONTEXT - len(encode_prompt(tokenizer, DIALOGUES[0]))
    with pytest.raises(TampuError, match="no stop strings"):
        sampler.sample(DIALOGUES, Sampling(stop=("x",)), seed=0)
