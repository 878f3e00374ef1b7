"""Every loss against a slow float64 computation of its formula."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.losses import (
    MARGINS,
    RATINGS,
    causal_lm_loss,
    entropy,
    gae,
    gated_reward,
    kl_k1,
    kl_k3,
    masked_mean,
    ppo_policy_loss,
    ppo_value_loss,
    ranking_loss,
    safety_loss,
    token_rewards,
    whiten,
)

torch.set_num_threads(1)
settings.register_profile("losses", deadline=None, max_examples=60)
settings.load_profile("losses")

SHAPE = st.tuples(st.integers(1, 4), st.integers(1, 6))
SEED = st.integers(0, 2**16)


def close(ours: torch.Tensor, theirs: object) -> None:
    np.testing.assert_allclose(ours.detach().numpy(), np.asarray(theirs), rtol=2e-5, atol=2e-6)


def batch(shape: tuple[int, int], seed: int, count: int) -> tuple[list[torch.Tensor], torch.Tensor, np.ndarray]:
    """Random fp32 tensors, a mask whose rows are non-empty prefixes, and its lengths."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, shape[1] + 1, shape[0])
    mask = torch.from_numpy(np.arange(shape[1]) < lengths[:, None])
    return [torch.from_numpy(random.normal(size=shape).astype(np.float32)) for _ in range(count)], mask, lengths


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@given(shape=SHAPE, seed=SEED)
def test_causal_lm_loss_is_the_mean_over_learned_positions(shape: tuple[int, int], seed: int) -> None:
    random = np.random.default_rng(seed)
    logits, targets = random.normal(size=(*shape, 7)), random.integers(0, 7, shape)
    _, learn, lengths = batch(shape, seed, 0)
    losses = [math.log(np.exp(logits[i, j]).sum()) - logits[i, j, targets[i, j]] for i in range(shape[0]) for j in range(lengths[i])]
    close(causal_lm_loss(torch.from_numpy(logits).float(), torch.from_numpy(targets), learn), np.mean(losses))


def test_a_batch_without_learned_positions_has_no_loss() -> None:
    with pytest.raises(ValueError, match="no position is learned"):
        causal_lm_loss(torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.int64), torch.zeros(1, 2, dtype=torch.bool))


def test_margins_are_the_papers() -> None:
    assert [MARGINS["small"][rating] for rating in RATINGS] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert [MARGINS["large"][rating] for rating in RATINGS] == [3, 2, 1, 0]
    assert set(MARGINS["none"].values()) == {0.0}


@given(scores=st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8), st.sampled_from([0, 1 / 3, 1, 3])), min_size=1, max_size=6))
def test_ranking_loss_subtracts_the_margin_inside_the_sigmoid(scores: list[tuple[float, float, float]]) -> None:
    chosen, rejected, margin = (torch.tensor(column, dtype=torch.float32) for column in zip(*scores, strict=True))
    close(ranking_loss(chosen, rejected, margin), np.mean([-math.log(sigmoid(c - r - m)) for c, r, m in scores]))
    close(ranking_loss(chosen, rejected), np.mean([-math.log(sigmoid(c - r)) for c, r, _ in scores]))


def test_ranking_loss_stays_finite_where_the_sigmoid_does_not() -> None:
    assert ranking_loss(torch.tensor([-200.0]), torch.tensor([0.0])).item() == pytest.approx(200)


@given(rows=st.lists(st.tuples(st.floats(-8, 8), st.booleans()), min_size=1, max_size=6))
def test_safety_loss_reads_the_score_as_the_probability_of_being_safe(rows: list[tuple[float, bool]]) -> None:
    scores, unsafe = (torch.tensor(column) for column in zip(*rows, strict=True))
    expected = np.mean([-math.log(1 - sigmoid(s)) if bad else -math.log(sigmoid(s)) for s, bad in rows])
    close(safety_loss(scores, unsafe), expected)
    close(safety_loss(scores, unsafe.float()), expected)


@pytest.mark.parametrize(
    ("safety_score", "is_safety", "source"),
    [(0.149, False, "safety"), (0.151, False, "helpfulness"), (0.9, True, "safety"), (0.1, True, "safety"), (0.9, False, "helpfulness")],
)
def test_the_gate_takes_the_safety_score_when_tagged_or_low(safety_score: float, is_safety: bool, source: str) -> None:
    helpfulness, safety = torch.tensor([0.7]), torch.logit(torch.tensor([safety_score]))
    reward = gated_reward(helpfulness, safety, torch.tensor([is_safety]))
    assert reward.item() == (safety if source == "safety" else helpfulness).item()


@given(values=st.lists(st.floats(-50, 50), min_size=2, max_size=30).filter(lambda v: np.std(v) > 0.1))
def test_whitened_values_have_mean_0_and_variance_1(values: list[float]) -> None:
    white = whiten(torch.tensor(values, dtype=torch.float64))
    assert white.mean().item() == pytest.approx(0, abs=1e-6)
    assert white.var(correction=0).item() == pytest.approx(1, abs=1e-5)


def test_equal_values_whiten_to_zero() -> None:
    assert whiten(torch.full((5,), 3.0)).abs().max() == 0


@given(shape=SHAPE, seed=SEED)
def test_kl_estimators_follow_their_formulas(shape: tuple[int, int], seed: int) -> None:
    (ours, reference), _, _ = batch(shape, seed, 2)
    a, b = ours.double().numpy(), reference.double().numpy()
    close(kl_k1(ours, reference), a - b)
    close(kl_k3(ours, reference), np.exp(b - a) - 1 - (b - a))
    assert (kl_k3(ours, reference) >= 0).all()


def test_kl_estimators_are_unbiased() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.tensor([0.6, 0.3, 0.1]), torch.tensor([0.2, 0.5, 0.3])
    exact = (p * (p / q).log()).sum().item()
    drawn = torch.multinomial(p, 200_000, replacement=True, generator=generator)
    for estimate in (kl_k1, kl_k3):
        assert estimate(p.log()[drawn], q.log()[drawn]).mean().item() == pytest.approx(exact, abs=0.01)


@given(shape=SHAPE, seed=SEED)
def test_entropy_is_the_mean_surprise_under_the_distribution(shape: tuple[int, int], seed: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(*shape, 5)) * 3
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    close(entropy(torch.log_softmax(torch.from_numpy(logits).float(), -1)), -(p * np.log(p)).sum(-1))


@given(shape=SHAPE, seed=SEED, beta=st.sampled_from([0.0, 0.01, 0.5]))
def test_token_rewards_take_the_kl_off_every_token_and_add_the_score_to_the_last(shape: tuple[int, int], seed: int, beta: float) -> None:
    (kl, scores), mask, lengths = batch(shape, seed, 2)
    scores = scores[:, 0]
    rewards = token_rewards(scores, kl, mask, beta)
    for i, length in enumerate(lengths):
        expected = [-beta * float(kl[i, t]) + (float(scores[i]) if t == length - 1 else 0.0) for t in range(length)]
        close(rewards[i, :length], expected)
        close(rewards[i].double().sum(), float(scores[i]) - beta * sum(float(kl[i, t]) for t in range(length)))
    assert (rewards[~mask] == 0).all()


@given(shape=SHAPE, seed=SEED, gamma=st.sampled_from([1.0, 0.9]), lam=st.sampled_from([0.0, 0.95, 1.0]))
def test_gae_is_the_discounted_sum_of_residuals(shape: tuple[int, int], seed: int, gamma: float, lam: float) -> None:
    (rewards, values), mask, lengths = batch(shape, seed, 2)
    r, v = rewards.double().numpy(), values.double().numpy()
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for i, length in enumerate(lengths):
        after = np.append(v[i, 1:length], 0.0)
        residuals = r[i, :length] + gamma * after - v[i, :length]
        for t in range(length):
            expected = sum((gamma * lam) ** (s - t) * residuals[s] for s in range(t, length))
            close(advantages[i, t], expected)
            close(returns[i, t], expected + v[i, t])
    assert (advantages[~mask] == 0).all()
    assert (returns[~mask] == 0).all()


@given(shape=SHAPE, seed=SEED, clip=st.sampled_from([0.1, 0.2]))
def test_ppo_losses_follow_their_formulas(shape: tuple[int, int], seed: int, clip: float) -> None:
    (new, old, target), mask, lengths = batch(shape, seed, 3)
    n, o, a = (x.double().numpy() for x in (new, old, target))
    gains, errors = [], []
    for i, length in enumerate(lengths):
        for t in range(length):
            ratio = math.exp(n[i, t] - o[i, t])
            gains.append(min(ratio * a[i, t], min(max(ratio, 1 - clip), 1 + clip) * a[i, t]))
            kept = o[i, t] + min(max(n[i, t] - o[i, t], -clip), clip)
            errors.append(0.5 * max((n[i, t] - a[i, t]) ** 2, (kept - a[i, t]) ** 2))
    loss, ratio_bt = ppo_policy_loss(new, old, target, mask, clip)
    close(loss, -np.mean(gains))
    close(ratio_bt, np.where(mask.numpy(), np.exp(n - o), 1.0))
    close(ppo_value_loss(new, old, target, mask, clip), np.mean(errors))


def test_clipped_ratios_pass_no_gradient() -> None:
    new = torch.tensor([[0.5, 0.0]], requires_grad=True)
    loss, _ = ppo_policy_loss(new, torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool))
    loss.backward()
    assert new.grad is not None
    assert new.grad[0].tolist() == [0.0, -0.5]


def test_values_outside_the_mask_never_matter_even_if_not_finite() -> None:
    values = torch.tensor([[1.0, math.nan, math.inf]])
    mask = torch.tensor([[True, False, False]])
    assert masked_mean(values, mask).item() == 1
    loss, _ = ppo_policy_loss(torch.zeros(1, 3), torch.tensor([[0.0, -math.inf, 0.0]]), torch.ones(1, 3), mask)
    assert loss.item() == -1
    with pytest.raises(ValueError, match="mask is empty"):
        masked_mean(values, torch.zeros_like(mask))
