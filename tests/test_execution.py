"""How a training is run: in parts, with recomputation, compiled, watched; each against the plain way."""

import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from trainings import CONFIG, comparisons, documents, network, rank_gradients, setting, train, weights

from model import causal_lm
from model.causal_lm import CHUNK, CausalLM, PackedLoader, next_token_loss
from model.execution import Execution, Torchrun, tensorboard_logger
from model.flops import PEAKS, flops_per_token, peak_flops
from model.llama import Llama, LlamaConfig
from model.packing import Packed
from model.resume import Resume
from model.reward import RewardModel
from model.reward_training import ComparisonLoader, Labelled, RewardTraining, reward_optimization
from model.training import FitResult, Optimization, fit

torch.set_num_threads(1)


def uneven() -> Packed:
    """Rows that learn very different numbers of tokens, one of them none."""
    packed = documents()
    learn = packed.learn & (np.random.default_rng(0).random(packed.learn.shape) < np.linspace(0.05, 1, len(packed))[:, None])
    learn[0] = False
    return Packed(packed.tokens, learn, packed.segments)


def language(parts: int, **arguments: Any) -> tuple[FitResult, torch.nn.Module]:
    module = CausalLM(network(), Optimization(1e-2, 3, 6))
    loader = PackedLoader(uneven(), 6, seed=0)
    return fit(module, loader, steps=6, seed=0, log_every=2, execution=Execution(accumulate=parts), **arguments), module


def reward(parts: int, ranks: Torchrun | None = None, **arguments: Any) -> tuple[FitResult, torch.nn.Module]:
    module = RewardTraining(RewardModel.from_llama(network()), reward_optimization(1e-2, 6), safety_weight=1.0)
    labelled = [Labelled([1, i, 2], bool(i % 2)) for i in range(3, 10)]
    pairs = [*comparisons()[:9], comparisons()[9].__class__([1, 4, 5, 2], [1, 6, 2], "better")]
    loader = ComparisonLoader(pairs, 6, seed=0, margin="small", labelled=labelled)
    return fit(module, loader, steps=6, seed=0, log_every=2, execution=Execution(accumulate=parts, torchrun=ranks), **arguments), module


# In parts


@pytest.mark.parametrize("parts", [2, 3, 4, 6])
@pytest.mark.parametrize("run", [language, reward])
def test_any_split_of_a_batch_gives_the_update_of_the_whole(run: Any, parts: int) -> None:
    (one, whole), (other, split) = run(1), run(parts)
    assert [(row["step"], row["metric"]) for row in one.rows] == [(row["step"], row["metric"]) for row in other.rows]
    np.testing.assert_allclose([row["value"] for row in other.rows], [row["value"] for row in one.rows], rtol=1e-4, atol=1e-7)
    assert one.steps == other.steps
    if run is language:  # neighbours among comparisons share tokens, so that a split can read some twice
        assert one.tokens == other.tokens
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(split.state_dict()[name], tensor, rtol=1e-3, atol=2e-5)


def test_parts_that_were_averaged_alike_would_give_another_update() -> None:
    """The comparison above can see the difference that it is about."""
    loader = PackedLoader(uneven(), 6, seed=0)
    whole, parts = next(loader.batches()), loader.batches(0, 3)
    model = network()
    loss, learned = next_token_loss(model, whole["tokens"], whole["learn"], whole["segments"])
    some = [next(parts) for _ in range(3)]
    weighted = [CausalLM(model, Optimization(1e-2, 3, 6)).training_step(part, 0) for part in some]
    assert sum(part["loss"].item() for part in weighted) / 3 == pytest.approx(loss.item(), rel=1e-6)
    assert {part["metrics"]["learned_tokens"] for part in weighted} == {learned}
    plain = [next_token_loss(model, part["tokens"], part["learn"], part["segments"])[1] for part in some]
    assert max(plain) > 1.5 * min(plain) and sum(plain) == learned


def test_data_parallel_ranks_that_read_a_part_each_have_the_gradient_of_the_whole(tmp_path: Path) -> None:
    loader = PackedLoader(uneven(), 6, seed=0)
    stream = loader.batches(0, 3)
    parts = [next(stream) for _ in range(3)]
    assert len({int(part["learn"].sum()) for part in parts}) == 3
    module = CausalLM(network(), Optimization(1e-2, 3, 6))
    module.training_step(next(loader.batches()), 0)["loss"].backward()
    for gradients in rank_gradients(tmp_path, parts):
        for gradient, parameter in zip(gradients, module.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-7)


def test_a_part_that_learns_nothing_counts_nothing_and_a_batch_that_does_is_refused() -> None:
    model, packed = network(), documents()
    silent = np.zeros_like(packed.learn)
    arguments = (torch.from_numpy(packed.tokens[:2].astype(np.int64)), torch.from_numpy(silent[:2]), torch.from_numpy(packed.segments[:2]))
    loss, learned = next_token_loss(model, *arguments, of=7)
    loss.backward()
    assert (loss.item(), learned) == (0.0, 0)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    with pytest.raises(ValueError, match="no token of this batch is learned"):
        next_token_loss(model, *arguments, of=0)


def test_more_parts_than_rows_and_trainings_without_parts_are_refused() -> None:
    for run, fault in ((language, "a batch of 6 rows can not be read in 7 parts"), (reward, "a batch of 6 pairs can not be read in 7 parts")):
        with pytest.raises(ValueError, match=fault):
            run(7)
    with pytest.raises(ValueError, match="PPO optimizes by hand; call fit without accumulate and compile"):
        train("ppo", execution=Execution(accumulate=2))
    with pytest.raises(ValueError, match="a list can not give its batches in parts"):
        fit(CausalLM(network(), Optimization(1e-3, 1, 5)), [], steps=5, seed=0, execution=Execution(accumulate=2))
    with pytest.raises(ValueError, match="accumulate is 0; it must be at least 1"):
        Execution(accumulate=0)


@pytest.mark.parametrize("kind", ["noisy", "reward"])
def test_a_training_in_parts_goes_on_to_the_bit(kind: str, tmp_path: Path) -> None:
    """SIGTERM comes in the first part of step 5."""

    def terminate(call: int) -> None:
        if call == 9:
            signal.raise_signal(signal.SIGTERM)

    resume, execution = Resume(tmp_path, every_steps=3, every_minutes=None, say=lambda line: None), Execution(accumulate=2)
    expected = train(kind, execution=execution)
    inherited = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as ended:
            train(kind, resume, terminate, execution=execution)
    finally:
        signal.signal(signal.SIGTERM, inherited)
    assert ended.value.code == 143
    assert sorted(path.name.split("-")[1] for path in tmp_path.glob("state-*.pt")) == ["000000003", "000000005"]
    assert train(kind, resume, execution=execution) == expected


# With less memory


@pytest.mark.parametrize("kind", ["noisy", "reward", "ppo"])
def test_activation_checkpointing_changes_no_bit(kind: str) -> None:
    plain = train(kind)
    assert train(kind, execution=Execution(activation_checkpointing=True)) == plain


def kept_bytes(loss: Any) -> int:
    """Bytes of distinct storages that the graph of `loss()` keeps for the backward pass, weights left out."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = loss()
    assert result.requires_grad
    return sum(kept.values())


def test_activation_checkpointing_keeps_less() -> None:
    model = Llama(LlamaConfig(vocab_size=40, dim=64, layers=6, heads=2, kv_heads=1, multiple_of=16, max_context=64))
    model.init_weights(torch.Generator().manual_seed(0))
    tokens = torch.randint(3, 40, (4, 64), generator=torch.Generator().manual_seed(0))
    plain = kept_bytes(lambda: model.hidden(tokens).sum())
    model.trunk.activation_checkpointing = True
    inputs_of_layers = 6 * 4 * 64 * 64 * 4
    assert inputs_of_layers <= kept_bytes(lambda: model.hidden(tokens).sum()) < 2 * inputs_of_layers < plain / 5


def test_logits_of_a_large_vocabulary_never_exist_whole() -> None:
    """The largest tensor of a step, forward and backward, is a chunk of logits; the loss and its gradients are those of whole logits."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        """The most bytes that tensors with the vocabulary as an axis, weights and their gradients left out, took at one time."""

        def __init__(self) -> None:
            super().__init__()
            self.alive: dict[int, int] = {}
            self.most = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            import weakref

            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor) and tensor.dim() == 2 and tensor.shape[1] == 32000:
                    storage = tensor.untyped_storage()
                    if storage.data_ptr() not in self.alive:
                        self.alive[storage.data_ptr()] = storage.nbytes()
                        weakref.finalize(storage, self.alive.pop, storage.data_ptr(), None)
                        self.most = max(self.most, sum(self.alive.values()))
            return result

    model = Llama(LlamaConfig(vocab_size=32000, dim=8, layers=1, heads=1, kv_heads=1, multiple_of=8, max_context=512))
    model.init_weights(torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(3, 32000, (8, 512), generator=generator)
    learn, segments = torch.ones_like(tokens, dtype=torch.bool), torch.ones_like(tokens)
    whole = 8 * 511 * 32000 * 4

    def step() -> tuple[float, list[torch.Tensor], int]:
        model.zero_grad()
        with Largest() as largest:
            loss, _ = next_token_loss(model, tokens, learn, segments)
            loss.backward()
        return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None], largest.most

    loss, gradients, most = step()
    assert CHUNK * 32000 * 4 <= most <= 4 * CHUNK * 32000 * 4 < whole
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal_lm, "MOST_LOGITS", sys.maxsize)
        plain_loss, plain_gradients, plain_most = step()
    assert plain_most > whole
    assert loss == plain_loss
    assert all(torch.equal(one, other) for one, other in zip(gradients, plain_gradients, strict=True))


# Compiled


def test_a_compiled_training_gives_the_same_weights_but_for_rounding_and_leaves_the_network_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend that calls no C++ compiler, which would take a minute: graphs are captured, differentiated and run."""
    compiled: list[torch.nn.Module] = []
    ordinary = torch.nn.Module.compile

    def compile_(layer: torch.nn.Module) -> None:
        compiled.append(layer)
        ordinary(layer, backend="aot_eager", fullgraph=True)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    losses = []
    for execution in (Execution(), Execution(compile=True), Execution(compile=True, activation_checkpointing=True)):
        module = CausalLM(network(), Optimization(1e-3, 1, 3))
        result = fit(module, PackedLoader(documents(), 4, seed=0), steps=3, seed=0, log_every=1, execution=execution)
        losses.append([row["value"] for row in result.rows if row["metric"] == "train_loss"])
        layers = list(module.model.trunk.layers)
        assert compiled[-CONFIG.layers :] == layers if execution.compile else not compiled
        assert all(layer._compiled_call_impl is None for layer in layers)
    np.testing.assert_allclose(losses[1:], [losses[0]] * 2, rtol=1e-5)


def test_a_module_without_layers_of_ours_is_refused() -> None:
    module = CausalLM(network(), Optimization(1e-3, 1, 3))
    module.model = torch.nn.Linear(2, 2)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"CausalLM holds no model\.llama\.Trunk"):
        fit(module, [], steps=1, seed=0, execution=Execution(activation_checkpointing=True))


# Watched


def test_model_flops_are_those_of_an_independent_count() -> None:
    """Forward products as torch counts them, times three."""
    from torch.utils.flop_counter import FlopCounterMode

    config = LlamaConfig(vocab_size=100, dim=64, layers=3, heads=4, kv_heads=2, multiple_of=16, max_context=128)
    model = Llama(config)
    model.init_weights(torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        model(torch.ones(2, 128, dtype=torch.int64))
    assert 2 * 128 * flops_per_token(config, 128) == 3 * counter.get_total_flops()
    assert flops_per_token(config, 128) - flops_per_token(config, 128, "scalar") == 6 * 64 * 99
    result = fit(CausalLM(model, Optimization(1e-3, 1, 2)), PackedLoader(documents(), 4, seed=0), steps=2, seed=0)
    assert result.flops == 2 * 4 * 16 * flops_per_token(config, 16)


def test_peaks_are_looked_up_by_the_longest_name_first_and_measured_where_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert peak_flops(torch.device("cpu"), "fp32") > 1e8
    names = {"NVIDIA H100 80GB HBM3": "H100", "NVIDIA H100 PCIe": "H100 PCIe", "NVIDIA L40S": "L40S", "NVIDIA A100-SXM4-80GB": "A100"}
    for name, known in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert peak_flops(torch.device("cuda"), "bf16") == PEAKS[known]["bf16"]


def test_progress_tells_loss_tokens_a_second_and_mfu(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    clock = iter(float(seconds) for seconds in range(1000))
    monkeypatch.setattr("model.progress.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("model.training.peak_flops", lambda device, precision: 1e6)
    train("noisy", progress="a training")
    lines = capfd.readouterr().err.splitlines()
    flops = 4 * 16 * flops_per_token(CONFIG, 16)
    assert len(lines) == 10
    assert lines[0] == f"a training: step 2/12, 128 tokens/s, MFU {2 * flops / 1e6:.0%}, 2 s"
    assert lines[-1].startswith("a training: step 12/12, loss ")


def test_tensorboard_gets_every_row_and_the_rates(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "sft" / "model"
    result = train("noisy", execution=Execution(tensorboard=folder))
    assert result == train("noisy")
    events = EventAccumulator(str(folder))
    events.Reload()
    for metric in {row["metric"] for row in result["rows"]}:
        expected = [(row["step"], np.float32(row["value"])) for row in result["rows"] if row["metric"] == metric]
        assert [(event.step, np.float32(event.value)) for event in events.Scalars(metric)] == expected
    for rate in ("tokens_per_second", "mfu"):
        assert [event.step for event in events.Scalars(rate)] == [4, 8, 12]
        assert all(event.value > 0 for event in events.Scalars(rate))


def test_tensorboard_that_is_missing_is_said_with_the_way_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: Any, **named: Any) -> None:
        raise ModuleNotFoundError("No module named 'tensorboard'")

    monkeypatch.setattr("model.execution.TensorBoardLogger", missing)
    with pytest.raises(ValueError, match=r"pip install 'tampu\[tensorboard\]'"):
        tensorboard_logger(tmp_path, 0)


# What is not finite


@pytest.mark.parametrize(("parts", "where"), [(1, r"batch 3 \(examples "), (2, r"batch 3, part 1 of 2 \(examples ")])
def test_a_loss_that_is_not_finite_stops_before_the_update_and_names_step_and_batch(parts: int, where: str) -> None:
    module, loader, arguments = setting("noisy")
    before: list[str] = []
    ordinary = module.training_step
    calls = iter(range(1, 100))

    def step(*some: Any) -> Any:
        result = ordinary(*some)
        if next(calls) <= 3 * parts:
            return result
        before.append(weights(module))
        return result | {"loss": result["loss"] * float("nan")}

    module.training_step = step  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=f"^the loss at step 4 is nan, on {where}") as error:
        fit(module, loader, **{"steps": 12, "seed": 0} | arguments, execution=Execution(accumulate=parts))
    examples = error.value.args[0].partition("(examples ")[2].partition(")")[0]
    assert [int(number) for number in examples.split(", ")] == loader.rows(3)
    batch = next(loader.batches(3))["tokens"]
    assert torch.equal(batch, torch.from_numpy(loader.packed.tokens[loader.rows(3)].astype(np.int64)))
    assert before == [weights(module)]
