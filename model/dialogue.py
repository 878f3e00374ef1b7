"""The chat format of Llama 2 (Meta's `generation.py`): every turn is `BOS [INST] user [/INST] answer EOS`, the tags being ordinary text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from model.tokenizer import Tokenizer


class Message(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class Example:
    """A tokenized dialogue; `learn[i]` says whether predicting `tokens[i]` from what precedes it is part of the loss."""

    tokens: list[int]
    learn: list[bool]


TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")


def encode_prompt(tokenizer: Tokenizer, messages: list[Message]) -> list[int]:
    """Tokens of a dialogue up to where the next answer begins; the last message is the user's.

    Raises ValueError for roles in the wrong order, and for a message that contains one of the format's tags, which would let its
    writer forge turns.
    """
    turns = _turns(messages)
    if turns[-1][1] is not None:
        raise ValueError("the last message of a prompt is the assistant's; it must be the user's")
    tokens: list[int] = []
    for user, answer in turns[:-1]:
        tokens += _turn(tokenizer, user, answer).tokens
    return [*tokens, tokenizer.bos_id, *tokenizer.encode(_instruction(turns[-1][0]))]


def encode_dialogue(tokenizer: Tokenizer, messages: list[Message], learn: Literal["answers", "last"] = "answers") -> Example:
    """Tokens of a dialogue that ends with an answer. Learned are the tokens of the answers and the EOS after each, or of the last only.

    `encode_prompt` of all messages but the last is a prefix of the tokens. Raises ValueError as `encode_prompt` does.
    """
    if learn not in ("answers", "last"):
        raise ValueError(f"learn is {learn!r}; it must be 'answers' or 'last'")
    turns = _turns(messages)
    if turns[-1][1] is None:
        raise ValueError("the last message of a dialogue is the user's; it must be the assistant's")
    tokens: list[int] = []
    mask: list[bool] = []
    for index, (user, answer) in enumerate(turns):
        turn = _turn(tokenizer, user, answer)
        tokens += turn.tokens
        mask += turn.learn if learn == "answers" or index == len(turns) - 1 else [False] * len(turn.learn)
    return Example(tokens, mask)


def decode_answer(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of a generated answer, up to its EOS if it has one, without surrounding space."""
    ids = list(ids)
    if tokenizer.eos_id in ids:
        ids = ids[: ids.index(tokenizer.eos_id)]
    return tokenizer.decode(ids).strip()


def _turns(messages: list[Message]) -> list[tuple[str, str | None]]:
    """(user, answer) pairs, the system message glued to the first user message; the last answer may be missing."""
    for index, message in enumerate(messages):
        for tag in TAGS:
            if tag in message["content"]:
                raise ValueError(f"message {index} ({message['role']}) contains the tag {tag}, which is reserved; remove it")
    spoken = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not spoken:
        raise ValueError("a dialogue needs at least one user message")
    for index, message in enumerate(spoken):
        expected = ("user", "assistant")[index % 2]
        if message["role"] != expected:
            raise ValueError(
                f"message {index + len(messages) - len(spoken)} has role {message['role']!r}, expected {expected!r}: "
                "an optional system message, then user and assistant in turn"
            )
    contents = [message["content"] for message in spoken]
    if len(spoken) < len(messages):
        contents[0] = f"<<SYS>>\n{messages[0]['content']}\n<</SYS>>\n\n{contents[0]}"
    answers: list[str | None] = [*contents[1::2]]
    if len(answers) < len(contents[0::2]):
        answers.append(None)
    return list(zip(contents[0::2], answers, strict=True))


def _instruction(user: str) -> str:
    return f"[INST] {user.strip()} [/INST]"


def _turn(tokenizer: Tokenizer, user: str, answer: str | None) -> Example:
    """One finished turn, tokenized as a whole; learned is what follows the instruction."""
    assert answer is not None
    prompt = tokenizer.encode(_instruction(user))
    whole = tokenizer.encode(f"{_instruction(user)} {answer.strip()} ")
    if whole[: len(prompt)] != prompt:
        raise ValueError("this tokenizer joins the end of an instruction with the answer's beginning; it must split at spaces as Llama's does")
    tokens = [tokenizer.bos_id, *whole, tokenizer.eos_id]
    learned = len(whole) - len(prompt) + 1
    return Example(tokens, [False] * (len(tokens) - learned) + [True] * learned)
