"""The network: sizes, packing, caching, weights on disk, reward scores."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.branching import length_batches
from model.llama import PRESETS, KeyValueCache, Llama, LlamaConfig, View, _fused_attention, attend, rotation
from model.precision import autocast
from model.reward import RewardModel, score
from model.weights import load_llama, load_reward, save_llama, save_reward

torch.set_num_threads(1)


def small(**changes) -> LlamaConfig:
    sizes = {"vocab_size": 61, "dim": 32, "layers": 3, "heads": 4, "kv_heads": 2, "multiple_of": 16, "max_context": 48}
    return LlamaConfig(**sizes | changes)


def made(config: LlamaConfig, seed: int = 0, spread: float = 8.0) -> Llama:
    """A network with weights large enough that attention is far from uniform, and norm gains that are not 1."""
    model = Llama(config)
    generator = torch.Generator().manual_seed(seed)
    model.init_weights(generator)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.uniform_(0.5, 1.5, generator=generator)
        else:
            parameter.data.mul_(spread)
    return model


def tokens(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 61, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "total", "width", "reward_total"),
    [
        ("tiny", 1_262_720, 352, 1_000_704),
        ("15m", 15_191_712, 768, 15_192_000),
        ("135m", 134_515_008, 1536, 134_515_584),
        ("1b", 1_100_048_384, 5632, 1_034_514_432),
        ("7b", 6_738_415_616, 11008, 6_607_347_712),
        ("13b", 13_015_864_320, 13824, 12_852_029_440),
        ("34b", 33_743_970_304, 22016, 33_481_834_496),
        ("70b", 68_976_648_192, 28672, 68_714_512_384),
    ],
)
def test_presets_have_the_sizes_of_the_models_they_are_named_after(name: str, total: int, width: int, reward_total: int) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        llama, reward = Llama(config), RewardModel(config)
    assert config.parameter_count() == sum(p.numel() for p in llama.parameters()) == total
    assert config.trunk_parameter_count() + config.dim == sum(p.numel() for p in reward.parameters()) == reward_total
    assert config.feed_forward_dim == width


def test_tied_embeddings_are_counted_once() -> None:
    config = small(tie_embeddings=True)
    assert config.parameter_count() == sum(p.numel() for p in Llama(config).parameters())


def test_a_config_survives_its_dictionary_and_refuses_unknown_keys() -> None:
    config = small(ffn_dim=40, tie_embeddings=True)
    assert LlamaConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="n_layers"):
        LlamaConfig.from_dict(config.to_dict() | {"n_layers": 3})


@pytest.mark.parametrize("changes", [{"layers": 0}, {"dim": 30}, {"heads": 4, "kv_heads": 3}])
def test_a_config_that_makes_no_network_is_refused(changes: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        small(**changes)


def test_a_later_token_never_changes_earlier_logits() -> None:
    model, first = made(small()), tokens(2, 12)
    second = first.clone()
    second[:, 8:] = (second[:, 8:] + 1) % 61
    ours, theirs = model(first), model(second)
    assert torch.equal(ours[:, :8], theirs[:, :8])
    assert not torch.allclose(ours[:, 8:], theirs[:, 8:])


def test_a_packed_example_has_the_logits_that_it_has_alone() -> None:
    model = made(small())
    lengths = [7, 1, 12, 5]
    examples = [tokens(1, n, seed=n) for n in lengths]
    row = torch.cat([*examples, torch.zeros(1, 6, dtype=torch.int64)], dim=1)
    segments = torch.repeat_interleave(torch.tensor([1, 2, 3, 4, 0]), torch.tensor([*lengths, 6]))[None]
    packed = model(row, segments_bt=segments)
    start = 0
    for example, length in zip(examples, lengths, strict=True):
        torch.testing.assert_close(packed[:, start : start + length], model(example), atol=1e-5, rtol=1e-5)
        start += length
    assert packed.isfinite().all()
    assert not torch.allclose(packed[:, 7:20], model(row)[:, 7:20], atol=1e-2)


@pytest.mark.parametrize("kv_heads", [4, 1])
def test_decoding_with_a_cache_equals_the_full_pass_for_rows_of_any_length(kv_heads: int) -> None:
    model = made(small(kv_heads=kv_heads))
    batch, lengths = tokens(4, 20), torch.tensor([3, 9, 1, 6])
    full = model(batch)
    cache = KeyValueCache(model.config, 6, 20, torch.device("cpu"), torch.float32)
    rows = torch.tensor([5, 0, 3, 2])
    prompt = model(batch[:, :9], torch.arange(9).expand(4, -1), cache=cache.select(rows))
    for row, length in enumerate(lengths):
        torch.testing.assert_close(prompt[row, :length], full[row, :length], atol=1e-4, rtol=1e-4)
    for step in range(11):
        positions = lengths + step
        logits = model(batch.gather(1, positions[:, None]), positions[:, None], cache=cache.select(rows))
        torch.testing.assert_close(logits[:, 0], full[torch.arange(4), positions], atol=1e-4, rtol=1e-4)


def test_a_cache_shrinks_to_the_rows_that_are_kept() -> None:
    model, batch = made(small()), tokens(3, 8)
    cache = KeyValueCache(model.config, 3, 8, torch.device("cpu"), torch.float32)
    model.hidden(batch[:, :7], torch.arange(7).expand(3, -1), cache=cache)
    cache.keep(torch.tensor([2, 0]))
    logits = model(batch[[2, 0], 7:], torch.full((2, 1), 7), cache=cache)
    torch.testing.assert_close(logits[:, 0], model(batch)[[2, 0], 7], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("causal", [True, False])
def test_the_fused_kernels_and_the_cpu_products_agree(causal: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(2, 6, 4, 8, generator=generator)
    keys, values = torch.randn(2, 2, 6, 8, generator=generator), torch.randn(2, 2, 6, 8, generator=generator)
    visible = torch.ones(6, 6, dtype=torch.bool).tril()[None]
    if not causal:
        visible = visible & (torch.arange(6) // 3 == torch.arange(6)[:, None] // 3)
    positions = torch.arange(6)[None]
    view = View(positions, rotation(positions, 8, 10000.0), visible, causal, None)
    fused = _fused_attention(queries.transpose(1, 2), keys, values, view).transpose(1, 2)
    torch.testing.assert_close(attend(queries, keys, values, view), fused)


def test_sequences_beyond_the_context_are_refused() -> None:
    model = made(small())
    with pytest.raises(ValueError, match="context of 48"):
        model(tokens(1, 49))
    with pytest.raises(ValueError, match="context of 48"):
        KeyValueCache(model.config, 1, 49, torch.device("cpu"), torch.float32)


def test_bf16_products_leave_fp32_logits_near_the_exact_ones() -> None:
    model, batch = made(small(), spread=2.0), tokens(2, 16)
    with autocast(model, "bf16"):
        rough = model(batch)
    assert rough.dtype == torch.float32
    assert 0 < (rough - model(batch)).abs().max() < 0.1 * model(batch).abs().max() + 0.02
    with pytest.raises(ValueError, match="int8"), autocast(model, "int8"):  # type: ignore[arg-type]
        pass


def test_initial_weights_depend_on_the_seed_and_shrink_into_the_residual_stream() -> None:
    config = small(dim=64, layers=8)
    model, again, other = Llama(config), Llama(config), Llama(config)
    for network, seed in ((model, 3), (again, 3), (other, 4)):
        network.init_weights(torch.Generator().manual_seed(seed))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not torch.equal(model.trunk.embedding.weight, other.trunk.embedding.weight)
    spread = {name: float(tensor.std()) for name, tensor in model.state_dict().items()}
    assert spread["trunk.layers.0.attention.query.weight"] == pytest.approx(0.02, rel=0.1)
    assert spread["trunk.layers.0.attention.output.weight"] == pytest.approx(0.005, rel=0.1)
    assert spread["trunk.layers.0.feed_forward.down.weight"] == pytest.approx(0.005, rel=0.1)
    assert torch.equal(model.trunk.norm.weight, torch.ones(64))


@pytest.mark.parametrize("tied", [False, True])
def test_saved_weights_come_back_equal_and_saving_is_deterministic(tmp_path: Path, tied: bool) -> None:
    model = made(small(tie_embeddings=tied))
    save_llama(model, tmp_path / "a")
    save_llama(model, tmp_path / "a", name="first_epoch")
    loaded = load_llama(tmp_path / "a")
    assert torch.equal(loaded(tokens(2, 9)), model(tokens(2, 9)))
    assert all(p.requires_grad for p in loaded.parameters())
    save_llama(loaded, tmp_path / "b")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["config.json", "first_epoch.safetensors", "model.safetensors"]
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_weights_of_another_kind_or_shape_are_refused(tmp_path: Path) -> None:
    save_llama(made(small()), tmp_path)
    with pytest.raises(ValueError, match=r"'llama'.*'reward'"):
        load_reward(tmp_path)
    with pytest.raises(ValueError, match="another model"):
        save_llama(made(small(layers=1)), tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"layers": 4}))
    with pytest.raises(ValueError, match=r"trunk\.layers\.3\..* is missing"):
        load_llama(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(values | {"vocab_size": 62}))
    with pytest.raises(ValueError, match=r"shape \(61, 32\)"):
        load_llama(tmp_path)


def test_a_reward_model_starts_from_a_chat_models_trunk_and_scores_zero() -> None:
    llama = made(small())
    reward = RewardModel.from_llama(llama)
    assert torch.equal(reward.trunk(tokens(1, 5)), llama.hidden(tokens(1, 5)))
    assert score(reward, [[1, 2, 3], [4]]).tolist() == [0.0, 0.0]
    reward.trunk.embedding.weight.data.zero_()
    assert llama.trunk.embedding.weight.abs().max() > 0


def test_scores_are_read_at_the_last_token_whatever_the_padding_and_the_batch(tmp_path: Path) -> None:
    reward = RewardModel.from_llama(made(small()))
    torch.nn.init.normal_(reward.head.weight, generator=torch.Generator().manual_seed(0))
    sequences = [tokens(n, seed=n).tolist() for n in (3, 17, 1, 30, 8, 17, 2)]
    together = score(reward, sequences)
    assert together.dtype == np.float32
    for sequence, value in zip(sequences, together, strict=True):
        alone = reward.head(reward.trunk(torch.tensor([sequence]))[0, -1]).item()
        assert alone == pytest.approx(float(value), abs=1e-4)
    np.testing.assert_allclose(score(reward, sequences, batch_tokens=20), together, atol=1e-5)
    save_reward(reward, tmp_path)
    np.testing.assert_array_equal(score(load_reward(tmp_path), sequences), together)
    assert score(reward, []).shape == (0,)
    with pytest.raises(ValueError, match="sequence 1 is empty"):
        score(reward, [[1], []])


def test_length_batches_hold_every_row_once_within_their_budget() -> None:
    lengths = [5, 40, 3, 9, 9, 1, 22]
    batches = length_batches(lengths, 30)
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 30 for batch in batches)
