"""Instructions that a tiny model can learn, each with a checker: the helpfulness half of the embedded default.

Every family fills its templates with words, so that an answer must be read off the prompt instead of remembered.
Which words a family uses in which split is fixed (`words.in_split`): a test prompt is a pair of instruction and word that no
training prompt is. The word itself is known from other instructions.
"""

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from resources.errors import TampuError
from resources.prompts.prompt import Prompt, user
from resources.prompts.words import ENDINGS, TOPICS, in_split
from resources.splits import Split

Arguments = dict[str, str]


def words_of(text: str) -> list[str]:
    """Lower-case words and numbers of a text, without punctuation."""
    return re.findall(r"[a-z0-9]+(?:'[a-z]+)?", text.lower())


def echoes(answer: str, said: str) -> bool:
    """Whether an answer of three words or more only says again what was said: four in five of its word pairs are from there."""
    words, before = words_of(answer), words_of(said)
    pairs = list(pairwise(words))
    known = set(pairwise(before))
    return len(pairs) >= 2 and sum(pair in known for pair in pairs) >= 0.8 * len(pairs)


@dataclass(frozen=True)
class Task:
    """A family of instructions.

    `slots` names the word lists (`a`, `b`, `c`: topics, `ending`); `required` and `forbidden` are the slots that a
    good answer names or leaves out; `holds` is the rest of the checker, on the answer's text and words; `may_echo` says that a part of
    the instruction's own wording is a right answer.
    """

    name: str
    slots: tuple[str, ...]
    templates: tuple[str, ...]
    answers: tuple[str, ...]
    required: tuple[str, ...]
    forbidden: tuple[str, ...] = ()
    holds: Callable[[Arguments, str, list[str]], bool] = lambda arguments, text, words: len(words) <= 20
    may_echo: bool = False


def _both_in_order(arguments: Arguments, text: str, words: list[str]) -> bool:
    first, second = arguments["a"].lower(), arguments["b"].lower()
    return len(words) <= 8 and not {"repeat", "say"} & set(words) and first in words and second in words[words.index(first) :]


def _one_of_two(arguments: Arguments, text: str, words: list[str]) -> bool:
    return (arguments["a"].lower() in words) != (arguments["b"].lower() in words) and 3 <= len(words) <= 20


def _short(arguments: Arguments, text: str, words: list[str]) -> bool:
    return len(words) <= 8


def _statement(arguments: Arguments, text: str, words: list[str]) -> bool:
    return 4 <= len(words) <= 20 and not text.rstrip().endswith("?")


def _question(arguments: Arguments, text: str, words: list[str]) -> bool:
    return 4 <= len(words) <= 20 and text.rstrip().endswith("?")


def _greeting(arguments: Arguments, text: str, words: list[str]) -> bool:
    return bool({"hello", "hi", "hey"} & set(words)) and len(words) <= 20


def _ends_with(arguments: Arguments, text: str, words: list[str]) -> bool:
    return bool(words) and words[-1] == arguments["ending"].lower() and len(words) <= 20


TASKS: tuple[Task, ...] = (
    Task(
        "repeat",
        ("a", "b"),
        ("Repeat after me: {a} and {b}", "Please say the words {a} and {b}", "Say this back to me: {a} and {b}"),
        ("You said {a} and {b}.",),
        ("a", "b"),
        (),
        _both_in_order,
        may_echo=True,
    ),
    Task(
        "first",
        ("a", "b", "c"),
        ("What is the first word of this list: {a}, {b}, {c}?", "Which word comes first: {a}, {b}, {c}?"),
        ("The first word is {a}.",),
        ("a",),
        ("b", "c"),
    ),
    Task(
        "last",
        ("a", "b", "c"),
        ("What is the last word of this list: {a}, {b}, {c}?", "Which word comes last: {a}, {b}, {c}?"),
        ("The last word is {c}.",),
        ("c",),
        ("a", "b"),
    ),
    Task(
        "choose",
        ("a", "b"),
        ("Do you like {a} or {b} more?", "Which is better, {a} or {b}?", "Choose one: {a} or {b}."),
        ("I like {a} more.", "I like {b} more.", "I think {a} is better.", "I think {b} is better."),
        (),
        (),
        _one_of_two,
    ),
    Task(
        "tell",
        ("a",),
        (
            "Tell me something about {a}.",
            "What do you think about {a}?",
            "I want to hear about {a}.",
            "What can you say about {a}?",
            "Say a few words about {a}.",
            "Do you have any thoughts on {a}?",
        ),
        ("I think {a} can be a lot of fun.", "I like {a} because it makes me happy.", "Many people love {a} and so do I."),
        ("a",),
        (),
        _statement,
    ),
    Task(
        "ask",
        ("a",),
        (
            "Ask me a question about {a}.",
            "Can you ask me about {a}?",
            "Please ask me something about {a}.",
            "I would like a question about {a}.",
            "Make up a question about {a}.",
            "What would you ask me about {a}?",
        ),
        ("What do you like about {a}?", "Do you know a lot about {a}?", "Why do people like {a}?"),
        ("a",),
        (),
        _question,
    ),
    Task(
        "greet",
        ("a",),
        (
            "Say hello to my friend who likes {a}.",
            "Please greet a person who loves {a}.",
            "I like {a}. Say hello to me.",
            "Greet everyone who enjoys {a}.",
            "Hello! I really like {a}.",
            "My sister is into {a}. Say hi to her.",
        ),
        ("Hello, I heard that you like {a}!", "Hi, do you like {a} a lot?"),
        ("a",),
        (),
        _greeting,
    ),
    Task(
        "favorite",
        ("a",),
        (
            "My favorite thing is {a}. What is my favorite thing?",
            "I love {a}. What do I love?",
            "Do you know what I like? It is {a}.",
            "I enjoy {a}. Can you tell me what I enjoy?",
            "Guess what I like. A hint: {a}.",
            "If I say that I like {a}, what do I like?",
        ),
        ("You like {a}.", "Your favorite thing is {a}."),
        ("a",),
        (),
        _short,
    ),
    Task(
        "use",
        ("a",),
        (
            "Use the word {a} in a sentence.",
            "Say something with the word {a}.",
            "Can you use the word {a}?",
            "Make a sentence with {a} in it.",
            "I need a sentence with the word {a}.",
            "Write one line with the word {a}.",
        ),
        ("I like to talk about {a} with people.", "My friend told me about {a} today."),
        ("a",),
        (),
        _statement,
    ),
    Task(
        "ending",
        ("a", "ending"),
        (
            "Always end with the word {ending}. Tell me something about {a}.",
            "What do you think about {a}? End with the word {ending}.",
            "Always end with the word {ending}. Do you like {a}?",
            "I want to hear about {a}. End with the word {ending}.",
        ),
        ("I think {a} can be a lot of fun, {ending}.", "I like {a} very much, {ending}."),
        ("a", "ending"),
        (),
        _ends_with,
    ),
)
BY_NAME = {task.name: task for task in TASKS}


def succeeds(task: str, arguments: Arguments, answer: str) -> bool:
    """Whether an answer does what the instruction asked: every required word, no forbidden one, the family's own rule, and no echo of
    the instruction itself (which names its words, too)."""
    family = BY_NAME[task]
    words = words_of(answer)
    present = set(words)
    return (
        all(arguments[slot].lower() in present for slot in family.required)
        and not any(arguments[slot].lower() in present for slot in family.forbidden)
        and family.holds(arguments, answer, words)
        and (family.may_echo or not any(echoes(answer, _filled(template, arguments)) for template in family.templates))
    )


def coverage(task: str, arguments: Arguments, answer: str) -> float:
    """Share of the instruction's words that an answer handles rightly (named if required, absent if forbidden), in [0, 1]."""
    family = BY_NAME[task]
    present = set(words_of(answer))
    right = [arguments[slot].lower() in present for slot in family.required]
    if any(right) or not family.required:
        right += [arguments[slot].lower() not in present for slot in family.forbidden]
    return sum(right) / len(right) if right else 0.0


def _filled(template: str, arguments: Arguments) -> str:
    capitals = {slot.capitalize() if len(slot) > 1 else slot.upper(): word.capitalize() for slot, word in arguments.items()}
    return template.format(**arguments, **capitals)


def instruction_prompts(split: Split, count: int, *, validation: float, test: float, seed: int) -> list[Prompt]:
    """`count` different prompts of one split, deterministic by `seed`; the families in turn, so in equal shares while their words last.

    TampuError if the templates and the split's words do not give that many.
    """
    generators = [_prompts_of(task, split, validation, test, random.Random(f"{seed}/{task.name}/{split}")) for task in TASKS]
    found: dict[str, Prompt] = {}
    misses = 0
    while len(found) < count:
        for generator in generators:
            prompt = next(generator)
            misses = misses + 1 if prompt.prompt_id in found else 0
            found.setdefault(prompt.prompt_id, prompt)
        if misses > 2_000:
            raise TampuError(
                f"{count} different instruction prompts asked for, the templates and words of {split} give only {len(found)}: ask for fewer"
            )
    return list(found.values())[:count]


def _prompts_of(task: Task, split: Split, validation: float, test: float, chance: random.Random) -> Iterator[Prompt]:
    shares = {"validation": validation, "test": test}
    words = {slot: in_split(ENDINGS if slot == "ending" else TOPICS, task.name, split, **shares) for slot in task.slots}
    while True:
        arguments: Arguments = {}
        for slot in task.slots:
            choices = [word for word in words[slot] if word not in arguments.values()]
            if not choices:
                raise TampuError(f"{split} has too few words for the instruction family {task.name!r}: raise the share of {split}")
            arguments[slot] = chance.choice(choices)
        yield Prompt(
            messages=user(_filled(chance.choice(task.templates), arguments)),
            family="task",
            split=split,
            task=task.name,
            topic=" ".join([task.name, *arguments.values()]),
            arguments=arguments,
        )


def demonstration(prompt: Prompt, seed: int) -> str:
    """A right answer to an instruction, as an annotator would write it; which of the forms is decided by the prompt."""
    chance = random.Random(f"{seed}/{prompt.prompt_id}")
    return _filled(chance.choice(BY_NAME[prompt.task].answers), prompt.arguments)
