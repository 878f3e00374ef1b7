"""The embedded default's prompts, all of them from one place, so that SFT, collection, RLHF and tests divide the same pool."""

from collections.abc import Sequence
from dataclasses import dataclass

from resources.prompts.instructions import instruction_prompts
from resources.prompts.prompt import Prompt
from resources.prompts.safety import borderline_prompts, unsafe_prompts, unseen_action_prompts
from resources.splits import Split, fraction_of


@dataclass(frozen=True)
class Conversation:
    """A human conversation: turns of two alternating speakers, and the split that its id belongs to."""

    conversation_id: str
    turns: tuple[str, ...]
    split: Split


@dataclass(frozen=True)
class PoolSizes:
    """How many prompts of each family a split gets."""

    tasks: int
    unsafe: int
    borderline: int
    chats: int
    unseen_actions: int = 0


def template_prompts(split: Split, sizes: PoolSizes, *, validation: float, test: float, seed: int) -> list[Prompt]:
    """The template-made prompts of one split: instructions, adversarial and borderline ones."""
    shares = {"validation": validation, "test": test, "seed": seed}
    prompts = instruction_prompts(split, sizes.tasks, **shares)  # type: ignore[arg-type]
    prompts += unsafe_prompts(split, sizes.unsafe, **shares)  # type: ignore[arg-type]
    prompts += borderline_prompts(split, sizes.borderline, **shares)  # type: ignore[arg-type]
    if sizes.unseen_actions:
        prompts += unseen_action_prompts(sizes.unseen_actions, **shares)  # type: ignore[arg-type]
    return prompts


def chat_prompts(conversations: Sequence[Conversation], count: int, *, most_words: int = 25) -> list[Prompt]:
    """One prompt a conversation, `count` at most: its opening up to a user turn (one or three turns of `most_words` words at most).

    Conversations are taken in an order given by a hash of their ids; those whose opening is too long are passed over.
    """
    prompts: list[Prompt] = []
    for talk in sorted(conversations, key=lambda talk: fraction_of(talk.conversation_id, "chat-prompts")):
        if len(prompts) == count:
            break
        length = 1 if fraction_of(talk.conversation_id, "chat-length") < 0.6 else 3
        turns = talk.turns[:length]
        if len(turns) < length or any(not 2 <= len(turn.split()) <= most_words for turn in turns):
            continue
        messages = [{"role": "assistant" if index % 2 else "user", "content": turn} for index, turn in enumerate(turns)]
        prompts.append(Prompt(messages=messages, family="chat", split=talk.split, topic=talk.conversation_id))
    return prompts
