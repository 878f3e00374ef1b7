"""The network that the side-by-side benchmarks of sampling and PPO share: answers of it stop at different lengths.

A network with random weights almost never samples the EOS. Here all embeddings share one direction, on which the output row of the EOS
lies, so that each token is the EOS with a probability of about 1/32: half of the answers stop before 23 tokens, a seventh not within 64.
"""

import numpy as np
import torch

from model.huggingface import huggingface_tensors
from model.llama import Llama, LlamaConfig

VOCAB, DIM, LAYERS, HEADS, FFN, CONTEXT = 4096, 256, 6, 4, 704, 256
EOS, NEW_TOKENS = 2, 64
SHORTEST, LONGEST = 16, 48


def network() -> Llama:
    """A Llama of 6.9 million parameters in fp32."""
    shape = LlamaConfig(VOCAB, DIM, LAYERS, HEADS, HEADS, ffn_dim=FFN, max_context=CONTEXT)
    model = Llama(shape)
    model.init_weights(torch.Generator().manual_seed(0))
    direction = torch.randn(DIM, generator=torch.Generator().manual_seed(1))
    direction /= direction.norm()
    with torch.no_grad():
        model.trunk.embedding.weight += 0.3 * direction
        model.output.weight[EOS] = direction  # type: ignore[union-attr]
    return model


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    """Random tokens of mixed length, BOS first."""
    chance = np.random.default_rng(seed)
    return [[1, *chance.integers(3, VOCAB, int(n) - 1).tolist()] for n in chance.integers(SHORTEST, LONGEST + 1, count)]


def transformers_network(model: Llama, **settings: object):  # type: ignore[no-untyped-def]
    """The same weights as a `LlamaForCausalLM`."""
    from transformers import LlamaForCausalLM

    network = LlamaForCausalLM(transformers_config(**settings))
    network.load_state_dict(huggingface_tensors(model))
    return network.eval()


def transformers_config(**settings: object):  # type: ignore[no-untyped-def]
    from transformers import LlamaConfig as TransformersConfig

    return TransformersConfig(
        vocab_size=VOCAB,
        hidden_size=DIM,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=EOS,
        pad_token_id=0,
        **settings,
    )


def tokenizer():  # type: ignore[no-untyped-def]
    """A tokenizer of transformers with a word for each id; its peers ask for one and hardly use it."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<s>": 1, "</s>": EOS} | {f"w{i}": i for i in range(3, VOCAB)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left")
