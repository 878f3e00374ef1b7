"""Instructions that should last a whole dialogue, and the small talk that follows them.

The paper's instructions are hobbies, languages and public figures, judged by people. Ours can be judged by rule: end every answer
with a given word. The words of the test are never such instructions in training; the model knows them from single messages.
"""

import random
from dataclasses import dataclass

from resources.prompts.instructions import words_of
from resources.prompts.words import ENDINGS, TOPICS, in_split
from resources.splits import Split

_MESSAGES = ("Tell me something about {a}.", "What do you think about {a}?", "I want to hear about {a}.", "Do you like {a}?")


@dataclass(frozen=True)
class Instruction:
    """An instruction in its full and its terse form, and the word that shows whether it was obeyed."""

    text: str
    terse: str
    word: str


def instructions(split: Split, count: int, *, validation: float, test: float, seed: int) -> list[Instruction]:
    """`count` instructions with words of one split, drawn with repetition."""
    words = in_split(ENDINGS, "ghost attention", split, validation=validation, test=test)
    chance = random.Random(f"{seed}/ghost/instructions/{split}")
    drawn = [chance.choice(words) for _ in range(count)]
    return [Instruction(f"Always end with the word {word}.", f"End: {word}.", word) for word in drawn]


def user_messages(split: Split, count: int, turns: int, *, validation: float, test: float, seed: int) -> list[list[str]]:
    """`count` dialogues' user messages, `turns` each, on topics of one split."""
    topics = in_split(TOPICS, "ghost attention", split, validation=validation, test=test)
    chance = random.Random(f"{seed}/ghost/messages/{split}")
    return [[chance.choice(_MESSAGES).format(a=chance.choice(topics)) for _ in range(turns)] for _ in range(count)]


def obeys(instruction: Instruction, answer: str) -> bool:
    """Whether the answer's last word is the instruction's."""
    words = words_of(answer)
    return bool(words) and words[-1] == instruction.word
