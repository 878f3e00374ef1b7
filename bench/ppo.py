"""An iteration of PPO beside TRL's experimental PPOTrainer: `python -m bench.ppo [contender ...]`.

512 answers of up to 64 tokens to prompts of 16 to 48, mini-batches of 64, one pass; every network has 6.9 million parameters
(`bench.stopping`). Tampu has five of them: policy, reference, critic and two reward models; TRL has four, with one reward model. TRL 1.9.0
is the last line that has a PPOTrainer: `pip install trl==1.9.0`. It gets its gradients without checkpointing, and the better of two batch
sizes for its rollouts. Counted are the seconds of the iterations after the first.
"""

import tempfile
import warnings
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np
import torch

from bench.contest import contest
from bench.stopping import EOS, NEW_TOKENS, network, prompts, tokenizer, transformers_network
from model.memory import keep_freed_memory
from model.precision import Precision

SAMPLES, MINIBATCH, ITERATIONS, LEARNING_RATE = 512, 64, 3, 1e-6


def tampu(precision: Precision) -> dict[str, float]:
    """Seconds an iteration, and where they go: the policy's answers; passes of all five networks over them; the updates."""
    import model.ppo
    from model.ppo import PPO, PPOConfig
    from model.reward import RewardModel, score
    from model.rollouts import Critic, Prompt, PromptLoader
    from model.training import Optimization, fit
    from resources.sampler import BATCH

    keep_freed_memory()
    policy = network()
    rewards = [RewardModel.from_llama(policy) for _ in range(2)]
    for each in rewards:
        torch.nn.init.normal_(each.head.weight, generator=torch.Generator().manual_seed(0))
    seconds: dict[str, float] = {}

    def timed(name: str, work: Any) -> Any:
        def wrapped(*arguments: Any, **settings: Any) -> Any:
            began = perf_counter()
            result = work(*arguments, **settings)
            seconds[name] = seconds.get(name, 0.0) + perf_counter() - began
            return result

        return wrapped

    def rate(questions: list[list[int]], answers: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        whole = [question + answer for question, answer in zip(questions, answers, strict=True)]
        helpfulness, safety = (score(each, whole, precision=precision) for each in rewards)
        return helpfulness, safety

    model.ppo.sample_answers = timed("sampling", model.ppo.sample_answers)  # type: ignore[assignment]
    config = PPOConfig(samples_per_iteration=SAMPLES, minibatch=MINIBATCH, max_new_tokens=NEW_TOKENS, decode_batch=BATCH)
    asked = [Prompt(tokens, index % 5 == 0) for index, tokens in enumerate(prompts(SAMPLES * ITERATIONS))]
    module = PPO(
        policy,
        Critic.from_reward(rewards[0]),
        asked,
        timed("reward models", rate),
        Optimization(LEARNING_RATE, 0, ITERATIONS, schedule="constant"),
        config=config,
        seed=0,
        eos_id=EOS,
        precision=precision,
    )
    ends: list[float] = []
    collect, update, step = module.collect, module.update, module.training_step
    module.collect, module.update = timed("sampling and scoring", collect), timed("updates", update)  # type: ignore[method-assign]

    def counted(*arguments: Any) -> Any:
        result = step(*arguments)
        if not ends:
            seconds.clear()
        ends.append(perf_counter())
        return result

    module.training_step = counted  # type: ignore[method-assign]
    result = fit(module, PromptLoader(asked, SAMPLES, seed=0), steps=ITERATIONS, seed=0, log_every=1)
    lengths = [row["value"] for row in result.rows if row["metric"] == "answer_length"]
    several = ITERATIONS - 1
    networks = (policy, module.reference, module.critic, *rewards)
    passes = seconds["sampling and scoring"] - seconds["sampling"] - seconds["reward models"]
    return {
        "seconds an iteration": (ends[-1] - ends[0]) / several,
        "of these: sampling": seconds["sampling"] / several,
        "of these: reward models": seconds["reward models"] / several,
        "of these: policy, reference and critic": passes / several,
        "of these: updates": seconds["updates"] / several,
        "answer tokens an iteration": SAMPLES * sum(lengths[1:]) / several,
        "weights of the networks (MB)": sum(p.numel() for each in networks for p in each.parameters()) / 2**18,
    }


def trl(bf16: bool, rollout_batch: int) -> dict[str, float]:
    """Seconds an iteration of TRL's trainer."""
    warnings.filterwarnings("ignore")
    from datasets import Dataset
    from transformers import LlamaForSequenceClassification, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    ends: list[float] = []
    tokens: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(perf_counter())

        def on_log(self, _: Any, __: Any, ___: Any, logs: dict[str, float] | None = None, **____: Any) -> None:
            tokens.append((logs or {}).get("val/num_eos_tokens", 0.0))

    ours = network()
    policy, reference = transformers_network(ours), transformers_network(ours)
    critics = []
    for _ in range(2):
        critic = LlamaForSequenceClassification(policy.config)
        critic.config.num_labels = 1
        critic.score = torch.nn.Linear(policy.config.hidden_size, 1, bias=False)
        critic.model.load_state_dict(policy.model.state_dict())
        critics.append(critic)
    pieces = tokenizer()
    asked = Dataset.from_list([{"input_ids": each} for each in prompts(SAMPLES * ITERATIONS)])
    with tempfile.TemporaryDirectory() as folder:
        settings = PPOConfig(
            output_dir=folder,
            per_device_train_batch_size=SAMPLES,
            gradient_accumulation_steps=1,
            num_mini_batches=SAMPLES // MINIBATCH,
            num_ppo_epochs=1,
            total_episodes=SAMPLES * ITERATIONS,
            local_rollout_forward_batch_size=rollout_batch,
            response_length=NEW_TOKENS,
            stop_token="eos",
            temperature=1.0,
            missing_eos_penalty=1.0,
            kl_coef=0.01,
            learning_rate=LEARNING_RATE,
            gradient_checkpointing=False,
            bf16=bf16,
            use_cpu=True,
            num_sample_generations=0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = PPOTrainer(
            args=settings,
            processing_class=pieces,
            model=policy,
            ref_model=reference,
            reward_model=critics[0],
            value_model=critics[1],
            train_dataset=asked,
            eval_dataset=asked.select(range(8)),
            callbacks=[Clock()],
        )
        trainer.train()
    return {"seconds an iteration": (ends[-1] - ends[0]) / (len(ends) - 1), "answers that ended": tokens[-1] if tokens else 0.0}


CONTENDERS = {
    "tampu, bf16": partial(tampu, "bf16"),
    "tampu, fp32": partial(tampu, "fp32"),
    "trl, fp32, rollouts of 64": partial(trl, False, 64),
    "trl, fp32, rollouts of 512": partial(trl, False, 512),
    "trl, bf16, rollouts of 512": partial(trl, True, 512),
}

if __name__ == "__main__":
    contest("bench.ppo", CONTENDERS, ("transformers", "trl", "accelerate"), runs=3, description=__doc__)
