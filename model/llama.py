"""The Llama 2 network: RMSNorm, rotary positions, grouped-query attention and SwiGLU (arXiv 2307.09288 §2.2, Meta's `model.py`).

Shape suffixes: b batch, t new positions, s all positions attended to, d width, v vocabulary, h query heads, k key/value heads,
g query heads a key/value head (h = k·g), e head width, c = e/2 rotated pairs. `queries_bthe` has shape [b, t, h, e].
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class RopeScaling:
    """How rotary positions are stretched beyond the context that a model was first trained on.

    `linear` divides every frequency by `factor` (arXiv 2306.15595). `llama3` divides the frequencies that turn less than
    `low_freq_factor` times in `original_context` tokens, leaves those that turn more than `high_freq_factor` times, and blends between
    (Llama 3.1's `apply_scaling`). Raises ValueError, naming the field, for values out of range.
    """

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context: int = 8192

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"RopeScaling.kind is {self.kind!r}; it must be 'linear' or 'llama3'")
        if not self.factor >= 1:
            raise ValueError(f"RopeScaling.factor is {self.factor}; it must be at least 1")
        if not 0 < self.low_freq_factor < self.high_freq_factor:
            found = f"{self.low_freq_factor} and {self.high_freq_factor}"
            raise ValueError(f"RopeScaling.low_freq_factor and high_freq_factor are {found}; the first must be positive and the smaller one")
        if self.original_context < 1:
            raise ValueError(f"RopeScaling.original_context is {self.original_context}; it must be at least 1")

    def divisors(self, frequencies_c: Tensor) -> Tensor:
        """What each frequency (radians a token, fp32 [c]) is divided by, fp32 [c]."""
        if self.kind == "linear":
            return torch.full_like(frequencies_c, self.factor)
        turns_c = self.original_context * frequencies_c / (2 * math.pi)
        unscaled_c = ((turns_c - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)).clamp(0, 1)
        return 1 / (unscaled_c + (1 - unscaled_c) / self.factor)


@dataclass(frozen=True)
class LlamaConfig:
    """The sizes of a Llama network. `ffn_dim` None means Meta's rule (`feed_forward_dim`), a number overrides it.

    `max_context` bounds the length of a sequence (tokens). Raises ValueError, naming the field, for sizes that make no network.
    """

    vocab_size: int
    dim: int
    layers: int
    heads: int
    kv_heads: int
    ffn_dim: int | None = None
    multiple_of: int = 256
    ffn_multiplier: float | None = None
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    max_context: int = 4096
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "layers", "heads", "kv_heads", "multiple_of", "max_context"):
            if getattr(self, name) < 1:
                raise ValueError(f"LlamaConfig.{name} is {getattr(self, name)}; it must be at least 1")
        if self.dim % (2 * self.heads):
            raise ValueError(f"LlamaConfig.dim {self.dim} must be a multiple of 2*heads = {2 * self.heads}: rotary positions turn pairs")
        for name in ("norm_eps", "rope_theta"):
            if not getattr(self, name) > 0:
                raise ValueError(f"LlamaConfig.{name} is {getattr(self, name)}; it must be positive")
        if self.heads % self.kv_heads:
            raise ValueError(f"LlamaConfig.heads {self.heads} must be a multiple of kv_heads {self.kv_heads}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads

    @property
    def feed_forward_dim(self) -> int:
        """SwiGLU width: `ffn_dim`, or two thirds of 4·dim, times the multiplier, rounded up to `multiple_of` (Meta's `model.py`)."""
        if self.ffn_dim is not None:
            return self.ffn_dim
        width = int(2 * (4 * self.dim) / 3)
        if self.ffn_multiplier is not None:
            width = int(self.ffn_multiplier * width)
        return self.multiple_of * math.ceil(width / self.multiple_of)

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> LlamaConfig:
        """The config of a dictionary written by `to_dict`; an unknown key raises ValueError with its name."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"unknown keys in a LlamaConfig: {', '.join(unknown)}; known are {', '.join(sorted(known))}")
        scaling = values.get("rope_scaling")
        return cls(**values | {"rope_scaling": None if scaling is None else RopeScaling(**scaling)})

    def layer_parameter_count(self) -> int:
        """Parameters of a layer: the four products of attention, the three of SwiGLU, and two norms."""
        attention = 2 * self.dim * self.dim + 2 * self.dim * self.kv_heads * self.head_dim
        return attention + 3 * self.dim * self.feed_forward_dim + 2 * self.dim

    def trunk_parameter_count(self) -> int:
        """Parameters below the head: the embedding, the layers and the last norm. A reward model has these and dim more."""
        return self.vocab_size * self.dim + self.layers * self.layer_parameter_count() + self.dim

    def parameter_count(self) -> int:
        """Parameters of the language model: those of the trunk, and V·d for the output matrix unless it is the embedding."""
        return self.trunk_parameter_count() + (0 if self.tie_embeddings else self.vocab_size * self.dim)


PRESETS = {
    # The default profile's network.
    "tiny": LlamaConfig(2048, 128, 4, 2, 1, multiple_of=32, max_context=1024),
    # stories15M of karpathy/llama2.c.
    "15m": LlamaConfig(32000, 288, 6, 6, 6, multiple_of=32, max_context=256, tie_embeddings=True),
    # SmolLM2-135M (arXiv 2502.02737).
    "135m": LlamaConfig(49152, 576, 30, 9, 3, ffn_dim=1536, rope_theta=100000.0, max_context=8192, tie_embeddings=True),
    # TinyLlama 1.1B (arXiv 2401.02385).
    "1b": LlamaConfig(32000, 2048, 22, 32, 4, max_context=2048),
    # Llama 2. 34B was never released, its sizes are Code Llama 34B's.
    "7b": LlamaConfig(32000, 4096, 32, 32, 32),
    "13b": LlamaConfig(32000, 5120, 40, 40, 40),
    "34b": LlamaConfig(32000, 8192, 48, 64, 8),
    "70b": LlamaConfig(32000, 8192, 80, 64, 8, multiple_of=4096, ffn_multiplier=1.3),
}


TILE = 192  # queries of a tile of attention on a CPU
BLOCK = 64  # rows of a block of attention on a CPU while decoding


class KeyValueCache:
    """Keys and values of earlier positions for incremental decoding, preallocated for `rows` sequences of at most `capacity` tokens.

    Row r, position p of layer i lives at `keys[i][r, :, p]`. A position is visible to queries at or after it, so that stale
    entries beyond a row's present length are never read before they are overwritten, and rows of any length share a batch.
    """

    def __init__(self, config: LlamaConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        if capacity > config.max_context:
            raise ValueError(f"a cache of {capacity} positions exceeds the model's context of {config.max_context}")
        shape = (config.layers, rows, config.kv_heads, capacity, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.selected: Tensor | None = None

    def select(self, rows: Tensor | None) -> KeyValueCache:
        """Make the next calls read and write these rows (int64 [b]); None means all rows, in order."""
        self.selected = rows
        return self

    def keep(self, rows: Tensor) -> None:
        """Shrink the cache to these rows (int64 [n]), in this order."""
        self.keys, self.values, self.selected = self.keys[:, rows], self.values[:, rows], None

    def update(self, layer: int, keys_btke: Tensor, values_btke: Tensor, positions_bt: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Write the new positions, and return the keys and values [b, k, length, e] of all positions below `length`."""
        keys, values, rows = self.keys[layer], self.values[layer], self.selected
        index = torch.arange(len(keys), device=keys.device) if rows is None else rows
        keys[index[:, None], :, positions_bt] = keys_btke.to(keys.dtype)
        values[index[:, None], :, positions_bt] = values_btke.to(values.dtype)
        if rows is None:
            return keys[:, :, :length], values[:, :, :length]
        return keys[rows, :, :length], values[rows, :, :length]


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight; statistics in fp32, cast back before the gain as in Meta's code."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x_btd: Tensor) -> Tensor:
        wide = x_btd.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)).type_as(x_btd) * self.weight


@dataclass(frozen=True)
class View:
    """What every layer of one call shares: the rotations of the new positions, and which positions they may read.

    `visible_bts` (bool, first axis 1 or b) is plain causality over the new positions alone if `causal`.
    """

    positions_bt: Tensor
    rotation_bt1c: Tensor
    visible_bts: Tensor
    causal: bool
    cache: KeyValueCache | None

    def at(self, read_bm: Tensor) -> View:
        """The view of the queries in columns `read_bm` alone. What they may read stays as it is."""
        rows = torch.arange(len(read_bm), device=read_bm.device)[:, None]
        own = rows if len(self.visible_bts) > 1 else torch.zeros_like(rows)
        turned = rows if len(self.rotation_bt1c) > 1 else torch.zeros_like(rows)
        return View(self.positions_bt, self.rotation_bt1c[turned, read_bm], self.visible_bts[own, read_bm], False, self.cache)

    @cached_property
    def bias_bts(self) -> Tensor:
        """fp32: 0 where visible, -inf elsewhere."""
        return torch.zeros(self.visible_bts.shape, device=self.visible_bts.device).masked_fill_(~self.visible_bts, float("-inf"))

    @cached_property
    def blocks(self) -> list[tuple[slice, int]]:
        """The rows in blocks, each with how many positions its rows read at most."""
        rows = [slice(start, start + BLOCK) for start in range(0, len(self.positions_bt), BLOCK)]
        return [(each, int(self.positions_bt[each].max()) + 1) for each in rows]


def pick(x_btd: Tensor, read_bm: Tensor) -> Tensor:
    """The columns `read_bm` (int64 [b, m]) of each row, [b, m, d]."""
    return x_btd.gather(1, read_bm[..., None].expand(-1, -1, x_btd.shape[-1]))


def rotation(positions_bt: Tensor, head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """exp(i·p·theta^(-2j/e)) for position p and pair j, complex64 [b, t, 1, c] (RoFormer, arXiv 2104.09864), the frequencies scaled."""
    frequencies_c = theta ** -(torch.arange(0, head_dim, 2, device=positions_bt.device, dtype=torch.float32) / head_dim)
    if scaling is not None:
        frequencies_c = frequencies_c / scaling.divisors(frequencies_c)
    angles_btc = positions_bt[..., None].float() * frequencies_c
    return torch.polar(torch.ones_like(angles_btc), angles_btc)[:, :, None]


def rotate(x_bthe: Tensor, rotation_bt1c: Tensor) -> Tensor:
    """Turn the adjacent (even, odd) pairs of each head, seen as complex numbers: Meta's layout of the weights."""
    pairs_bthc = torch.view_as_complex(x_bthe.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs_bthc * rotation_bt1c).flatten(-2).type_as(x_bthe)


def attend(queries_bthe: Tensor, keys_bkse: Tensor, values_bkse: Tensor, view: View) -> Tensor:
    """Grouped-query attention, [b, t, h, e]; a query reads the positions that `view` makes visible to it.

    An accelerator uses PyTorch's fused kernels. On a CPU plain products are faster: the fused kernel's backward pass is slow there. They
    go over the queries in tiles, which leave out the keys after the tile: no query reads those. While decoding, they go over the rows in
    blocks, which fit the cache and leave out the positions that none of a block's rows has reached.
    """
    b, t = queries_bthe.shape[:2]
    if queries_bthe.device.type != "cpu":
        return _fused_attention(queries_bthe.transpose(1, 2), keys_bkse, values_bkse, view).transpose(1, 2)
    if view.cache is not None and t == 1 and b > 1:
        blocks = []
        for rows, length in view.blocks:
            bias_bts = view.bias_bts[rows, :, :length]
            blocks.append(_plain_attention(queries_bthe[rows], keys_bkse[rows, :, :length], values_bkse[rows, :, :length], bias_bts))
        return torch.cat(blocks)
    if t != keys_bkse.shape[2] or t <= TILE:
        return _plain_attention(queries_bthe, keys_bkse, values_bkse, view.bias_bts)
    tiles = []
    for start in range(0, t, TILE):
        stop = min(start + TILE, t)
        bias_bts = view.bias_bts[:, start:stop, :stop]
        tiles.append(_plain_attention(queries_bthe[:, start:stop], keys_bkse[:, :, :stop], values_bkse[:, :, :stop], bias_bts))
    return torch.cat(tiles, dim=1)


def _plain_attention(queries_bthe: Tensor, keys_bkse: Tensor, values_bkse: Tensor, bias_bts: Tensor) -> Tensor:
    """Two batched products with the queries of a group folded into the rows, and between them a softmax, whose sums are fp32."""
    b, t, h, e = queries_bthe.shape
    k, s = keys_bkse.shape[1:3]
    g = h // k
    folded = (queries_bthe * e**-0.5).view(b, t, k, g, e).permute(0, 2, 3, 1, 4).reshape(b * k, g * t, e)
    scores = torch.bmm(folded, keys_bkse.flatten(0, 1).transpose(1, 2)).view(b, k, g, t, s)
    weights = torch.softmax(scores.add_(bias_bts[:, None, None]), dim=-1).type_as(values_bkse)
    out = torch.bmm(weights.view(b * k, g * t, s), values_bkse.flatten(0, 1))
    return out.view(b, k, g, t, e).permute(0, 3, 1, 2, 4).reshape(b, t, h, e)


def _fused_attention(queries_bhte: Tensor, keys_bkse: Tensor, values_bkse: Tensor, view: View) -> Tensor:
    """The fused kernels share keys among heads only without a mask; under a mask the keys are repeated for each head."""
    g = queries_bhte.shape[1] // keys_bkse.shape[1]
    if view.causal:
        return F.scaled_dot_product_attention(queries_bhte, keys_bkse, values_bkse, is_causal=True, enable_gqa=g > 1)
    if g > 1:
        keys_bkse, values_bkse = keys_bkse.repeat_interleave(g, 1), values_bkse.repeat_interleave(g, 1)
    return F.scaled_dot_product_attention(queries_bhte, keys_bkse, values_bkse, attn_mask=view.visible_bts[:, None])


class Attention(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.query = nn.Linear(config.dim, config.heads * config.head_dim, bias=False)
        self.key = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.value = nn.Linear(config.dim, config.kv_heads * config.head_dim, bias=False)
        self.output = nn.Linear(config.heads * config.head_dim, config.dim, bias=False)

    def forward(self, x_btd: Tensor, view: View, read_bm: Tensor | None = None) -> Tensor:
        asked_btd, asking = (x_btd, view) if read_bm is None else (pick(x_btd, read_bm), view.at(read_bm))
        queries_bthe = rotate(self.query(asked_btd).unflatten(-1, (-1, self.head_dim)), asking.rotation_bt1c)
        keys_btke = rotate(self.key(x_btd).unflatten(-1, (-1, self.head_dim)), view.rotation_bt1c)
        values_btke = self.value(x_btd).unflatten(-1, (-1, self.head_dim))
        if view.cache is None:
            keys_bkse, values_bkse = keys_btke.transpose(1, 2), values_btke.transpose(1, 2)
        else:
            keys_bkse, values_bkse = view.cache.update(self.layer, keys_btke, values_btke, view.positions_bt, view.visible_bts.shape[-1])
        mixed_bthe = attend(queries_bthe.type_as(keys_bkse), keys_bkse, values_bkse, asking)
        return self.output(mixed_bthe.flatten(2))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.dim, config.feed_forward_dim, bias=False)
        self.up = nn.Linear(config.dim, config.feed_forward_dim, bias=False)
        self.down = nn.Linear(config.feed_forward_dim, config.dim, bias=False)

    def forward(self, x_btd: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x_btd)) * self.up(x_btd))


class Layer(nn.Module):
    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.attention = Attention(config, layer)
        self.feed_forward_norm = RMSNorm(config.dim, config.norm_eps)
        self.feed_forward = FeedForward(config)

    def forward(self, x_btd: Tensor, view: View, read_bm: Tensor | None = None) -> Tensor:
        """States after the layer, [b, t, d]; with `read_bm` those of its columns alone, [b, m, d]: the others then only give keys and values."""
        mixed_btd = self.attention(self.attention_norm(x_btd), view, read_bm)
        x_btd = mixed_btd + (x_btd if read_bm is None else pick(x_btd, read_bm))
        return x_btd + self.feed_forward(self.feed_forward_norm(x_btd))


class Trunk(nn.Module):
    """Embedding, layers and last norm: what the language model and the reward model share.

    With `activation_checkpointing` a layer keeps its input alone for the backward pass and is computed again there: the same bits.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config, self.activation_checkpointing = config, False
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.layers))
        self.norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self,
        tokens_bt: Tensor,
        positions_bt: Tensor | None = None,
        segments_bt: Tensor | None = None,
        cache: KeyValueCache | None = None,
        branches_bt: Tensor | None = None,
        read_bm: Tensor | None = None,
    ) -> Tensor:
        """Last hidden states [b, t, d] after the norm; see `Llama.hidden`. `branches_bt` as in `model.branching.BranchedRows`.

        With `read_bm` (int64, columns of each row) only those are returned, [b, m, d], and the last layer computes no more than they need.
        """
        view = self._view(tokens_bt, positions_bt, segments_bt, cache, branches_bt)
        x_btd = self.embedding(tokens_bt)
        if x_btd.device.type == "cpu":
            view.bias_bts  # noqa: B018  made outside the layers, since torch.compile can not look into the lock of a cached property
        for number, layer in enumerate(self.layers, start=1):
            read = read_bm if number == len(self.layers) else None
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_btd = checkpoint(layer, x_btd, view, read, use_reentrant=False, preserve_rng_state=False)
            else:
                x_btd = layer(x_btd, view, read)
        return self.norm(x_btd)

    def _view(
        self,
        tokens_bt: Tensor,
        positions_bt: Tensor | None,
        segments_bt: Tensor | None,
        cache: KeyValueCache | None,
        branches_bt: Tensor | None,
    ) -> View:
        length, device = tokens_bt.shape[1], tokens_bt.device
        # A row of branches holds several sequences; its positions say how long the longest is.
        longest = length if branches_bt is None or positions_bt is None else int(positions_bt.max()) + 1
        if longest > self.config.max_context:
            raise ValueError(f"a sequence of {longest} tokens exceeds the model's context of {self.config.max_context}")
        if cache is not None:
            if positions_bt is None or segments_bt is not None:
                raise ValueError("decoding with a cache takes positions and no segments")
            seen = torch.arange(int(positions_bt.max()) + 1, device=device)
            visible_bts = seen <= positions_bt[..., None]
        else:
            visible_bts = torch.ones(length, length, dtype=torch.bool, device=device).tril()[None]
            if segments_bt is not None:
                visible_bts = visible_bts & (segments_bt[:, :, None] == segments_bt[:, None, :])
            if branches_bt is not None:
                read_b1s = branches_bt[:, None, :]
                visible_bts = visible_bts & ((read_b1s == 0) | (read_b1s == branches_bt[:, :, None]))
            if positions_bt is None:
                positions_bt = segment_positions(tokens_bt if segments_bt is None else segments_bt, segments_bt is not None)
        rotation_bt1c = rotation(positions_bt, self.config.head_dim, self.config.rope_theta, self.config.rope_scaling)
        return View(positions_bt, rotation_bt1c, visible_bts, cache is None and segments_bt is None and branches_bt is None, cache)


def segment_positions(like_bt: Tensor, restart: bool) -> Tensor:
    """Positions 0, 1, …: [1, t], or, if `restart`, [b, t] that begin again at 0 wherever the value of `like_bt` changes."""
    index_t = torch.arange(like_bt.shape[1], device=like_bt.device)
    if not restart:
        return index_t[None]
    begins_bt = F.pad(like_bt[:, 1:] != like_bt[:, :-1], (1, 0), value=True)
    return index_t - torch.where(begins_bt, index_t, 0).cummax(1).values


class Llama(nn.Module):
    """The language model. Its weights are arbitrary until `init_weights` is called or weights are loaded."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = Trunk(config)
        self.output = None if config.tie_embeddings else nn.Linear(config.dim, config.vocab_size, bias=False)

    def hidden(
        self,
        tokens_bt: Tensor,
        positions_bt: Tensor | None = None,
        segments_bt: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """Last hidden states [b, t, d] of int64 tokens [b, t].

        `segments_bt` (int, 0 = padding) are the examples packed into a row: no token reads one of another segment, and positions
        restart at 0 in each (unless `positions_bt` says otherwise). With a `cache` the tokens continue its selected rows at `positions_bt`.
        """
        return self.trunk(tokens_bt, positions_bt, segments_bt, cache)

    def logits(self, hidden_xd: Tensor) -> Tensor:
        """fp32 logits [..., v] of hidden states [..., d]."""
        weight_vd = self.trunk.embedding.weight if self.output is None else self.output.weight
        return F.linear(hidden_xd, weight_vd).float()

    def forward(
        self,
        tokens_bt: Tensor,
        positions_bt: Tensor | None = None,
        segments_bt: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """fp32 logits [b, t, v] of the token after each position; arguments as for `hidden`."""
        return self.logits(self.hidden(tokens_bt, positions_bt, segments_bt, cache))

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Normal(0, 0.02) for every matrix, divided by sqrt(2·layers) for the two that write to the residual stream; norms 1.

        The paper gives no initialization: our choice is GPT-2's, which keeps the residual stream's variance independent of depth.
        The generator lives on the CPU, so that a seed means the same weights on every device.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() == 1:
                parameter.fill_(1.0)
                continue
            residual = name.endswith(("attention.output.weight", "feed_forward.down.weight"))
            scale = 0.02 / math.sqrt(2 * self.config.layers) if residual else 0.02
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, scale, generator=generator))
