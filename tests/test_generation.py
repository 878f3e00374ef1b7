"""Sampling: its distribution, its independence of batch companions, and where it stops."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.generation import TOLERANCE, generate, stream
from model.llama import Llama, LlamaConfig
from model.sampling import SamplingParameters, choose, uniform

torch.set_num_threads(1)

EOS = 2
CONFIG = LlamaConfig(vocab_size=23, dim=32, layers=2, heads=4, kv_heads=2, multiple_of=16, max_context=40)


@pytest.fixture(scope="module")
def model() -> Llama:
    llama = Llama(CONFIG)
    llama.init_weights(torch.Generator().manual_seed(0))
    for parameter in llama.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6.0)
    return llama


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [[1, *random.integers(3, 23, random.integers(0, 12)).tolist()] for _ in range(count)]


@torch.no_grad()
def distribution(model: Llama, tokens: list[int]) -> torch.Tensor:
    return torch.log_softmax(model(torch.tensor([tokens]))[0, -1], dim=-1)


def test_temperature_zero_takes_the_likeliest_token_of_the_full_pass(model: Llama) -> None:
    asked = prompts(7)
    parameters = SamplingParameters(temperature=0, max_new_tokens=12)
    for prompt, completion in zip(asked, generate(model, asked, parameters, [0] * 7, eos_id=EOS), strict=True):
        so_far = list(prompt)
        for token, logprob in zip(completion.tokens, completion.logprobs, strict=True):
            expected = distribution(model, so_far)
            assert token == int(expected.argmax())
            assert logprob == pytest.approx(float(expected[token]), abs=1e-4)
            so_far.append(token)
        assert completion.finished == (completion.tokens[-1] == EOS)
        assert completion.finished or len(completion.tokens) == 12


def test_a_result_does_not_depend_on_its_batch_companions(model: Llama) -> None:
    asked, seeds = prompts(40), list(range(100, 140))
    choices = itertools.cycle(
        [
            SamplingParameters(max_new_tokens=9),
            SamplingParameters(temperature=0.7, top_p=0.9, max_new_tokens=15),
            SamplingParameters(temperature=1.3, top_k=5, repetition_penalty=1.2, max_new_tokens=4),
            SamplingParameters(temperature=0, max_new_tokens=20),
        ]
    )
    parameters = [next(choices) for _ in asked]
    together = generate(model, asked, parameters, seeds, eos_id=EOS)
    crowded = generate(model, asked[::-1], parameters[::-1], seeds[::-1], eos_id=EOS, batch_size=5)[::-1]
    alone = [generate(model, [p], s, [seed], eos_id=EOS)[0] for p, s, seed in zip(asked, parameters, seeds, strict=True)]
    for one, two, three in zip(together, crowded, alone, strict=True):
        assert one.tokens == two.tokens == three.tokens
        assert one.finished == two.finished == three.finished
        for other in (two, three):
            np.testing.assert_allclose(one.logprobs, other.logprobs, atol=TOLERANCE["fp32"])
            np.testing.assert_allclose(one.normalizers, other.normalizers, atol=TOLERANCE["fp32"])


def test_in_bf16_a_result_depends_on_its_batch_companions_by_no_more_than_the_tolerance(model: Llama) -> None:
    asked, parameters = prompts(40), SamplingParameters(max_new_tokens=12)
    together = generate(model, asked, parameters, range(40), eos_id=EOS, precision="bf16")
    alone = [generate(model, [p], parameters, [seed], eos_id=EOS, precision="bf16")[0] for seed, p in enumerate(asked)]
    same = 0
    for one, other in zip(together, alone, strict=True):
        common = next((i for i, (a, b) in enumerate(zip(one.tokens, other.tokens, strict=False)) if a != b), len(one.tokens))
        np.testing.assert_allclose(one.logprobs[:common], other.logprobs[:common], atol=TOLERANCE["bf16"])
        same += one.tokens == other.tokens
    assert same > 30


def test_logprobs_are_those_of_the_untempered_untruncated_model(model: Llama) -> None:
    parameters = SamplingParameters(temperature=0.5, top_p=0.8, repetition_penalty=1.3, max_new_tokens=6)
    for prompt, completion in zip(prompts(5), generate(model, prompts(5), parameters, range(5), eos_id=EOS), strict=True):
        for index, (token, logprob) in enumerate(zip(completion.tokens, completion.logprobs, strict=True)):
            assert logprob == pytest.approx(float(distribution(model, prompt + completion.tokens[:index])[token]), abs=1e-4)


def test_normalizers_turn_logprobs_back_into_logits(model: Llama) -> None:
    parameters = SamplingParameters(temperature=0.7, top_k=9, repetition_penalty=1.2, max_new_tokens=6)
    for prompt, completion in zip(prompts(5), generate(model, prompts(5), parameters, range(5), eos_id=EOS), strict=True):
        for index, token in enumerate(completion.tokens):
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion.tokens[:index]]))[0, -1].double()
            assert completion.normalizers[index] == pytest.approx(float(logits.logsumexp(0)), abs=1e-4)
            assert completion.logprobs[index] + completion.normalizers[index] == pytest.approx(float(logits[token]), abs=1e-4)


def letters(ids: list[int]) -> str:
    """A text of one letter a token, none for the special ones."""
    return "".join(chr(ord("a") + token - 3) for token in ids if token >= 3)


def test_a_stop_string_ends_its_own_request_where_it_first_appears(model: Llama) -> None:
    asked, seeds = prompts(30), list(range(30))
    free = generate(model, asked, SamplingParameters(max_new_tokens=20), seeds, eos_id=EOS)
    stops = [tuple({letters(c.tokens)[i : i + 2] for i in (2, 5)} - {""}) if i % 3 else () for i, c in enumerate(free)]
    parameters = [SamplingParameters(max_new_tokens=20, stop=stop) for stop in stops]
    stopped = generate(model, asked, parameters, seeds, eos_id=EOS, decode=letters, batch_size=7)
    ended = []
    for full, cut, stop in zip(free, stopped, stops, strict=True):
        lengths = [n for n in range(1, len(full.tokens) + 1) if any(s in letters(full.tokens[:n]) for s in stop)]
        assert cut.tokens == full.tokens[: lengths[0] if lengths else None]
        assert cut.ended == ("stop" if lengths else full.ended)
        assert cut.finished == (cut.ended != "limit")
        ended.append(cut.ended)
    assert set(ended) == {"eos", "stop", "limit"}
    assert list(stream(model, asked[1], parameters[1], 1, eos_id=EOS, decode=letters)) == stopped[1].tokens


def test_seeds_decide_and_differ(model: Llama) -> None:
    parameters = SamplingParameters(max_new_tokens=10)
    first, again, other = (generate(model, prompts(6), parameters, s, eos_id=EOS) for s in ([7] * 6, [7] * 6, [2**63 + 7] * 6))
    assert first == again
    assert [c.tokens for c in first] != [c.tokens for c in other]


def test_samples_follow_the_models_distribution(model: Llama) -> None:
    prompt, count = [1, 5, 9], 6000
    for temperature in (1.0, 2.0):
        parameters = SamplingParameters(temperature=temperature, max_new_tokens=1)
        drawn = [c.tokens[0] for c in generate(model, [prompt] * count, parameters, range(count), eos_id=EOS, batch_size=3000)]
        expected = torch.softmax(distribution(model, prompt) / temperature, dim=-1).double().numpy()
        observed = np.bincount(drawn, minlength=23)
        common = expected * count >= 5
        chi = ((observed - expected * count) ** 2 / (expected * count))[common].sum()
        assert chi < common.sum() + 5 * np.sqrt(2 * common.sum())


def test_streamed_tokens_are_the_generated_ones(model: Llama) -> None:
    for prompt, seed in zip(prompts(6), range(6), strict=True):
        parameters = SamplingParameters(temperature=0.9, top_p=0.95, max_new_tokens=8)
        generated = generate(model, [prompt], parameters, [seed], eos_id=EOS)[0]
        assert list(stream(model, prompt, parameters, seed, eos_id=EOS)) == generated.tokens


def test_answers_end_at_the_eos_or_the_limit_or_the_context(model: Llama) -> None:
    long = [[1] + [4] * 34]
    asked = prompts(60) + long
    completions = generate(model, asked, SamplingParameters(temperature=1.5, max_new_tokens=30), range(61), eos_id=EOS, batch_size=16)
    for completion in completions:
        assert EOS not in completion.tokens[:-1]
        assert len(completion.tokens) == len(completion.logprobs)
    finished = [c for c in completions[:-1] if c.finished]
    cut = [c for c in completions[:-1] if not c.finished]
    assert finished
    assert cut
    assert all(c.tokens[-1] == EOS for c in finished)
    assert all(len(c.tokens) == min(30, 40 - len(p)) for p, c in zip(asked, completions, strict=True) if not c.finished)
    assert len(completions[-1].tokens) <= 5


def test_progress_counts_every_request_once(model: Llama) -> None:
    heard: list[tuple[int, int]] = []
    parameters = SamplingParameters(max_new_tokens=5)
    generate(model, prompts(30), parameters, range(30), eos_id=EOS, batch_size=8, on_progress=lambda *n: heard.append(n))
    assert heard[-1] == (30, 30)
    assert [n for n, _ in heard] == sorted({n for n, _ in heard})
    assert generate(model, [], SamplingParameters(), [], eos_id=EOS) == []


def test_a_repetition_penalty_weakens_the_tokens_of_prompt_and_answer(model: Llama) -> None:
    penalty, changed = 1.8, 0
    parameters = SamplingParameters(temperature=0, repetition_penalty=penalty, max_new_tokens=12)
    for prompt, completion in zip(prompts(9), generate(model, prompts(9), parameters, [0] * 9, eos_id=EOS, batch_size=4), strict=True):
        so_far = list(prompt)
        for token in completion.tokens:
            with torch.no_grad():
                logits = model(torch.tensor([so_far]))[0, -1]
            plain = int(logits.argmax())
            for seen in set(so_far):
                logits[seen] = logits[seen] / penalty if logits[seen] > 0 else logits[seen] * penalty
            assert token == int(logits.argmax())
            changed += token != plain
            so_far.append(token)
    assert changed > 5


def test_bf16_decoding_gives_nearly_the_same_logprobs(model: Llama) -> None:
    parameters = SamplingParameters(max_new_tokens=1)
    exact = generate(model, prompts(20), parameters, range(20), eos_id=EOS)
    rough = generate(model, prompts(20), parameters, range(20), eos_id=EOS, precision="bf16")
    same = [(a.logprobs[0], b.logprobs[0]) for a, b in zip(exact, rough, strict=True) if a.tokens == b.tokens]
    assert len(same) > 10
    np.testing.assert_allclose(*np.array(same).T, atol=0.15)


@pytest.mark.parametrize(
    "values",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"repetition_penalty": 0},
     {"max_new_tokens": 0}, {"stop": "text"}, {"stop": ("a", "")}],
)  # fmt: skip
def test_parameters_out_of_range_are_refused_by_name(values: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        SamplingParameters(**values)


def test_requests_that_cannot_be_served_are_refused(model: Llama) -> None:
    parameters = SamplingParameters()
    for bad in ([], [1] * 40):
        with pytest.raises(ValueError, match=f"prompt 1 has {len(bad)} tokens"):
            generate(model, [[1], bad], parameters, [0, 0], eos_id=EOS)
    with pytest.raises(ValueError, match="1 seeds"):
        generate(model, [[1], [1]], parameters, [0], eos_id=EOS)
    with pytest.raises(ValueError, match="pass `decode`"):
        generate(model, [[1]], SamplingParameters(stop=("x",)), [0], eos_id=EOS)


def reference_choice(probabilities: np.ndarray, u: float, top_p: float, top_k: int) -> tuple[int, float]:
    """Meta's rule in float64: the chosen token, and how near `u` is to a border between two tokens or `top_p` to one of the nucleus."""
    order = np.argsort(-probabilities, kind="stable") if top_p < 1 or top_k else np.arange(len(probabilities))
    weights = probabilities[order]
    before = np.cumsum(weights) - weights
    keep = np.ones(len(weights), bool)
    if top_p < 1 or top_k:
        keep = (before <= top_p) & (np.arange(len(weights)) < (top_k or len(weights)))
    mass = np.cumsum(weights * keep)
    place = int(np.searchsorted(mass, u * mass[-1], side="right"))
    distance = min(np.abs(mass - u * mass[-1]).min(), np.abs(before - top_p).min())
    return int(order[place]), distance


@settings(deadline=None, max_examples=100)
@given(
    seed=st.integers(0, 2**16),
    vocabulary=st.sampled_from([3, 50, 400]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 1e-6]),
    top_k=st.sampled_from([0, 1, 7, 300]),
)
def test_choices_follow_metas_truncation_rule(seed: int, vocabulary: int, temperature: float, top_p: float, top_k: int) -> None:
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.normal(size=(8, vocabulary)).astype(np.float32)) * random.choice([0.1, 3])
    u = torch.from_numpy(random.random(8).astype(np.float32))
    truncated = top_p < 1 or top_k > 0
    tokens = choose(logits, u, torch.full((8,), temperature), torch.full((8,), top_p), torch.full((8,), top_k), torch.full((8,), truncated))
    exact = torch.softmax(logits.double() / temperature, dim=-1).numpy()
    for row, token in enumerate(tokens.tolist()):
        expected, distance = reference_choice(exact[row], float(u[row]), top_p, top_k)
        assert token == expected or distance < 1e-5


def test_a_token_without_probability_is_never_chosen() -> None:
    logits = torch.tensor([[-1e9, 0.0, -1e9, 0.0, -1e9]]).expand(3, -1)
    u = torch.tensor([0.0, 0.5, 1 - 2**-24])
    ones = torch.ones(3)
    assert choose(logits, u, ones, ones, torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool)).tolist() == [1, 3, 3]


def test_noise_is_uniform_and_unlike_for_neighbouring_seeds_and_counters() -> None:
    seeds, counters = torch.meshgrid(torch.arange(300), torch.arange(300), indexing="ij")
    noise = uniform(seeds.flatten(), counters.flatten()).view(300, 300).double()
    assert noise.min() >= 0
    assert noise.max() < 1
    histogram = torch.histc(noise, 20, 0, 1)
    assert ((histogram - 4500) ** 2 / 4500).sum() < 50
    for a, b in ((noise[1:], noise[:-1]), (noise[:, 1:], noise[:, :-1])):
        assert abs(torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1]) < 0.02
    negative = uniform(torch.tensor([-1, -(2**63)]), torch.tensor([0, 5]))
    assert ((negative >= 0) & (negative < 1)).all()
