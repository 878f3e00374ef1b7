"""Training runs: schedule, determinism, refusals, and that each of the three modules learns."""

import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule

from model.causal_lm import CHUNK, CausalLM, PackedLoader, batch_of, bits_per_byte, mean_loss, next_token_loss
from model.generation import TOLERANCE
from model.llama import Llama, LlamaConfig
from model.packing import Packed, blocks
from model.ppo import PPO, Guards, PPOConfig
from model.precision import Precision
from model.reward import RewardModel, pad, score
from model.reward_training import Comparison, ComparisonLoader, Labelled, RewardTraining, collate, reward_optimization
from model.rollouts import Critic, Prompt, PromptLoader, Sequences, answer_logprobs, sample_answers
from model.training import FitResult, Optimization, fit
from model.weights import save_llama

torch.set_num_threads(1)

CONFIG = LlamaConfig(vocab_size=40, dim=32, layers=2, heads=4, kv_heads=2, multiple_of=16, max_context=32)


def made(seed: int = 0) -> Llama:
    model = Llama(CONFIG)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def documents(count: int = 60) -> Packed:
    """Documents in which each id is the one before plus 3, so that a model can learn them."""
    random = np.random.default_rng(0)
    stream = [token for start in random.integers(0, 36, count) for token in [1, *((start + 3 * np.arange(9)) % 36 + 4).tolist(), 2]]
    return blocks(np.array(stream), 16)


def pretrain(model: Llama, steps: int = 12, *, seed: int = 0, rate: float = 1e-2, **arguments) -> FitResult:
    module = CausalLM(model, Optimization(rate, min(3, steps), steps))
    return fit(module, PackedLoader(documents(), 8, seed=seed), steps=steps, seed=seed, **arguments)


def values(result: FitResult, metric: str) -> list[float]:
    return [row["value"] for row in result.rows if row["metric"] == metric]


def test_the_learning_rate_is_0_at_0_the_peak_after_warmup_and_a_tenth_at_the_end() -> None:
    schedule = Optimization(3e-4, 2000, 480_000)
    assert schedule.rate(0) == 0
    assert schedule.rate(1000) == pytest.approx(1.5e-4)
    assert schedule.rate(2000) == pytest.approx(3e-4)
    assert schedule.rate(241_000) == pytest.approx(0.55 * 3e-4)
    assert schedule.rate(480_000) == pytest.approx(3e-5)
    rates = [schedule.rate(step) for step in range(2000, 480_001, 500)]
    assert rates == sorted(rates, reverse=True)


def test_a_constant_schedule_stays_at_its_peak() -> None:
    schedule = Optimization(1e-6, 0, 400, schedule="constant")
    assert {schedule.rate(step) for step in (1, 200, 400)} == {1e-6}


@pytest.mark.parametrize(("steps", "warmup"), [(1000, 30), (100, 5), (3, 3)])
def test_reward_warmup_is_3_percent_and_at_least_5(steps: int, warmup: int) -> None:
    assert reward_optimization(1e-5, steps).warmup_steps == warmup


@pytest.mark.parametrize("changes", [{"learning_rate": 0.0}, {"warmup_steps": 11}, {"steps": 0}, {"schedule": "linear"}])
def test_impossible_optimizations_are_refused_by_name(changes: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        Optimization(**{"learning_rate": 1e-3, "warmup_steps": 1, "steps": 10} | changes)


def test_decay_acts_on_matrices_alone() -> None:
    model = made()
    decayed, kept = Optimization(1e-3, 1, 10).optimizer(model).param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.1, 0.0)
    assert all(p.dim() == 2 for p in decayed["params"])
    assert len(kept["params"]) == 2 * CONFIG.layers + 1
    assert len(decayed["params"]) + len(kept["params"]) == len(list(model.parameters()))
    assert (decayed["betas"], decayed["eps"]) == ((0.9, 0.95), 1e-5)


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    results = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(5)  # the state of the global generator must not matter
        model = made()
        results.append(pretrain(model, seed=seed, precision="bf16"))
        save_llama(model, tmp_path / name)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    assert results[0].rows == results[1].rows != results[2].rows


def test_a_run_leaves_the_global_generator_the_threads_and_the_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = made()
    state, handler = torch.random.get_rng_state(), signal.getsignal(signal.SIGINT)
    pretrain(model, steps=2, threads=2)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == 1
    assert signal.getsignal(signal.SIGINT) is handler
    assert list(tmp_path.iterdir()) == []


def test_a_run_learns_and_reports_rows(capfd: pytest.CaptureFixture) -> None:
    model = made()
    held_out = documents(5)
    asked: list[int] = []
    saved: list[int] = []

    def validate() -> dict[str, float]:
        asked.append(1)
        return {"validation_loss": mean_loss(model, held_out)[0]}

    result = pretrain(
        model, 45, log_every=10, validate=validate, validate_every=20, validate_first=True, checkpoints_at=[7, 45],
        on_checkpoint=saved.append, progress="base model",
    )  # fmt: skip
    losses = values(result, "train_loss")
    assert [row["step"] for row in result.rows if row["metric"] == "train_loss"] == [10, 20, 30, 40, 45]
    assert [row["tokens"] for row in result.rows if row["metric"] == "train_loss"][-1] == result.tokens == 45 * 8 * 16
    assert [row["step"] for row in result.rows if row["metric"] == "validation_loss"] == [0, 20, 40, 45]
    assert losses[-1] < 0.4 * losses[0]
    assert values(result, "validation_loss")[-1] < 0.4 * values(result, "validation_loss")[0]
    assert values(result, "learning_rate")[-1] == pytest.approx(np.mean([Optimization(1e-2, 3, 45).rate(s) for s in range(41, 46)]))
    assert saved == [7, 45]
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 10
    assert lines[0].startswith("base model: step 5/45, ")
    assert all(line.startswith("base model: step ") for line in lines)


def test_a_loss_that_is_not_finite_stops_before_the_update() -> None:
    model = made()
    model.trunk.norm.weight.data[3] = float("nan")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="loss at step 1 is nan"):
        pretrain(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items() if name != "trunk.norm.weight")


def test_a_gradient_that_is_not_finite_stops_before_the_update() -> None:
    model = made()
    model.trunk.embedding.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = model.trunk.layers[0].attention.query.weight.detach().clone()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="gradient norm at step 1 is"):
        pretrain(model)
    assert torch.equal(model.trunk.layers[0].attention.query.weight, before)  # type: ignore[union-attr]


def test_ctrl_c_stays_a_keyboard_interrupt() -> None:
    def interrupt(step: int) -> None:
        signal.raise_signal(signal.SIGINT)

    inherited = signal.getsignal(signal.SIGINT)  # ignored where a shell started the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            pretrain(made(), checkpoints_at=[2], on_checkpoint=interrupt)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


def test_a_loader_that_ends_early_is_an_error() -> None:
    batch = batch_of(documents(), slice(0, 4))
    with pytest.raises(ValueError, match="ended after 2 batches; 5"):
        fit(CausalLM(made(), Optimization(1e-3, 1, 5)), [batch, batch], steps=5, seed=0)


def test_unknown_precisions_and_no_steps_are_refused() -> None:
    for arguments, fault in (({"precision": "fp8"}, "'fp8'"), ({"steps": 0}, "steps is 0")):
        with pytest.raises(ValueError, match=fault):
            fit(CausalLM(made(), Optimization(1e-3, 1, 5)), [], **{"steps": 5, "seed": 0} | arguments)


def test_the_loss_is_the_mean_over_the_learned_tokens_of_the_whole_batch() -> None:
    model = made()
    model.trunk.embedding.weight.data.mul_(30)
    random = np.random.default_rng(0)
    tokens = torch.from_numpy(random.integers(3, 40, (40, 32)))
    learn = torch.from_numpy(random.random((40, 32)) < np.linspace(0.5, 0.99, 40)[:, None])
    segments = torch.from_numpy(np.sort(random.integers(0, 4, (40, 32)))[:, ::-1].copy())
    loss, count = next_token_loss(model, tokens, learn, segments)
    logprobs = torch.log_softmax(model(tokens, segments_bt=segments).double(), dim=-1)
    expected = [
        -logprobs[i, j - 1, tokens[i, j]].item()
        for i in range(40)
        for j in range(1, 32)
        if learn[i, j] and segments[i, j] == segments[i, j - 1] > 0
    ]
    assert count == len(expected) > CHUNK
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)
    with pytest.raises(ValueError, match="no token of this batch is learned"):
        next_token_loss(model, tokens, torch.zeros_like(learn), segments)


def test_held_out_loss_does_not_depend_on_the_batch_size() -> None:
    model, packed = made(), documents(20)
    loss, learned = mean_loss(model, packed, batch_size=64)
    assert learned == packed.learned()
    assert mean_loss(model, packed, batch_size=3) == (pytest.approx(loss, rel=1e-5), learned)
    assert bits_per_byte(model, packed, 500) == pytest.approx(loss * learned / np.log(2) / 500)
    silent = Packed(packed.tokens, np.zeros_like(packed.learn), packed.segments)
    both = Packed(*(np.concatenate(pair) for pair in zip(vars(silent).values(), vars(packed).values(), strict=True)))
    assert mean_loss(model, both, batch_size=len(silent))[0] == pytest.approx(loss, rel=1e-5)


def comparisons(count: int = 64) -> list[Comparison]:
    """The better dialogue holds more ids above 20; the worse one is unsafe if it holds an id 7."""
    random = np.random.default_rng(0)
    made_up = []
    for _ in range(count):
        prompt = [1, *random.integers(8, 40, random.integers(1, 8)).tolist()]
        good = [*random.integers(21, 40, random.integers(1, 10)).tolist(), 2]
        bad = [*random.integers(7, 20, random.integers(1, 10)).tolist(), 2]
        made_up.append(Comparison(prompt + good, prompt + bad, "better", False, 7 in bad))
    return made_up


def test_a_batch_scores_two_sequences_a_pair_whatever_their_lengths() -> None:
    pairs = comparisons(512)
    batch = collate(pairs, [Labelled([1, 5, 2], True)], "large", 256)
    assert sorted(i for group in batch["groups"] for i in group.sequences.tolist()) == list(range(1025))
    assert batch["margins"].tolist() == [2.0] * 512
    assert batch["has_label"].all()
    module = RewardTraining(RewardModel.from_llama(made()), reward_optimization(1e-3, 10), safety_weight=1.0)
    torch.nn.init.normal_(module.model.head.weight, generator=torch.Generator().manual_seed(0))
    alone = [module.model(*pad([tokens])) for pair in pairs for tokens in (pair.chosen, pair.rejected)] + [module.model(*pad([[1, 5, 2]]))]
    np.testing.assert_allclose(module.scores(batch).detach().numpy(), torch.cat(alone).detach().numpy(), atol=1e-5)


def test_pairs_without_labels_take_no_part_in_the_safety_loss() -> None:
    pairs = [Comparison([1, 30, 2], [1, 9, 2], "better"), Comparison([1, 31, 2], [1, 8, 2], "better", False, None)]
    batch = collate(pairs, [], "none", 256)
    assert batch["has_label"].tolist() == [False, False, True, False]
    module = RewardTraining(RewardModel.from_llama(made()), reward_optimization(1e-3, 10), safety_weight=1.0)
    metrics = module.training_step(batch, 0)["metrics"]
    assert metrics["safety_loss"].item() == pytest.approx(np.log(2))
    assert "safety_loss" not in module.training_step(collate(pairs[:1], [], "none", 256), 0)["metrics"]


def test_labelled_dialogues_are_spread_evenly_over_an_epoch() -> None:
    loader = ComparisonLoader(comparisons(40), 8, seed=0, margin="small", labelled=[Labelled([1, i, 2], False) for i in range(3, 16)])
    stream = iter(loader)
    extra = [len(next(stream)["has_label"]) - 16 for _ in range(loader.steps())]
    assert sum(extra) == 13
    assert max(extra) - min(extra) <= 1


def test_reward_training_ranks_pairs_and_calibrates_safety() -> None:
    model = RewardModel.from_llama(made())
    loader = ComparisonLoader(comparisons(), 16, seed=0, margin="small", labelled=[Labelled([1, 30, 2], False)])
    result = fit(RewardTraining(model, reward_optimization(3e-3, 40), safety_weight=1.0), loader, steps=40, seed=0, log_every=40)
    assert values(result, "ranking_loss")[0] < 0.6
    fresh = comparisons(200)[100:]
    chosen, rejected = score(model, [c.chosen for c in fresh]), score(model, [c.rejected for c in fresh])
    assert (chosen > rejected).mean() > 0.9
    assert (chosen > 0).mean() > 0.9


def test_ratings_and_margins_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="'great'"):
        Comparison([1], [1], "great")
    with pytest.raises(ValueError, match="'huge'"):
        ComparisonLoader(comparisons(2), 2, seed=0, margin="huge")
    with pytest.raises(ValueError, match="no comparisons"):
        ComparisonLoader([], 2, seed=0, margin="none")


def count_high(prompts: list[list[int]], answers: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Helpfulness: the share of ids from 20 on. Safety: high unless an answer holds an id 5."""
    helpful = np.array([np.mean([token >= 20 for token in answer]) * 4 - 2 for answer in answers], dtype=np.float32)
    return helpful, np.array([-4.0 if 5 in answer else 4.0 for answer in answers], dtype=np.float32)


def ppo(policy: Llama, **arguments) -> PPO:
    random = np.random.default_rng(0)
    prompts = [Prompt([1, *random.integers(3, 40, random.integers(1, 6)).tolist()], bool(i % 5 == 0)) for i in range(50)]
    config = PPOConfig(samples_per_iteration=64, minibatch=8, max_new_tokens=8)
    critic = Critic.from_reward(RewardModel.from_llama(policy))
    defaults = {"optimization": Optimization(2e-3, 0, 20, schedule="constant"), "config": config, "seed": 0, "eos_id": 2}
    return PPO(policy, critic, prompts, count_high, **defaults | arguments)


def train(module: PPO, steps: int, **arguments) -> FitResult:
    loader = PromptLoader(module.prompts, module.config.samples_per_iteration, seed=0)
    return fit(module, loader, steps=steps, seed=0, log_every=1, validate=module.validate if module.held_out else None, **arguments)


@pytest.mark.parametrize("tokens_read_together", [4096, 5])
def test_answer_positions_carry_the_logprobs_of_their_tokens(tokens_read_together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.rollouts.GROUP_TOKENS", tokens_read_together)
    model = made()
    prompts, answers = [[1, 5, 6], [1], [1, 9, 9, 9]], [[7, 2], [8, 9, 10, 2], [2]]
    sequences = Sequences.of(prompts, answers, torch.device("cpu"))
    logprobs = sequences.chosen(sequences.distributions(model))
    assert sequences.mask_na.sum(1).tolist() == [2, 4, 1]
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        alone = torch.log_softmax(model(torch.tensor([prompt + answer]))[0], dim=-1)
        for i, token in enumerate(answer):
            assert logprobs[row, i].item() == pytest.approx(alone[len(prompt) - 1 + i, token].item(), abs=1e-5)
    assert (logprobs[~sequences.mask_na] == 0).all()


def test_an_iteration_makes_one_update_a_minibatch_and_starts_at_ratio_one(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ppo(made(), precision="bf16")
    updates: list[dict[str, float]] = []
    update = module.update

    def recorded(*arguments) -> dict[str, float]:
        updates.append(update(*arguments))
        return updates[-1]

    monkeypatch.setattr(module, "update", recorded)
    before = {name: tensor.clone() for name, tensor in module.reference.state_dict().items()}
    result = train(module, 1)
    assert len(updates) == 8
    assert updates[0]["ratio_max"] == pytest.approx(1.0, abs=1e-6)
    assert updates[1]["ratio_max"] > 1.0001
    assert values(result, "kl_k1") == [0.0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.reference.state_dict().items())
    assert not torch.equal(module.policy.trunk.embedding.weight, module.reference.trunk.embedding.weight)


def test_ppo_raises_the_reward_and_leaves_the_starting_policy() -> None:
    result = train(ppo(made(), optimization=Optimization(5e-3, 0, 20, schedule="constant")), 14)
    reward = values(result, "helpfulness_score")
    assert np.mean(reward[-3:]) > np.mean(reward[:3]) + 0.1
    assert values(result, "kl_k3")[-1] > 0.1
    assert values(result, "entropy")[-1] < values(result, "entropy")[0]


def test_ppo_with_the_same_seed_gives_the_same_rows() -> None:
    assert train(ppo(made()), 2).rows == train(ppo(made()), 2).rows


def test_a_guard_stops_the_run_and_says_why() -> None:
    module = ppo(made(), guards=Guards(max_kl=0.05))
    result = train(module, 14)
    assert 1 < result.steps < 14
    assert module.stopped is not None
    assert "kl_k3" in module.stopped
    assert Guards(min_length=5).broken({"kl_k3": 0, "answer_length": 3, "entropy": 1}) == "answer_length 3 fell below 5"
    assert Guards(max_kl=9, min_length=1, min_entropy=0.5).broken({"kl_k3": 0, "answer_length": 3, "entropy": 1}) is None


@pytest.mark.parametrize(
    ("guards", "metrics", "said"),
    [
        (Guards(max_kl=1), {"kl_k3": 2.0}, "kl_k3 2 rose above 1"),
        (Guards(min_kl=-1), {"kl_k1": -3.0}, "kl_k1 -3 fell below -1"),
        (Guards(min_length=2), {"answer_length": 1.0}, "answer_length 1 fell below 2"),
        (Guards(max_length=2), {"answer_length": 3.0}, "answer_length 3 rose above 2"),
        (Guards(min_entropy=0.1), {"entropy": 0.05}, "entropy 0.05 fell below 0.1"),
        (Guards(max_entropy=2), {"entropy": 3.0}, "entropy 3 rose above 2"),
        (Guards(min_finished=0.2), {"finished_share": 0.1}, "finished_share 0.1 fell below 0.2"),
        (Guards(max_ratio=2), {"ratio": 2.5}, "ratio 2.5 rose above 2"),
        (Guards(max_sampler_gap=0.05), {"sampler_gap": 0.4}, "sampler_gap 0.4 rose above 0.05"),
        (Guards(max_kl=1), {"kl_k3": float("nan")}, "kl_k3 nan rose above 1"),
        (Guards(max_kl=1, max_ratio=2, min_finished=0.5), {"kl_k3": 1.0, "ratio": 2.0, "finished_share": 0.5}, None),
    ],
)
def test_every_band_has_two_sides_and_a_message(guards: Guards, metrics: dict, said: str | None) -> None:
    assert guards.broken(metrics) == said


def test_answers_outside_a_band_are_not_learned_from_and_their_policy_is_not_selected() -> None:
    policies: list[torch.Tensor] = []

    def validate(policy: Llama) -> dict[str, float]:
        policies.append(policy.trunk.embedding.weight.detach().clone())
        return {"selection": float(len(policies))}  # the later, the better

    module = ppo(made(), validate=validate, guards=Guards(max_kl=0.05), optimization=Optimization(5e-3, 0, 20, schedule="constant"))
    result = train(module, 14, validate_every=1, validate_first=True)
    assert module.stopped is not None
    assert module.stopped.startswith("kl_k3")
    assert result.steps < 14
    assert "policy_loss" not in {row["metric"] for row in result.rows if row["step"] == result.steps}
    assert torch.equal(policies[-1], policies[-2])
    assert (module.best_step, module.best) == (result.steps - 1, float(result.steps))
    assert torch.equal(module.policy.trunk.embedding.weight, policies[-2])


def test_a_ratio_outside_its_band_ends_the_iteration_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ppo(made(), guards=Guards(max_ratio=1.5))
    updates = iter([{"ratio": 1.0, "ratio_max": 1.2}, {"ratio": 1.6, "ratio_max": 9.0}, {"ratio": 1.0, "ratio_max": 1.0}])
    monkeypatch.setattr(module, "update", lambda *_: next(updates))
    result = train(module, 3)
    assert module.stopped == "ratio 1.6 rose above 1.5"
    assert result.steps == 1
    assert (values(result, "ratio"), values(result, "ratio_max")) == ([pytest.approx(1.3)], [9.0])
    assert len(list(updates)) == 1


def test_a_policy_whose_answers_do_not_end_is_stopped() -> None:
    module = ppo(made(), guards=Guards(min_finished=0.5), eos_id=-1)
    assert train(module, 3).steps == 1
    assert module.stopped is not None
    assert module.stopped.startswith("finished_share")


@pytest.mark.parametrize("which", [0, 1])
def test_rewards_that_are_not_finite_stop_before_the_update(which: int) -> None:
    def broken(prompts: list[list[int]], answers: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        scores = count_high(prompts, answers)
        scores[which][7] = np.nan
        return scores

    module = ppo(made())
    module.score = broken
    before = module.policy.trunk.embedding.weight.detach().clone()
    with pytest.raises(
        ValueError, match=f"{('helpfulness', 'safety')[which]} reward of 1 of 64 answers is not finite, the first being nan of answer 7"
    ):
        train(module, 1)
    assert torch.equal(module.policy.trunk.embedding.weight, before)


def test_prompts_and_networks_that_do_not_fit_are_refused() -> None:
    policy = made()
    critic = Critic.from_reward(RewardModel.from_llama(policy))
    optimization, config = Optimization(1e-3, 0, 2, schedule="constant"), PPOConfig(samples_per_iteration=8, minibatch=8, max_new_tokens=8)
    arguments = {"config": config, "seed": 0, "eos_id": 2}
    with pytest.raises(ValueError, match="no prompts"):
        PPO(policy, critic, [], count_high, optimization, **arguments)
    with pytest.raises(ValueError, match="prompt 1 has 25 tokens, which leaves no room for max_new_tokens 8 in the policy's context of 32"):
        PPO(policy, critic, [Prompt([1] * 24, False), Prompt([1] * 25, False)], count_high, optimization, **arguments)
    other = Llama(LlamaConfig(vocab_size=41, dim=32, layers=1, heads=2, kv_heads=1, multiple_of=16, max_context=32))
    with pytest.raises(ValueError, match="vocabulary of 41 tokens and the policy one of 40"):
        PPO(policy, Critic.from_reward(RewardModel.from_llama(other)), [Prompt([1], False)], count_high, optimization, **arguments)


def test_an_iteration_logs_what_a_person_needs_to_see() -> None:
    module = ppo(made(), validate=lambda _: {"selection": 0.0, "held_out_reward": 0.0})
    logged = {row["metric"] for row in train(module, 1).rows}
    assert logged >= {
        "helpfulness_score", "safety_score", "reward", "kl_k1", "kl_k3", "ratio", "ratio_min", "ratio_max", "clip_share", "entropy",
        "policy_loss", "value_loss", "answer_length", "finished_share", "sampler_gap", "sampler_gap_max", "held_out_reward",
    }  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sampler_and_trainer_give_the_same_tokens_the_same_logprobs(precision: Precision) -> None:
    model, prompts = made(), [[1, *range(3, 3 + n)] for n in range(1, 20)]
    completions = sample_answers(model, prompts, max_new_tokens=8, seed=0, iteration=0, eos_id=2, batch_size=7, precision=precision)
    trained = answer_logprobs(model, prompts, [c.tokens for c in completions], precision=precision, batch_size=5)
    for completion, theirs in zip(completions, trained, strict=True):
        np.testing.assert_allclose(completion.logprobs, theirs, atol=TOLERANCE[precision])
    result = train(ppo(made(), precision=precision), 1)
    assert values(result, "sampler_gap")[0] < TOLERANCE[precision] / 4
    with torch.no_grad():
        model.trunk.layers[0].attention.query.weight.add_(0.3)  # type: ignore[union-attr,operator]
    moved = answer_logprobs(model, prompts, [c.tokens for c in completions], precision=precision)
    assert np.mean([abs(a - b) for c, row in zip(completions, moved, strict=True) for a, b in zip(c.logprobs, row, strict=True)]) > 1e-3


def test_the_best_validated_weights_are_kept_and_patience_ends_the_run() -> None:
    selections = iter([0.1, 0.5, 0.4, 0.3])
    seen: list[torch.Tensor] = []

    def validate(policy: Llama) -> dict[str, float]:
        seen.append(policy.trunk.embedding.weight.detach().clone())
        return {"selection": next(selections)}

    module = ppo(made(), validate=validate, patience=2)
    result = train(module, 10, validate_every=1, validate_first=True)
    assert (result.steps, module.best_step, module.best) == (3, 1, 0.5)
    assert module.stopped == "no better selection value in 2 validations"
    assert torch.equal(module.policy.trunk.embedding.weight, seen[1])
    assert not torch.equal(seen[1], seen[3])


def test_ppo_sets_its_own_precision() -> None:
    module = ppo(made())
    with pytest.raises(ValueError, match="PPO optimizes by hand"):
        train(module, 1, precision="bf16")
    with pytest.raises(ValueError, match="multiple of minibatch"):
        PPOConfig(samples_per_iteration=100)


def test_fit_takes_any_iterable_and_module_of_the_same_shape() -> None:
    class Quadratic(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.optimization = torch.nn.Parameter(torch.ones(1, 1)), Optimization(0.1, 1, 50, floor=0.5)

        def training_step(self, batch: dict, batch_idx: int) -> dict:
            return {"loss": (self.weight - batch["target"]).square().sum(), "tokens": 1, "metrics": {}}

        def configure_optimizers(self) -> dict:  # type: ignore[override]
            return self.optimization.configure(self)  # type: ignore[return-value]

    def targets() -> Iterator[dict]:
        while True:
            yield {"target": torch.tensor(3.0)}

    module = Quadratic()
    fit(module, targets(), steps=50, seed=0)
    assert module.weight.item() == pytest.approx(3.0, abs=0.3)
