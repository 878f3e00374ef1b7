"""A built-in multiple-choice task: which of four utterances came next in a human conversation?"""

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from resources.splits import fraction_of

if TYPE_CHECKING:
    from model.llama import Llama
    from model.tokenizer import Tokenizer


@dataclass(frozen=True)
class Item:
    """A context, four continuations, and which one is right."""

    item: str
    context: str
    choices: tuple[str, ...]
    answer: int


def next_turn_items(conversations: pl.DataFrame, count: int, *, seed: int, choices: int = 4, context_turns: int = 3) -> list[Item]:
    """`count` items at most, one a conversation; the wrong continuations are turns of other conversations at the same place."""
    talks = [
        (identity, turns[: context_turns + 1])
        for identity, turns in conversations.select("document_id", "turns").iter_rows()
        if len(turns) > context_turns and 4 <= len(turns[context_turns].split()) <= 30
    ]
    talks.sort(key=lambda talk: fraction_of(talk[0], f"next-turn/{seed}"))
    items = []
    for identity, turns in talks[:count]:
        chance = random.Random(f"{seed}/{identity}")
        others = [other[context_turns] for name, other in chance.sample(talks, min(len(talks), 3 * choices)) if name != identity]
        wrong = [text for text in dict.fromkeys(others) if text != turns[context_turns]][: choices - 1]
        if len(wrong) < choices - 1:
            continue
        answer = chance.randrange(choices)
        wrong.insert(answer, turns[context_turns])
        items.append(Item(identity, "\n".join(turns[:context_turns]) + "\n", tuple(wrong), answer))
    return items


def answer_items(network: "Llama", tokenizer: "Tokenizer", items: list[Item]) -> list[bool]:
    """Whether the right choice has the highest log-likelihood per character (LLaMA's scoring), for each item."""
    from model.likelihood import loglikelihoods

    longest = network.config.max_context
    pairs = []
    for item in items:
        context = [tokenizer.bos_id] * tokenizer.adds_bos + tokenizer.encode(item.context)
        for choice in item.choices:
            continuation = tokenizer.encode(choice)
            pairs.append((context[-(longest - len(continuation)) :], continuation))
    logprobs = iter(logprob for logprob, _ in loglikelihoods(network, pairs))
    right = []
    for item in items:
        per_character = [next(logprobs) / len(choice) for choice in item.choices]
        right.append(per_character.index(max(per_character)) == item.answer)
    return right
