"""Small trainings of every kind for tests of resuming, which processes can run, be killed in, and run again."""

import hashlib
import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule

from model import resume as resuming
from model import rollouts
from model.causal_lm import CausalLM, PackedLoader
from model.llama import Llama, LlamaConfig
from model.packing import Packed, blocks
from model.ppo import PPO, PPOConfig
from model.resume import Resume
from model.reward import RewardModel
from model.reward_training import Comparison, ComparisonLoader, Labelled, RewardTraining, reward_optimization
from model.rollouts import Critic, Prompt, PromptLoader
from model.training import FitResult, Optimization, fit

CONFIG = LlamaConfig(vocab_size=40, dim=16, layers=1, heads=2, kv_heads=1, multiple_of=16, max_context=32)
STEPS = {"noisy": 12, "reward": 8, "ppo": 6}


class NoisyLM(CausalLM):
    """Next-token training that draws from torch's generator in every step, as dropout does."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Any]:
        result = super().training_step(batch, batch_idx)
        return result | {"loss": result["loss"] * (1 + 0.1 * torch.rand(()))}


def network() -> Llama:
    model = Llama(CONFIG)
    model.init_weights(torch.Generator().manual_seed(0))
    return model


def documents() -> Packed:
    random = np.random.default_rng(0)
    return blocks(np.array([token for _ in range(9) for token in [1, *random.integers(3, 40, 9).tolist(), 2]]), 16)


def comparisons() -> list[Comparison]:
    random = np.random.default_rng(0)

    def dialogue() -> list[int]:
        return [1, *random.integers(3, 40, random.integers(1, 10)).tolist(), 2]

    return [Comparison(dialogue(), dialogue(), "better", False, bool(i % 2)) for i in range(10)]


def scores(prompts: list[list[int]], answers: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Higher ids are more helpful, and all answers are safe."""
    return np.array([np.mean(answer) / 10 for answer in answers], dtype=np.float32), np.full(len(answers), 4.0, dtype=np.float32)


def sharpness(policy: Llama) -> dict[str, float]:
    """A number that has its best somewhere within the run."""
    return {"selection": -abs(float(policy.trunk.embedding.weight.std()) - 0.0247)}


def setting(kind: str) -> tuple[LightningModule, Any, dict[str, Any]]:
    """Module, loader and the arguments of `fit` for a training."""
    if kind == "noisy":
        module = NoisyLM(network(), Optimization(1e-2, 3, STEPS[kind]))
        return module, PackedLoader(documents(), 4, seed=0), {"precision": "bf16", "validate_every": 5, "log_every": 4}
    if kind == "reward":
        labelled = [Labelled([1, i, 2], bool(i % 2)) for i in range(3, 10)]
        loader = ComparisonLoader(comparisons(), 4, seed=0, margin="small", labelled=labelled)
        return RewardTraining(RewardModel.from_llama(network()), reward_optimization(1e-2, STEPS[kind]), safety_weight=1.0), loader, {}
    policy = network()
    prompts = [Prompt([1, *range(3, 4 + i % 5)], False) for i in range(12)]
    config = PPOConfig(samples_per_iteration=8, minibatch=4, max_new_tokens=5)
    optimization = Optimization(5e-3, 0, STEPS[kind], schedule="constant")
    critic = Critic.from_reward(RewardModel.from_llama(policy))
    module = PPO(policy, critic, prompts, scores, optimization, config=config, validate=sharpness, seed=0, eos_id=2)
    return module, PromptLoader(prompts, 8, seed=0), {"validate": module.validate, "validate_every": 2, "validate_first": True, "log_every": 3}


def train(kind: str, resume: Resume | None = None, during: Callable[[int], None] | None = None, **changes: Any) -> dict[str, Any]:
    """What a training leaves: a hash of its weights, its rows, and the calls of its checkpoint hook; `during(step)` runs in each step."""
    module, loader, arguments = setting(kind)
    calls: list[tuple[int, str]] = []
    if "patience" in changes:
        module.patience = changes.pop("patience")  # type: ignore[assignment]
    if kind == "noisy":
        arguments["validate"] = lambda: {"weight": float(module.model.trunk.embedding.weight.double().sum())}
    if during is not None:
        steps = iter(range(int(changes.pop("first", 1)), 1000))
        ordinary = module.training_step

        def step(*arguments: Any) -> Any:
            during(next(steps))
            return ordinary(*arguments)

        module.training_step = step  # type: ignore[method-assign]
    result: FitResult = fit(
        module,
        loader,
        **{"steps": STEPS[kind], "seed": 0, "resume": resume} | arguments | changes,
        checkpoints_at=[2, 7],
        on_checkpoint=lambda step: calls.append((step, weights(module))),
    )
    return {"weights": weights(module), "rows": result.rows, "calls": calls, "steps": result.steps, "tokens": result.tokens}


def weights(module: torch.nn.Module) -> str:
    """SHA-256 of all weights."""
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in module.state_dict().values())).hexdigest()


# In other processes

FAULTS = (  # in a save
    "half a file",
    "before the flush",
    "before the check",
    "before the name",
    "after the name",
    "before the old goes",
    "after the old went",
)
PHASES = ("sampling", "scoring", "updating")  # of an iteration of PPO


def kill() -> None:
    """End this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def break_saving(fault: str, save: int) -> None:
    """Kill this process at a point of its save number `save`."""
    saves = iter(range(1, 1000))
    now = [0]
    real = {"save": torch.save, "fsync": os.fsync, "replace": os.replace, "forget": resuming.States.forget_old, "hash": resuming._sha256}

    def saving(content: Any, file: Any) -> None:
        now[0] = next(saves)
        if fault == "half a file" and now[0] == save:
            file.write(b"half of it" * 99)
            file.flush()
            kill()
        real["save"](content, file)

    def point(name: str, function: str, *, after: bool = False) -> Callable[..., Any]:
        def called(*arguments: Any) -> Any:
            due = fault == name and now[0] == save
            if due and not after:
                kill()
            result = real[function](*arguments)
            if due:
                kill()
            return result

        return called

    torch.save = saving
    os.fsync = point("before the flush", "fsync")
    resuming._sha256 = point("before the check", "hash")
    os.replace = point("after the name", "replace", after=True) if fault == "after the name" else point("before the name", "replace")
    late = fault == "after the old went"
    resuming.States.forget_old = point(fault if late else "before the old goes", "forget", after=late)  # type: ignore[method-assign]


def break_ppo(phase: str, call: int) -> None:
    """Kill this process in the middle of a phase of PPO, when it is entered for the `call`-th time; an iteration has two updates."""
    calls = iter(range(1, 1000))

    def broken(function: Callable[..., Any], *, when_done: bool) -> Callable[..., Any]:
        def called(*arguments: Any, **named: Any) -> Any:
            due = next(calls) == call
            if due and not when_done:
                kill()
            result = function(*arguments, **named)
            if due:
                kill()
            return result

        return called

    global scores
    if phase == "sampling":
        rollouts.generate = broken(rollouts.generate, when_done=True)  # type: ignore[attr-defined]
    elif phase == "scoring":
        scores = broken(scores, when_done=False)
    else:
        PPO.manual_backward = broken(PPO.manual_backward, when_done=True)  # type: ignore[method-assign]


def fill_disk(until: int) -> Callable[[int], None]:
    """Let no file grow beyond 8 KB from step 3 to the beginning of step `until`."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def during(step: int) -> None:
        if step in (3, until):
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192 if step == 3 else hard, hard))

    return during


def _child(kind: str, folder: Path, every: int | None, fault: tuple[str, int] | None, output: Path) -> None:
    torch.set_num_threads(1)
    sys.stderr = (output.parent / "said").open("a")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # whatever the tests before this one left
    during = None
    if fault is not None and fault[0] in FAULTS:
        break_saving(*fault)
    elif fault is not None and fault[0] in PHASES:
        break_ppo(*fault)
    elif fault is not None and fault[0] == "full disk":
        during = fill_disk(fault[1])
    elif fault is not None:
        number = {"kill": signal.SIGKILL, "terminate": signal.SIGTERM}[fault[0]]
        done = max((int(path.name.split("-")[1]) for path in folder.glob("state-*.pt")), default=0)

        def during(step: int) -> None:
            if done + step == fault[1]:
                os.kill(os.getpid(), number)

    result = train(kind, Resume(folder, every_steps=every, every_minutes=None), during)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.getrlimit(resource.RLIMIT_FSIZE)[1],) * 2)
    output.write_text(json.dumps(result))


def start(function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """Run a function of this module in another process, which has the imports of this module already."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["trainings"])
    child = server.Process(target=function, args=arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the server of Python 3.11 finds no module without it, and says nothing
        child.start()
    return child


def process(kind: str, folder: Path, *, every: int | None, fault: tuple[str, int] | None = None) -> tuple[int, dict[str, Any] | None, str]:
    """Train in another process, which may be killed: its exit code, what it left, and what it said."""
    output = folder.parent / "result.json"
    (folder.parent / "said").unlink(missing_ok=True)
    child = start(_child, kind, folder, every, fault, output)
    child.join()
    result = json.loads(output.read_text()) if output.exists() else None
    output.unlink(missing_ok=True)
    assert child.exitcode is not None
    return child.exitcode, result, (folder.parent / "said").read_text()


def _rank(rank: int, folder: Path, batches: list[dict[str, Any]]) -> None:
    """Gradients of one data-parallel rank, which reads one part of the batch."""
    torch.set_num_threads(1)
    address = f"file://{folder / 'address'}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=len(batches))

    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = CausalLM(network(), Optimization(1e-2, 3, 6))

        def forward(self, batch: dict[str, Any]) -> torch.Tensor:
            return self.inner.training_step(batch, 0)["loss"]

    loss = torch.nn.parallel.DistributedDataParallel(Loss())
    loss(batches[rank]).backward()
    torch.save([parameter.grad for parameter in loss.parameters()], folder / f"{rank}.pt")
    torch.distributed.barrier()  # no rank takes the common file away while the other reads it
    torch.distributed.destroy_process_group()


def rank_gradients(folder: Path, batches: list[dict[str, Any]]) -> list[list[torch.Tensor]]:
    """The gradients that each of several ranks has after averaging, each having read one of the batches."""
    ranks = [start(_rank, rank, folder, batches) for rank in range(len(batches))]
    for process_ in ranks:
        process_.join(60)
        process_.kill()  # one that waits for a rank that is gone; without its file the test fails
        assert process_.exitcode == 0
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(len(batches))]
