"""What training costs, as formulas: operations, memory a GPU and time. Energy and emissions follow from those (`model.emissions`).

The training is that of `model/` in bf16 with AdamW under fully sharded data parallelism (FSDP2, or ZeRO stage 3: arXiv 1910.02054) and
no other parallelism. Letters as in `model.llama`: d width, L layers, T sequence length, V vocabulary, e head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.llama import LlamaConfig

Head = Literal["tokens", "scalar"]

# Our choices. Answers are 259 of 1,008 tokens in the last preference batch (arXiv 2307.09288 table 26); a node has 8 GPUs; decoding is
# bound by the reading of weights and cache, at half of the peak bandwidth (gpt-fast reaches 0.68 of an A100's on one GPU, 0.27 on eight).
ANSWER_SHARE = 0.25
NODE = 8
BANDWIDTH_UTILIZATION = 0.5
CHUNK = 512  # positions whose logits are made at a time: `model.causal_lm.CHUNK`, which is not imported since Lightning takes seconds to load


@dataclass(frozen=True)
class GPU:
    """Dense bf16 peak in FLOP/s, memory in bytes, its bandwidth in bytes/s, and board power in watts: the vendor's data sheets."""

    flops: float
    memory: float
    bandwidth: float
    watts: float


@dataclass(frozen=True)
class Network:
    """A network that a stage holds: language models have the token head, reward models and the critic a scalar one."""

    name: str
    parameters: int
    head: Head
    trained: bool


def networks(config: LlamaConfig, stage: str) -> list[Network]:
    """The networks of a stage. PPO has four kinds: policy, critic, reference (the policy's frozen start) and reward.

    They are five networks of one size, since the paper gates two reward models (arXiv 2307.09288 §3.2.3). `stage` is a key of
    `model.planning.STAGES`.
    """
    language, scalar = config.parameter_count(), config.trunk_parameter_count() + config.dim
    if stage == "reward":
        return [Network("reward model", scalar, "scalar", True)]
    if stage != "ppo":
        return [Network("language model", language, "tokens", True)]
    return [
        Network("policy", language, "tokens", True),
        Network("critic", scalar, "scalar", True),
        Network("reference", language, "tokens", False),
        Network("helpfulness reward model", scalar, "scalar", False),
        Network("safety reward model", scalar, "scalar", False),
    ]


def flops_per_token(config: LlamaConfig, sequence: int, head: Head = "tokens") -> float:
    """Model FLOPs to train on a token, a third of them for the forward pass: 6·(weights of products) + 12·L·d·T.

    arXiv 2204.02311 appendix B. The input embedding is a lookup and costs nothing; attention counts the whole T×T square, and
    recomputation under activation checkpointing does not count, as is usual for MFU.
    """
    norms = (2 * config.layers + 1) * config.dim
    weights = config.trunk_parameter_count() - norms - config.vocab_size * config.dim
    weights += config.dim * (config.vocab_size if head == "tokens" else 1)
    return 6.0 * weights + 12.0 * config.layers * config.dim * sequence


def kv_cache_bytes(config: LlamaConfig) -> int:
    """Bytes of keys and values that a token leaves in a 16-bit cache: 2·2·L·(key/value heads)·e."""
    return 4 * config.layers * config.kv_heads * config.head_dim


def activation_bytes(config: LlamaConfig, head: Head, *, checkpointing: bool) -> int:
    """Bytes a token that wait for the backward pass, in bf16 with fp32 statistics and a fused attention kernel.

    Counted tensor by tensor, as arXiv 2205.05198 §4 does for GPT's layers, for what a layer of `model.llama` keeps (d width, k/h key
    and query heads, e head width, f feed-forward width):

    - each of two norms: its input and the normalized input (together 6d, fp32 statistics 4) and its output (2d);
    - attention: queries (2d), keys and values (4·k·e), output (2d) and fp32 log-sum-exp (4h, arXiv 2205.14135);
    - feed-forward: gate, silu(gate), up, and their product (8f).

    After the layers come the last norm and, under a token head, fp32 log-probabilities (4V) at every token; a scalar head reads one
    token and keeps nothing. With `checkpointing` a layer keeps its input alone (2d), and its tensors exist for one layer at a time,
    when it is computed again (arXiv 1604.06174); by then those after the layers are gone. Kernels that fuse norms or SwiGLU keep less.
    """
    norm = 8 * config.dim + 4
    attention = 2 * (2 * config.dim + 2 * config.kv_heads * config.head_dim) + 4 * config.heads
    layer = 2 * norm + attention + 8 * config.feed_forward_dim
    last = norm + 4 * config.vocab_size if head == "tokens" else norm - 2 * config.dim
    if checkpointing:
        return 2 * config.dim * config.layers + max(layer, last)
    return config.layers * layer + last


@dataclass(frozen=True)
class Memory:
    """Bytes a GPU. Sharded: fp32 weights, fp32 gradients, AdamW's two fp32 moments, and bf16 weights of frozen networks.

    `activations` wait for the backward pass; `working` are tensors of a moment (see `working_bytes`). PPO samples before it updates:
    `rollout_weights` are the policy in bf16, gathered once a node and shared by its GPUs (arXiv 2307.09288 §3.2.3), beside the cache
    of all its answers.
    """

    checkpointing: bool
    weights: float
    gradients: float
    optimizer: float
    frozen: float
    activations: float
    working: float
    rollout_weights: float
    kv_cache: float

    @property
    def peak(self) -> float:
        """The larger of updating and sampling; sampling holds no gradients."""
        states = self.weights + self.optimizer + self.frozen
        return states + max(self.gradients + self.activations + self.working, self.rollout_weights + self.kv_cache)


def working_bytes(config: LlamaConfig, trained: list[Network], tokens: int) -> int:
    """Bytes at the worst moment of a backward pass over `tokens` tokens, beside states and activations.

    FSDP2 makes a unit of each layer and a root unit of the rest, whose bf16 weights stay gathered (2 bytes a parameter) throughout. To
    them comes the largest of three, which do not meet:

    - a layer: its bf16 weights and the next one's, its bf16 gradients and their fp32 copy for the reduction (10 bytes a parameter),
      and gradients of its widest activations (4f a token);
    - the root: its bf16 gradients and their fp32 copy (6 bytes);
    - the loss: two fp32 gradients of a chunk of logits (8V for each of `CHUNK` tokens).
    """
    layer = config.layer_parameter_count()
    roots = [network.parameters - config.layers * layer for network in trained]
    chunk = min(tokens, CHUNK) if any(network.head == "tokens" for network in trained) else 0
    moments = (10 * layer + 4 * config.feed_forward_dim * tokens, 6 * max(roots), 8 * config.vocab_size * chunk)
    return 2 * sum(roots) + max(moments)


def memory(config: LlamaConfig, stage: str, *, gpus: int, sequence: int, batch: int, micro_batch: int, checkpointing: bool) -> Memory:
    """Bytes a GPU of one stage on `gpus` GPUs; `batch` (sequences) counts only in PPO, as the answers sampled at once."""
    held = networks(config, stage)
    trained = [network for network in held if network.trained]
    parameters = sum(network.parameters for network in trained)
    tokens = micro_batch * sequence
    ppo = stage == "ppo"
    return Memory(
        checkpointing=checkpointing,
        weights=4 * parameters / gpus,
        gradients=4 * parameters / gpus,
        optimizer=8 * parameters / gpus,
        frozen=2 * sum(network.parameters for network in held if not network.trained) / gpus,
        activations=tokens * sum(activation_bytes(config, network.head, checkpointing=checkpointing) for network in trained),
        working=working_bytes(config, trained, tokens),
        rollout_weights=2 * config.parameter_count() / min(gpus, NODE) if ppo else 0,
        kv_cache=-(-batch // gpus) * sequence * kv_cache_bytes(config) if ppo else 0,
    )


def seconds_per_sequence(config: LlamaConfig, stage: str, gpu: GPU, *, gpus: int, mfu: float, sequence: int, batch: int) -> tuple[float, float]:
    """GPU-seconds a sequence: in products at this MFU, and (PPO only) in decoding.

    PPO reads each sequence with all five networks, and with policy and critic again to update them. Decoding makes one token of every
    answer a step, in which the GPUs of a node read the policy's bf16 weights and the answers' caches, half full on average.
    """
    held = networks(config, stage)
    rate = gpu.flops * mfu
    flops = sequence * sum(flops_per_token(config, sequence, network.head) for network in held if network.trained)
    if stage != "ppo":
        return flops / rate, 0.0
    forward = flops_per_token(config, sequence) / 3
    flops += sequence * sum(flops_per_token(config, sequence, network.head) for network in held) / 3
    answer = max(1, round(ANSWER_SHARE * sequence))
    flops += (sequence - answer) * forward  # the prompt's keys and values
    answers = batch / gpus
    cached = sequence - answer / 2
    read = 2 * config.parameter_count() / min(gpus, NODE) + answers * cached * kv_cache_bytes(config)
    step = max(read / (gpu.bandwidth * BANDWIDTH_UTILIZATION), answers * forward / rate)
    return flops / rate, answer * step / answers
