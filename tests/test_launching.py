"""Trainings in two processes that torchrun starts, on the CPU with gloo, beside the same training in one process."""

import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import dagster as dg
import numpy as np
import pytest
import torch
from homes import Home, artifact
from test_execution import reward, uneven
from trainings import documents, network, setting

from model.causal_lm import CausalLM, HeldOut, PackedLoader
from model.execution import Execution, Torchrun
from model.launching import RankFailed
from model.resume import Resume
from model.token_shards import ShardWriter, StreamBlocks, TokenShards
from model.training import FitResult, Optimization, fit
from model.weights import load_llama, save_llama
from resources.errors import TampuError
from resources.recipe import ExecutionConfig, Run

torch.set_num_threads(1)

# What docs/training.md promises: relative for losses and metrics, absolute for weights after a few steps, in fp32.
LOSSES, WEIGHTS = 1e-4, 2e-5


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Whatever waits for a rank that never comes is ended."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError("the ranks did not end")

    inherited = signal.signal(signal.SIGALRM, late)
    signal.alarm(300)  # above all else they import torch, which takes long where other work has the processor
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, inherited)


def two(strategy: Any = "ddp", **changes: Any) -> Execution:
    return Execution(torchrun=Torchrun(2, strategy, timeout=60, **changes))


def language(execution: Execution | None, **arguments: Any) -> tuple[FitResult, CausalLM]:
    """A row a rank, which learn very different numbers of tokens, one of them none; with a validation."""
    module = CausalLM(network(), Optimization(1e-2, 3, 6))
    named = {"validate": HeldOut(module.model, documents(), 100), "validate_every": 4, "log_every": 2} | arguments
    return fit(module, PackedLoader(uneven(), 2, seed=0), steps=6, seed=0, execution=execution, **named), module


def compare(one: FitResult, other: FitResult) -> None:
    assert [(row["step"], row["metric"]) for row in one.rows] == [(row["step"], row["metric"]) for row in other.rows]
    np.testing.assert_allclose([row["value"] for row in other.rows], [row["value"] for row in one.rows], rtol=LOSSES, atol=1e-7)


def compare_weights(one: torch.nn.Module, other: torch.nn.Module) -> None:
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], tensor, rtol=1e-3, atol=WEIGHTS)


def alive(folder: Path) -> list[str]:
    """Command lines of processes that work for a job below `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line:
            found.append(line)
    return found


class Training(dg.Config):
    """As assets that train have it."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ExecutionConfig.NOT_IDENTITY
    execution: ExecutionConfig = ExecutionConfig()


@artifact("sft/model")
def trained(run: Run, config: Training) -> None:
    """A training as an asset does it."""
    execution, resume = run.execution(config.execution), run.resume(config.execution)
    module = CausalLM(network(), Optimization(1e-2, 3, 6))
    writer = ShardWriter(run.home, "stream", 40, shard_tokens=50)
    writer.write(np.arange(120) % 36 + 3, np.array([120]))
    writer.close()
    result = fit(
        module,
        PackedLoader(uneven(), 2, seed=0),
        validate=HeldOut(module.model, StreamBlocks(TokenShards(run.home, "stream"), 16), 100),
        validate_every=3,
        steps=6,
        seed=0,
        log_every=2,
        progress=run.label,
        checkpoints_at=[2],
        on_checkpoint=lambda step: save_llama(module.model, run.directory, name="early"),
        resume=resume,
        execution=execution,
    )
    save_llama(module.model, run.directory)
    if config.execution.save_every_steps:
        state = torch.load(max(resume.folder.glob("state-*.pt")), weights_only=True)
        equal = [torch.equal(state["state_dict"][name], tensor) for name, tensor in module.state_dict().items()]
        run.metric("gathered", state["step"] if all(equal) else -1)
    run.rows("training_metrics", result.rows)


def test_an_asset_trained_by_two_processes_that_share_the_weights_is_that_of_one(tmp_path: Path) -> None:
    alone, together = Home(tmp_path / "alone"), Home(tmp_path / "together")
    alone.make(trained)
    execution = {"launcher": "torchrun", "processes": 2, "strategy": "fsdp2", "save_every_steps": 3}
    config = {"sft/model": {"execution": execution}}
    result = together.make(trained, config=config)
    one, other = alone.current("sft/model"), together.current("sft/model")
    assert one.key == other.key
    first, second = (found.frame("rows/training_metrics.parquet") for found in (one, other))
    assert first.drop("value").equals(second.drop("value")) and first.height > 9
    np.testing.assert_allclose(second["value"], first["value"], rtol=LOSSES, atol=1e-7)
    for name in ("early", "model"):
        compare_weights(load_llama(one.path, name=name), load_llama(other.path, name=name))
    assert other.manifest["config"]["execution"]["processes"] == 2
    assert other.manifest["notes"]["torchrun"].startswith("2 processes (fsdp2, gloo, cpu), ")
    said = [entry.user_message for entry in together.instance.all_logs(result.run_id)]
    assert sum(line.startswith("sft/model: step ") for line in said) == 6
    assert any(line.startswith("sft/model: step 6/6, loss ") for line in said)
    assert other.metrics["gathered"] == 6  # weights consolidated from shards are the bits of those gathered for the last state
    assert not list((together.store.root / "resume").rglob("*.pt"))


def test_reward_models_are_trained_by_two_processes_to_the_same_losses() -> None:
    (one, whole), (other, split) = reward(1), reward(1, ranks=Torchrun(2, timeout=60))
    compare(one, other)
    compare_weights(whole, split)


def test_ranks_that_fail_are_named_and_any_number_of_processes_goes_on_from_their_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error at step 3 with sharded weights, SIGKILL at step 5 with whole ones, and the rest in one process."""
    (one, whole), folder, said = language(None), tmp_path / "states", list[str]()
    for strategy, fault, told, saved in (
        ("fsdp2", "raise:1:3", r"^rank 1 of 2 failed: ValueError: this rank can read no more$", 2),
        ("ddp", "kill:1:3", r"^rank 1 of 2 was ended by SIGKILL$", 4),
    ):
        monkeypatch.setenv("FAULT", fault)
        with pytest.raises(RankFailed, match=told):
            language(two(strategy, worker="faulty_rank"), resume=Resume(folder, every_steps=1, every_minutes=None))
        assert max(path.name for path in folder.iterdir()).startswith(f"state-{saved:09}-")
        assert not list(folder.glob("job-*")) and not alive(folder)
    other, last = language(None, resume=Resume(folder, every_minutes=None, say=said.append))
    assert said == [f"the training goes on after step 4, from {folder} (processes 2 then and 1 now: the last digits may differ)"]
    compare(one, other)
    compare_weights(whole, last)


def test_what_ranks_can_not_do_is_refused_before_they_start() -> None:
    module, loader, arguments = setting("ppo")
    with pytest.raises(ValueError, match=r"base models, fine-tunes and reward models, and no PPO; set execution\.launcher to 'in process'"):
        fit(module, loader, steps=6, seed=0, execution=two(), **arguments)
    with pytest.raises(ValueError, match=r"'fsdp2' can not train reward models: .*; set execution\.strategy to 'ddp', or set execution\.launch"):
        reward(1, ranks=Torchrun(2, "fsdp2"))
    with pytest.raises(ValueError, match="a batch of 2 rows can not be divided among 2 processes that read it in 2 parts each"):
        language(Execution(accumulate=2, torchrun=Torchrun(2)))
    with pytest.raises(ValueError, match="can not hand this validation"):
        language(two(), validate=lambda: {"always": 1.0})
    for torchrun, fault in (({"processes": 0}, "processes is 0"), ({"processes": 2, "strategy": "tp"}, "strategy is 'tp'; .* ddp, fsdp2")):
        with pytest.raises(ValueError, match=fault):
            Torchrun(**torchrun)  # type: ignore[arg-type]


def test_processes_that_no_launcher_starts_and_a_number_that_nobody_gives_are_refused(tmp_path: Path) -> None:
    home = Home(tmp_path)
    for given, fault in (
        ({"processes": 2}, "execution.processes is 2, and execution.launcher is 'in process': set it to 'torchrun'"),
        ({"launcher": "torchrun"}, "torchrun starts one process a GPU, and there is none here: set execution.processes"),
    ):
        with pytest.raises(TampuError, match=fault):
            home.make(trained, config={"sft/model": {"execution": given}})
