"""An interrupted training ends as an uninterrupted one: killed anywhere, terminated, with damaged states, in a Dagster run."""

import functools
import json
import random
import signal
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import dagster as dg
import pytest
import torch
from homes import Home, artifact
from trainings import FAULTS, PHASES, STEPS, documents, process, setting, train

from model.causal_lm import PackedLoader
from model.execution import Execution
from model.resume import KEPT, Resume, settings_of
from model.shuffling import Shuffled
from resources.recipe import ExecutionConfig, Run

torch.set_num_threads(1)


@functools.cache
def uninterrupted(kind: str) -> dict[str, Any]:
    """What the training leaves when nothing happens."""
    return json.loads(json.dumps(train(kind)))


def same(result: dict[str, Any] | None, kind: str) -> bool:
    return json.loads(json.dumps(result)) == uninterrupted(kind)


def states(folder: Path) -> list[int]:
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("state-*.pt"))


# The position in the data


@pytest.mark.parametrize("kind", STEPS)
def test_a_loader_that_begins_later_gives_what_it_would_have_given(kind: str) -> None:
    _, loader, _ = setting(kind)
    stream = iter(loader)
    for start in range(9):
        one, other = next(stream), next(loader.batches(start))
        assert one.keys() == other.keys()
        for name in one:
            assert str(one[name]) == str(other[name])


def test_skipping_draws_orders_and_reads_nothing() -> None:
    for count, skip in ((10, 0), (10, 7), (10, 25), (3, 30)):
        assert Shuffled(count, 5, skip=skip).take(12).tolist() == Shuffled(count, 5).take(skip + 12)[skip:].tolist()
    with pytest.raises(ValueError, match="there are none"):
        Shuffled(0, 5).take(1)


# Killed


@pytest.mark.parametrize("kind", STEPS)
def test_a_training_that_is_killed_again_and_again_ends_as_if_it_was_not(kind: str, tmp_path: Path) -> None:
    chance, step = random.Random(kind), 0
    while (step := step + chance.randint(1, 3)) < STEPS[kind]:
        code, result, _ = process(kind, tmp_path / "states", every=1 if kind == "ppo" else 2, fault=("kill", step))
        assert (code, result) == (-signal.SIGKILL, None)
    code, result, said = process(kind, tmp_path / "states", every=2)
    assert code == 0 and "the training goes on after step" in said
    assert same(result, kind)


@pytest.mark.parametrize("save", [1, 4])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_kill_in_any_phase_of_a_save_leaves_an_intact_state_or_none(fault: str, save: int, tmp_path: Path) -> None:
    """Saves of this training: step 1, a checkpoint at 2, step 2, step 3, …: the fourth is that of step 3."""
    folder = tmp_path / "states"
    code, _, _ = process("noisy", folder, every=1, fault=(fault, save))
    assert code == -signal.SIGKILL
    written = fault in FAULTS[4:]
    newest = {(1, False): [], (1, True): [1], (4, False): [2], (4, True): [3]}[save, written]
    assert states(folder)[-1:] == newest
    code, result, said = process("noisy", folder, every=5)
    assert code == 0 and same(result, "noisy")
    assert ("goes on after step" in said) == bool(newest) and "damaged" not in said
    assert not list(folder.glob(".*"))


@pytest.mark.parametrize("phase", PHASES)
def test_ppo_is_killed_in_the_middle_of_each_phase_and_ends_as_if_it_was_not(phase: str, tmp_path: Path) -> None:
    """Within an iteration: answers are sampled and scored once, and each of two minibatches has a backward pass for policy and critic."""
    folder = tmp_path / "states"
    for iteration, done in ((1, []), (3, [1, 2]), (1, [1, 2]), (2, [2, 3])):
        code, result, _ = process("ppo", folder, every=1, fault=(phase, 4 * iteration - 1 if phase == "updating" else iteration))
        assert (code, result, states(folder)) == (-signal.SIGKILL, None, done)
    code, result, said = process("ppo", folder, every=2)
    assert code == 0 and "the training goes on after step 3" in said
    assert same(result, "ppo")


# Told to end


def test_sigterm_saves_after_the_step_and_exits_with_143(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    code, result, said = process("noisy", folder, every=None, fault=("terminate", 5))
    assert (code, result, states(folder)) == (143, None, [5])
    assert said == "told to end by SIGTERM: the training is saved up to step 5 and can go on there\n"
    code, result, _ = process("noisy", folder, every=None)
    assert code == 0 and same(result, "noisy")


def test_a_signal_in_the_last_step_keeps_the_finished_training(tmp_path: Path) -> None:
    for kind in ("noisy", "ppo"):
        folder = tmp_path / kind / "states"
        folder.parent.mkdir()
        assert process(kind, folder, every=None, fault=("terminate", STEPS[kind]))[0] == 143
        assert states(folder) == [STEPS[kind]]
        assert same(process(kind, folder, every=None)[1], kind)


def test_ctrl_c_saves_and_stays_a_keyboard_interrupt_and_a_second_one_ends_at_once(tmp_path: Path) -> None:
    times = {4: 1, 7: 2}

    def interrupt(step: int) -> None:
        for _ in range(times.get(step, 0)):
            signal.raise_signal(signal.SIGINT)

    inherited = signal.getsignal(signal.SIGINT)  # ignored where a shell started the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    resume = Resume(tmp_path, every_minutes=None, say=lambda line: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            train("noisy", resume, interrupt)
        assert states(tmp_path) == [4] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        with pytest.raises(KeyboardInterrupt):
            train("noisy", resume, interrupt, first=5)
        assert states(tmp_path) == [4] and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert same(train("noisy", resume), "noisy")


def test_a_run_that_stopped_by_itself_is_not_trained_further(tmp_path: Path) -> None:
    def stopping(resume: Resume | None) -> dict[str, Any]:
        return train("ppo", resume, patience=1, validate_every=1)

    expected = stopping(None)
    assert expected["steps"] < STEPS["ppo"]
    resume = Resume(tmp_path, every_steps=1, say=lambda line: None)
    assert stopping(resume) == expected
    assert states(tmp_path)[-1] == expected["steps"]
    assert stopping(resume) == expected


# How often, and under what


@pytest.mark.parametrize("often", [{"every_steps": 1}, {"every_steps": 5, "every_minutes": None}, {"every_minutes": 1e-9}, {}])
@pytest.mark.parametrize("kind", STEPS)
def test_how_often_a_state_is_saved_changes_nothing(kind: str, often: dict[str, Any], tmp_path: Path) -> None:
    assert same(train(kind, Resume(tmp_path, **often)), kind)
    saved = {1: [STEPS[kind] - 1, STEPS[kind]], 5: list(range(5, STEPS[kind] + 1, 5))}.get(often.get("every_steps", 1 if often else 0), [])
    assert states(tmp_path) == saved


def test_the_newest_states_are_kept_and_no_more(tmp_path: Path) -> None:
    train("noisy", Resume(tmp_path, every_steps=1))
    assert states(tmp_path) == list(range(STEPS["noisy"] + 1))[-KEPT:]
    assert len(list(tmp_path.glob("checkpoint-*.pt"))) == 2


def test_impossible_frequencies_are_refused(tmp_path: Path) -> None:
    for name in ("every_steps", "every_minutes"):
        with pytest.raises(ValueError, match=f"{name} is 0; it must be positive"):
            Resume(tmp_path, **{name: 0})


def test_another_config_is_refused_by_the_keys_that_differ_and_other_log_lines_are_not(tmp_path: Path) -> None:
    resume = Resume(tmp_path, every_steps=5, config={"data": "a1", "shape": [2, 3]}, say=lambda line: None)
    train("noisy", resume)
    with pytest.raises(ValueError, match=r"another training: data was 'a1' and is 'b2'; more was '\(none\)' and is 1; seed was 0 and is 1\. "):
        train("noisy", Resume(tmp_path, config={"data": "b2", "shape": [2, 3], "more": 1}), seed=1)
    with pytest.raises(ValueError, match="precision was 'bf16' and is 'fp32'"):
        train("noisy", resume, precision="fp32")
    with pytest.raises(ValueError, match=r"loader\.margin was .*module was"):
        train("reward", resume, steps=12)
    with pytest.raises(ValueError, match=r"accumulate was 1 and is 2\. Train with that, or in another folder"):
        train("noisy", resume, execution=Execution(accumulate=2))
    assert train("noisy", resume, log_every=3)["weights"] == uninterrupted("noisy")["weights"]


def test_optimizations_loaders_networks_and_options_are_part_of_the_config(tmp_path: Path) -> None:
    train("ppo", Resume(tmp_path, every_steps=1, say=lambda line: None), steps=2)
    settings = torch.load(next(tmp_path.glob("state-*.pt")), weights_only=True)["settings"]
    expected = {
        "optimization.learning_rate": 5e-3,
        "optimization.betas": [0.9, 0.95],
        "loader.samples_per_iteration": 8,
        "module.config.kl_coefficient": 0.01,
        "module.guards.max_kl": None,
        "module.critic_optimization.schedule": "constant",
        "module.policy.config.dim": 16,
        "module.prompts": "12 items",
    }
    assert {name: settings[name] for name in expected} == expected
    assert settings_of(loader=PackedLoader(documents(), 4, seed=0))["loader.packed.tokens"] == f"int32 {list(documents().tokens.shape)}"


# Damage


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_state_is_named_in_one_line_and_the_one_before_is_taken(tmp_path: Path) -> None:
    said: list[str] = []
    resume = Resume(tmp_path, every_steps=4, say=said.append)
    train("noisy", resume)
    newest = max(tmp_path.glob("state-*.pt"))
    damage(newest)
    assert same(train("noisy", resume), "noisy")
    assert len(said) == 2 and said[0].startswith(f"the saved training {newest} is damaged: its hash")
    assert said[1].startswith("the training goes on after step 8,")
    for path in tmp_path.glob("state-*.pt"):
        damage(path)
    said.clear()
    assert same(train("noisy", resume), "noisy")
    assert len(said) == 2 and all("is damaged" in line for line in said)


def test_a_state_whose_checkpoint_is_damaged_or_gone_is_not_taken(tmp_path: Path) -> None:
    said: list[str] = []
    resume = Resume(tmp_path, every_steps=6, say=said.append)
    train("noisy", resume)
    damage(max(tmp_path.glob("checkpoint-*.pt")))
    assert same(train("noisy", resume), "noisy")
    assert "checkpoint-000000007" in said[0] and said[1].startswith("the training goes on after step 6,")
    for path in tmp_path.glob("checkpoint-*.pt"):
        path.unlink()
    said.clear()
    assert same(train("noisy", resume), "noisy")
    assert len(said) == 2 and all("is missing" in line for line in said)


def test_a_full_disk_is_said_and_the_training_continues(tmp_path: Path) -> None:
    """Full from step 3 to 6, the state of step 5 is lost; to 9, also the checkpoint of step 7, without which no later state is any good."""
    folder = tmp_path / "short" / "states"
    folder.parent.mkdir()
    code, result, said = process("noisy", folder, every=5, fault=("full disk", 6))
    assert code == 0 and same(result, "noisy") and states(folder) == [10]
    assert said.count("\n") == 1 and said.startswith(f"the state of step 5 could not be saved in {folder} (") and "File too large" in said
    assert same(process("noisy", folder, every=5)[1], "noisy")
    folder = tmp_path / "long" / "states"
    folder.parent.mkdir()
    code, result, said = process("noisy", folder, every=5, fault=("full disk", 9))
    assert code == 0 and same(result, "noisy") and states(folder) == []
    assert said.splitlines()[1].startswith(f"the checkpoint of step 7 could not be saved in {folder} (")
    assert same(process("noisy", folder, every=5)[1], "noisy")


def test_a_failing_step_leaves_the_handlers_of_signals_as_they_were(tmp_path: Path) -> None:
    def fail(step: int) -> None:
        raise RuntimeError("the machine hiccuped")

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.raises(RuntimeError, match="hiccuped"):
        train("noisy", Resume(tmp_path), fail)
    assert {number: signal.getsignal(number) for number in before} == before


def test_other_threads_than_before_are_mentioned(tmp_path: Path) -> None:
    said: list[str] = []
    train("noisy", Resume(tmp_path, every_steps=5))
    train("noisy", Resume(tmp_path, say=said.append), threads=2)
    assert said[0].endswith("(threads 1 then and 2 now: the last digits may differ)")


# In Dagster


class Training(dg.Config):
    """A config as the trainings have."""

    NOT_IDENTITY: ClassVar[tuple[str, ...]] = ExecutionConfig.NOT_IDENTITY
    seed: int = 0
    execution: ExecutionConfig = ExecutionConfig()


INTERRUPT: dict[int, BaseException | int] = {}
TRAINED: list[int] = []


def train_in_run(run: Run, config: Training) -> None:
    """A training whose steps may be interrupted."""

    def during(step: int) -> None:
        TRAINED.append(step)
        fault = INTERRUPT.pop(len(TRAINED), None)
        if isinstance(fault, BaseException):
            raise fault
        if fault is not None:
            signal.raise_signal(fault)

    result = train("noisy", run.resume(config.execution), during, seed=config.seed, execution=run.execution(config.execution))
    run.write_json("model.json", result)
    run.rows("training_metrics", result["rows"])


@artifact("sft/model")
def trained(run: Run, config: Training) -> None:
    """A model."""
    train_in_run(run, config)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    INTERRUPT.clear()
    TRAINED.clear()
    return Home(tmp_path / "home")


def made(home: Home, execution: Mapping[str, Any] = MappingProxyType({}), **changes: Any) -> dg.ExecuteInProcessResult:
    return home.make(trained, config={"sft/model": {"execution": {"save_every_steps": 3, **execution}, **changes}})


def version_of_an_uninterrupted_run(tmp_path: Path) -> str:
    other = Home(tmp_path / "other")
    made(other)
    return other.current("sft/model").data_version


@pytest.mark.parametrize("fault", [RuntimeError("the machine hiccuped"), KeyboardInterrupt(), signal.SIGTERM])
def test_an_interrupted_materialization_goes_on_and_leaves_the_same_artifact(
    fault: BaseException | int, home: Home, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    INTERRUPT[8] = fault
    with pytest.raises((RuntimeError, KeyboardInterrupt, dg.DagsterExecutionInterruptedError)):
        made(home)
    (folder,) = (home.store.root / "resume/sft/model").iterdir()
    last = 8 if fault == signal.SIGTERM else 6
    assert states(folder)[-1] == last and home.store.everything() == []
    TRAINED.clear()
    made(home)
    assert len(TRAINED) == STEPS["noisy"] - last
    assert f"the training goes on after step {last}, from {folder}" in capfd.readouterr().err
    assert home.current("sft/model").key == folder.name and not (home.store.root / "resume").exists()
    assert home.current("sft/model").data_version == version_of_an_uninterrupted_run(tmp_path)


def test_another_config_starts_anew_and_leaves_the_states_of_the_first_alone(home: Home) -> None:
    INTERRUPT[8] = RuntimeError("the machine hiccuped")
    with pytest.raises(RuntimeError):
        made(home)
    TRAINED.clear()
    made(home, seed=1)
    assert len(TRAINED) == STEPS["noisy"]
    TRAINED.clear()
    made(home)
    assert len(TRAINED) == STEPS["noisy"] - 6


def test_how_often_states_are_saved_and_how_activations_are_kept_are_no_part_of_the_identity(home: Home) -> None:
    INTERRUPT[8] = RuntimeError("the machine hiccuped")
    with pytest.raises(RuntimeError):
        made(home)
    TRAINED.clear()
    made(home, {"save_every_steps": None, "save_every_minutes": 5.0, "activation_checkpointing": True})
    assert len(TRAINED) == STEPS["noisy"] - 6
    version = home.current("sft/model").data_version
    TRAINED.clear()
    made(home, {"save_every_steps": 1, "save_every_minutes": None})
    assert TRAINED == []
    home.make(trained, config={"sft/model": {"execution": {"save_every_steps": 1}}}, force=True)
    assert (len(TRAINED), home.current("sft/model").data_version) == (STEPS["noisy"], version)
    made(home, {"accumulate": 2})
    assert len(home.store.everything()) == 2


def test_a_forced_run_does_not_go_on_from_an_older_one(home: Home) -> None:
    INTERRUPT[8] = RuntimeError("the machine hiccuped")
    with pytest.raises(RuntimeError):
        made(home)
    TRAINED.clear()
    home.make(trained, force=True)
    assert len(TRAINED) == STEPS["noisy"] and not (home.store.root / "resume").exists()


def test_a_retry_within_a_run_goes_on(home: Home) -> None:
    @artifact("sft/model", retry_policy=dg.RetryPolicy(max_retries=1))
    def retried(run: Run, config: Training) -> None:
        """The same, tried twice."""
        train_in_run(run, config)

    INTERRUPT[8] = RuntimeError("the machine hiccuped")
    home.make(retried, config={"sft/model": {"execution": {"save_every_steps": 3}}}, force=True)
    assert len(TRAINED) == 8 + STEPS["noisy"] - 6
    assert home.current("sft/model").json("model.json")["weights"] == uninterrupted("noisy")["weights"]
