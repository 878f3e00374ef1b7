"""Profiles set sizes, never behaviour: one dataclass of numbers that become the defaults of the assets' configs.

`TAMPU_PROFILE` names the active one: a name of `PROFILES`, or the path of a TOML file with `base = "<name>"` and the keys to change.
Profile values reach an artifact's identity only through its config, so this module is no part of the code hash.
"""

import math
import os
import tomllib
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path

from resources.errors import TampuError


@dataclass(frozen=True)
class Profile:
    """Sizes of every stage. Tokens, steps and counts; never seconds. With `base_checkpoint` the network's sizes are that checkpoint's."""

    name: str
    seed: int = 0
    # one split for everything: shares of topics, conversations and prompts
    validation_share: float = 0.12
    test_share: float = 0.22
    conversation_validation_share: float = 0.03
    conversation_test_share: float = 0.05
    # an imported checkpoint that is the base model, with its tokenizer and chat format; empty: both are trained
    base_checkpoint: str = ""
    # corpus and tokenizer
    conversations: int = 7168
    speeches_from_year: int = 2000
    speeches_weight: int = 2
    vocab_size: int = 2048
    # the network
    dim: int = 128
    layers: int = 4
    heads: int = 2
    kv_heads: int = 1
    context: int = 576
    max_context: int = 1024
    # pretraining
    pretraining_steps: int = 1500
    pretraining_batch: int = 4
    pretraining_learning_rate: float = 6e-3
    # prompts
    task_prompts: int = 9000
    unsafe_prompts: int = 2500
    borderline_prompts: int = 1500
    chat_prompts: int = 900
    validation_task_prompts: int = 180
    validation_unsafe_prompts: int = 120
    validation_borderline_prompts: int = 90
    validation_chat_prompts: int = 60
    test_task_prompts: int = 450
    test_unsafe_prompts: int = 400
    test_borderline_prompts: int = 400
    test_unseen_action_prompts: int = 150
    test_chat_prompts: int = 200
    # supervised fine-tuning
    sft_tasks: int = 750
    sft_unsafe: int = 200
    sft_borderline: int = 250
    sft_chats: int = 1500
    sft_repeats: int = 6
    sft_batch: int = 2
    sft_learning_rate: float = 3e-3
    # preferences
    comparisons_a_week: int = 6500
    held_out_share: float = 0.14
    annotator_noise: float = 0.1
    growth_threshold: int = 500
    # reward models
    reward_batch: int = 8
    reward_learning_rate: float = 1e-3
    reward_epochs: int = 3
    # reinforcement learning from human feedback
    samples_per_prompt: int = 8
    rejection_sampling_prompts: int = 2000
    policy_repeats: int = 6
    best_samples_repeats: int = 1
    ghost_attention_dialogues: int = 160
    ghost_attention_turns: int = 20
    ghost_attention_window: int = 3
    ghost_attention_rows: int = 2
    context_distillation_prompts: int = 240
    ppo_iterations: int = 6
    ppo_samples: int = 512
    ppo_minibatch: int = 64
    ppo_learning_rate: float = 2e-4
    ppo_critic_learning_rate: float = 1e-3
    answer_tokens: int = 40
    # evaluation
    ghost_attention_test_dialogues: int = 48
    ghost_attention_test_turns: int = 20
    multiple_choice_items: int = 240


# What a profile may do without.
MAY_BE_ZERO = frozenset(
    ("seed", "sft_tasks", "sft_unsafe", "sft_borderline", "sft_chats", "chat_prompts", "test_unseen_action_prompts", "annotator_noise")
)

PROFILES: dict[str, Profile] = {"tiny": Profile(name="tiny")}
PROFILES["micro"] = replace(
    PROFILES["tiny"],
    name="micro",
    conversations=240,
    speeches_from_year=2022,
    vocab_size=512,
    dim=32,
    layers=2,
    heads=2,
    kv_heads=1,
    context=256,
    max_context=512,
    pretraining_steps=12,
    task_prompts=160,
    unsafe_prompts=60,
    borderline_prompts=40,
    chat_prompts=30,
    validation_task_prompts=18,
    validation_unsafe_prompts=12,
    validation_borderline_prompts=8,
    validation_chat_prompts=6,
    test_task_prompts=36,
    test_unsafe_prompts=16,
    test_borderline_prompts=16,
    test_unseen_action_prompts=8,
    test_chat_prompts=10,
    sft_tasks=60,
    sft_unsafe=24,
    sft_borderline=16,
    sft_chats=40,
    sft_repeats=1,
    comparisons_a_week=160,
    growth_threshold=40,
    reward_batch=16,
    held_out_share=0.2,
    samples_per_prompt=2,
    rejection_sampling_prompts=40,
    ghost_attention_dialogues=6,
    ghost_attention_turns=3,
    context_distillation_prompts=8,
    ppo_iterations=2,
    ppo_samples=32,
    ppo_minibatch=16,
    answer_tokens=12,
    ghost_attention_test_dialogues=4,
    ghost_attention_test_turns=4,
    multiple_choice_items=16,
)

# SFT of SmolLM2-135M (arXiv 2502.02737) on a laptop; the network's sizes are the checkpoint's own, and learning rates our choice.
PROFILES["smol"] = replace(
    PROFILES["micro"],
    name="smol",
    base_checkpoint="smollm2-135m",
    vocab_size=49152,
    dim=576,
    layers=30,
    heads=9,
    kv_heads=3,
    context=256,
    max_context=8192,
    sft_tasks=100,
    sft_unsafe=40,
    sft_borderline=30,
    sft_chats=80,
    sft_learning_rate=1e-4,
    reward_batch=8,
    reward_learning_rate=2e-5,
    reward_epochs=1,
    ppo_learning_rate=1e-6,
    ppo_critic_learning_rate=1e-5,
    answer_tokens=40,
)


def load_profile(name: str) -> Profile:
    """A built-in profile by name, or one from a TOML file by path. Unknown names and keys are refused by name."""
    if name in PROFILES:
        return PROFILES[name]
    path = Path(name)
    if path.suffix != ".toml" or not path.is_file():
        raise TampuError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}, or give the path of a .toml file")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TampuError(f"profile {name}: not a TOML file ({error})") from error
    base = table.pop("base", "tiny")
    if not isinstance(base, str) or base not in PROFILES:
        raise TampuError(f"profile {name}: base = {base!r} is unknown, choose one of {', '.join(PROFILES)}")
    kinds = {field.name: field.type for field in fields(Profile) if field.name != "name"}
    for key, value in table.items():
        if key not in kinds:
            raise TampuError(f"profile {name}: unknown key {key!r}; the keys are {', '.join(sorted(kinds))}")
        kind = kinds[key]
        if kind is str:
            if not isinstance(value, str):
                raise TampuError(f"profile {name}: {key} = {value!r}, expected a text")
            continue
        if isinstance(value, bool) or not isinstance(value, int if kind is int else (int, float)):
            raise TampuError(f"profile {name}: {key} = {value!r}, expected {'a whole number' if kind is int else 'a number'}")
        least, below = 0 if key in MAY_BE_ZERO else 1e-12, 1 if key.endswith("_share") else math.inf
        if not least <= value < below:
            bounds = "0 or more" if key in MAY_BE_ZERO else "above 0"
            raise TampuError(f"profile {name}: {key} = {value!r}, expected {bounds}" + (" and below 1" if below == 1 else ""))
        table[key] = float(value) if kind is float else value
    if path.stem in PROFILES:
        raise TampuError(f"profile {name}: the name {path.stem!r} belongs to a built-in profile; give the file another name")
    return replace(PROFILES[base], **{"name": path.stem, **table})


@cache
def active() -> Profile:
    """The profile that `TAMPU_PROFILE` names (default `tiny`); read once a process."""
    return load_profile(os.environ.get("TAMPU_PROFILE", "") or "tiny")
