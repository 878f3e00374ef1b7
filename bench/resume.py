"""What saving the state of a training costs, as a share of the training's time at one save a minute."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer

from bench.setting import network, sequences
from model.causal_lm import CausalLM, PackedLoader
from model.packing import blocks
from model.ppo import PPO, PPOConfig
from model.resume import Resume, Saver
from model.reward import RewardModel
from model.rollouts import Critic, Prompt, PromptLoader
from model.training import Optimization, fit
from resources.environment import tampu_home
from resources.profiles import active

MINUTE = 60.0
UNIT = "% of the time at a save a minute"

Benchmark = tuple[Callable[[], int], str, Callable[[float], float]]


def save_pretraining() -> Benchmark:
    """The state of pretraining: weights and AdamW's two moments. A save ends when the new state is on disk and verified."""
    profile = active()
    stream = np.random.default_rng(0).integers(3, profile.vocab_size, 20 * profile.context).astype(np.int32)
    loader = PackedLoader(blocks(stream, profile.context), profile.pretraining_batch, seed=0)
    return _saves(CausalLM(network(), Optimization(profile.pretraining_learning_rate, 1, 1000)), loader, "bf16")


def save_ppo() -> Benchmark:
    """The state of PPO: policy, critic, their moments, the reference, and the best weights so far."""
    policy = network()
    prompts = [Prompt(tokens, False) for tokens in sequences(8, 4, 8)]

    def score(prompts: list[list[int]], answers: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.array([len(answer) for answer in answers], dtype=np.float32)
        return lengths, lengths

    ppo = PPO(
        policy,
        Critic.from_reward(RewardModel.from_llama(policy)),
        prompts,
        score,
        Optimization(1e-5, 0, 10, schedule="constant"),
        config=PPOConfig(samples_per_iteration=8, minibatch=8, max_new_tokens=4),
        validate=lambda policy: {"selection": 0.0},
        seed=0,
        eos_id=2,
    )
    return _saves(ppo, PromptLoader(prompts, 8, seed=0), "fp32", validate=ppo.validate)


def _saves(module: LightningModule, loader: Any, precision: Any, **arguments: Any) -> Benchmark:
    """Saves of a training that has done two steps, on the disk that holds TAMPU_HOME (or will)."""
    parent = next(folder for folder in tampu_home().parents if folder.is_dir())
    folder = tempfile.TemporaryDirectory(prefix=".tampu-bench-", dir=parent)
    fit(module, loader, steps=2, seed=0, precision=precision, resume=Resume(Path(folder.name), every_steps=1), **arguments)
    trainer: Trainer = module.trainer
    (saver,) = (callback for callback in trainer.callbacks if isinstance(callback, Saver))  # type: ignore[attr-defined]

    def work(_keep: Any = folder) -> int:
        saver.step += 1
        saver.save(trainer, module)
        return 1

    return work, UNIT, lambda saves_a_second: 100 / saves_a_second / MINUTE
