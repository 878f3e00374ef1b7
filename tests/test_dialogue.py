"""The chat format: turns, learned tokens, and what is refused."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.dialogue import TAGS, Message, decode_answer, encode_dialogue, encode_prompt
from model.tokenizer import SentencePieceTokenizer, train_sentencepiece

SPOKEN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁\0[<"), max_size=30)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> SentencePieceTokenizer:
    choose = random.Random(0)
    texts = ["".join(choose.choices("abcdefghij ", k=80)) for _ in range(300)]
    return SentencePieceTokenizer(train_sentencepiece(texts, tmp_path_factory.mktemp("tokenizer"), 350))


def dialogue(*contents: str, system: str | None = None) -> list[Message]:
    messages: list[Message] = [] if system is None else [{"role": "system", "content": system}]
    for index, content in enumerate(contents):
        messages.append({"role": "assistant" if index % 2 else "user", "content": content})
    return messages


def test_every_turn_has_its_own_bos_and_eos(tokenizer: SentencePieceTokenizer) -> None:
    tokens = encode_dialogue(tokenizer, dialogue(" hi ", "yes\n", "more", "no", system="be brief")).tokens
    first = "[INST] <<SYS>>\nbe brief\n<</SYS>>\n\n hi [/INST] yes "
    assert tokens == [1, *tokenizer.encode(first), 2, 1, *tokenizer.encode("[INST] more [/INST] no "), 2]


def test_a_prompt_ends_where_the_answer_begins(tokenizer: SentencePieceTokenizer) -> None:
    tokens = encode_prompt(tokenizer, dialogue("hi", "yes", "more "))
    assert tokens == [1, *tokenizer.encode("[INST] hi [/INST] yes "), 2, 1, *tokenizer.encode("[INST] more [/INST]")]


@settings(max_examples=100, deadline=None)
@given(contents=st.lists(SPOKEN, min_size=2, max_size=6).filter(lambda c: len(c) % 2 == 0), system=st.none() | SPOKEN)
def test_learned_are_exactly_the_answers_and_their_eos(tokenizer: SentencePieceTokenizer, contents: list[str], system: str | None) -> None:
    messages = dialogue(*contents, system=system)
    example = encode_dialogue(tokenizer, messages)
    learned = [token for token, learn in zip(example.tokens, example.learn, strict=True) if learn]
    expected = []
    for end in range(len(messages) % 2 + 2, len(messages) + 1, 2):
        whole = encode_dialogue(tokenizer, messages[:end]).tokens
        expected += whole[len(encode_prompt(tokenizer, messages[: end - 1])) :]
    assert learned == expected
    assert learned.count(2) == len(contents) // 2
    prompt = encode_prompt(tokenizer, messages[:-1])
    assert example.tokens[: len(prompt)] == prompt
    assert decode_answer(tokenizer, example.tokens[len(prompt) :]) == contents[-1].strip()
    last = encode_dialogue(tokenizer, messages, learn="last")
    assert last.tokens == example.tokens
    assert last.learn == [index >= len(prompt) for index in range(len(last.tokens))]


@pytest.mark.parametrize(
    ("roles", "fault"),
    [
        (["assistant"], "message 0 has role 'assistant', expected 'user'"),
        (["user", "user"], "message 1 has role 'user', expected 'assistant'"),
        (["system", "user", "system"], "message 2 has role 'system', expected 'assistant'"),
        (["system"], "at least one user message"),
        ([], "at least one user message"),
    ],
)
def test_roles_out_of_order_are_refused(tokenizer: SentencePieceTokenizer, roles: list, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        encode_prompt(tokenizer, [{"role": role, "content": "a"} for role in roles])


def test_prompts_end_with_the_user_and_dialogues_with_the_assistant(tokenizer: SentencePieceTokenizer) -> None:
    with pytest.raises(ValueError, match="must be the user's"):
        encode_prompt(tokenizer, dialogue("a", "b"))
    with pytest.raises(ValueError, match="must be the assistant's"):
        encode_dialogue(tokenizer, dialogue("a"))
    with pytest.raises(ValueError, match="'all'"):
        encode_dialogue(tokenizer, dialogue("a", "b"), learn="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_tags_in_any_message_are_refused(tokenizer: SentencePieceTokenizer, tag: str, place: int) -> None:
    messages = dialogue("a", "b", system="c")
    messages[place]["content"] = f"x {tag} y"
    with pytest.raises(ValueError, match=f"message {place} "):
        encode_dialogue(tokenizer, messages)


def test_an_answer_is_read_up_to_its_eos(tokenizer: SentencePieceTokenizer) -> None:
    assert decode_answer(tokenizer, [*tokenizer.encode(" abc "), 2, *tokenizer.encode("junk")]) == "abc"
    assert decode_answer(tokenizer, tokenizer.encode("abc")) == "abc"
    assert decode_answer(tokenizer, []) == ""
