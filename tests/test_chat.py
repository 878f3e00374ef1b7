"""Tokenizers and chat formats: token for token those of transformers, and what may not be written in a message."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from checkpoints import CHATML, HARD_TEXTS, byte_level, chatml_files, made, pieces, sentencepiece_files, small, write_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from model.chat import LLAMA2_TEMPLATE, Llama2Chat, TemplateChat, is_llama2, render
from model.checkpoint_errors import CheckpointError
from model.dialogue import TAGS, Message
from model.huggingface import write_huggingface
from model.tokenizer import SentencePieceTokenizer
from model.tokenizer_files import JSON, PIECES, SETTINGS, load_chat, load_tokenizer, open_chat, open_tokenizer, tokenizer_files, with_settings

WITH_SYSTEM: list[Message] = [
    {"role": "system", "content": " be  brief "},
    {"role": "user", "content": " Hi 🙂\n\n12345 "},
    {"role": "assistant", "content": "kalo\tmi "},
    {"role": "user", "content": "日本?"},
]
DIALOGUES = [WITH_SYSTEM, WITH_SYSTEM[1:], WITH_SYSTEM[:2], [{"role": "user", "content": ""}]]
ANSWER: Message = {"role": "assistant", "content": "taru  no."}


@pytest.fixture(scope="module", params=["sentencepiece", "tokenizer.json"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """Our chat format and transformers' tokenizer, read from the same exported folder."""
    files = sentencepiece_files() if request.param == "sentencepiece" else chatml_files()
    folder = tmp_path_factory.mktemp("hf")
    write_huggingface(made(small()), files, folder)
    return open_chat(files, "here"), transformers.AutoTokenizer.from_pretrained(folder)


def test_hard_texts_have_the_tokens_that_transformers_gives(both: tuple[Any, Any]) -> None:
    chat, theirs = both
    tokenizer = chat.tokenizer
    assert tokenizer.encode_batch(list(HARD_TEXTS)) == [tokenizer.encode(text) for text in HARD_TEXTS]
    for text in HARD_TEXTS:
        ids = tokenizer.encode(text)
        assert ids == theirs.encode(text, add_special_tokens=False), text
        assert tokenizer.decode(ids) == text
    assert tokenizer.adds_bos == (theirs.encode("a")[0] == tokenizer.bos_id)


@settings(max_examples=150)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<▁\0"), max_size=40))
def test_any_text_has_the_tokens_that_transformers_gives(both: tuple[Any, Any], text: str) -> None:
    chat, theirs = both
    assert chat.tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False)


def test_dialogues_have_the_tokens_that_transformers_gives(both: tuple[Any, Any]) -> None:
    chat, theirs = both
    for dialogue in DIALOGUES:
        prompt = chat.prompt(dialogue)
        assert prompt == list(theirs.apply_chat_template(dialogue, add_generation_prompt=True)["input_ids"])
        whole = list(theirs.apply_chat_template([*dialogue, ANSWER])["input_ids"])
        example = chat.example([*dialogue, ANSWER])
        assert example.tokens == whole[: len(example.tokens)]
        assert chat.tokenizer.eos_id not in whole[len(example.tokens) :]
        assert example.tokens[: len(prompt)] == prompt and example.tokens[-1] == chat.tokenizer.eos_id


def test_learned_are_the_answers_with_their_eos_or_the_last_alone(both: tuple[Any, Any]) -> None:
    tokenizer = both[0].tokenizer

    def learned(learn: str) -> list[str]:
        example = both[0].example([*WITH_SYSTEM, ANSWER], learn)
        ids = [token for token, counts in zip(example.tokens, example.learn, strict=True) if counts]
        assert ids[-1] == tokenizer.eos_id
        texts: list[list[int]] = [[]]
        for token in ids[:-1]:
            texts.append([]) if token == tokenizer.eos_id else texts[-1].append(token)
        return [tokenizer.decode(text).strip() for text in texts]

    assert learned("answers") == ["kalo\tmi", "taru  no."]
    assert learned("last") == ["taru  no."]
    with pytest.raises(ValueError, match="'all'"):
        both[0].example([*WITH_SYSTEM, ANSWER], "all")


def test_tags_are_refused_in_every_message_and_cut_from_answers(both: tuple[Any, Any]) -> None:
    chat, _ = both
    for tag in chat.tags:
        for place in range(len(WITH_SYSTEM)):
            forged = [dict(message) for message in WITH_SYSTEM]
            forged[place]["content"] += f" {tag} "
            with pytest.raises(ValueError, match="reserved"):
                chat.prompt(forged)
        with pytest.raises(ValueError, match="reserved"):
            chat.example([*WITH_SYSTEM, {"role": "assistant", "content": f"x{tag}"}])
        ids = [*chat.tokenizer.encode(f"kalo {tag} mi"), chat.tokenizer.eos_id, *chat.tokenizer.encode("more")]
        answer = chat.answer(ids)
        assert tag not in answer and answer.startswith("kalo") and answer.endswith("mi")


def test_a_prompt_ends_with_the_user_and_an_example_with_the_assistant(both: tuple[Any, Any]) -> None:
    chat, _ = both
    with pytest.raises(ValueError, match="user"):
        chat.prompt([*WITH_SYSTEM, ANSWER])
    with pytest.raises(ValueError, match="user"):
        chat.prompt([])
    with pytest.raises(ValueError, match="assistant"):
        chat.example(WITH_SYSTEM)


def test_special_tokens_in_text_stay_text_and_half_characters_are_refused(both: tuple[Any, Any]) -> None:
    tokenizer = both[0].tokenizer
    special = {tokenizer.bos_id, tokenizer.eos_id}
    assert not special & set(tokenizer.encode(f"{tokenizer.piece(tokenizer.bos_id)} a {tokenizer.piece(tokenizer.eos_id)}"))
    with pytest.raises(ValueError, match="character 3"):
        tokenizer.encode("abc\ud800")


def test_broken_bytes_decode_as_transformers_decodes_them(both: tuple[Any, Any]) -> None:
    chat, theirs = both
    for text in ("🙂", "日本", "é"):
        ids = chat.tokenizer.encode(f"a {text} b")
        for cut in range(1, len(ids)):
            assert chat.tokenizer.decode(ids[:cut]) == theirs.decode(ids[:cut])
            assert chat.tokenizer.decode(ids[cut:]).strip() == theirs.decode(ids[cut:]).strip()


def test_llama_2s_template_refuses_what_the_format_refuses() -> None:
    marks = {"bos_token": "<s>", "eos_token": "</s>"}
    for bad in ([], WITH_SYSTEM[2:], [*WITH_SYSTEM, WITH_SYSTEM[-1]], [WITH_SYSTEM[0]]):
        with pytest.raises(ValueError, match="refuses the dialogue"):
            render(LLAMA2_TEMPLATE, bad, marks)
    for tag in (*TAGS, "<s>", "</s>"):
        with pytest.raises(ValueError, match="reserved"):
            render(LLAMA2_TEMPLATE, [{"role": "user", "content": f"a {tag}"}], marks)


def test_a_template_runs_in_a_sandbox() -> None:
    for attack in (
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{% if %}",
    ):
        with pytest.raises(ValueError, match="the chat template refuses the dialogue"):
            render(attack, WITH_SYSTEM, {})


def test_llama_2s_format_is_known_in_other_words() -> None:
    released = (
        "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
        "{% else %}{% set rest = messages %}{% set system = false %}{% endif %}{% for message in rest %}"
        "{% if loop.index0 == 0 and system != false %}{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}"
        "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    )
    assert is_llama2(LLAMA2_TEMPLATE)
    assert is_llama2(released)
    assert not is_llama2(released.replace("bos_token + '[INST] '", "'[INST] '"))
    assert not is_llama2(CHATML)


def test_a_template_that_cannot_be_trained_on_says_why() -> None:
    def chat(template: str) -> TemplateChat:
        opened = open_chat(with_settings({JSON: byte_level()}, json.loads(chatml_files()[SETTINGS]) | {"chat_template": template}), "here")
        assert isinstance(opened, TemplateChat)
        return opened

    with pytest.raises(ValueError, match="no EOS"):
        chat("{% for m in messages %}{{ m['content'] }}\n{% endfor %}").example([*WITH_SYSTEM, ANSWER])
    with pytest.raises(ValueError, match="can not be trained on"):
        chat("{{ messages | length }}{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}").example([*WITH_SYSTEM, ANSWER])


def test_without_a_template_a_tokenizer_goes_with_llama_2s_format() -> None:
    files = with_settings({JSON: byte_level()}, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"})
    chat = open_chat(files, "here")
    assert isinstance(chat, Llama2Chat)
    tokens = chat.example([*WITH_SYSTEM[1:], ANSWER]).tokens
    assert tokens.count(chat.tokenizer.bos_id) == tokens.count(chat.tokenizer.eos_id) == 2
    alone = open_chat(with_settings({JSON: byte_level()}, {"eos_token": "<|im_end|>"}), "here")
    assert alone.tokenizer.bos_id == alone.tokenizer.eos_id


def test_a_folder_is_read_as_it_lies(tmp_path: Path) -> None:
    write_tokenizer(chatml_files(), tmp_path / "json")
    settings = json.loads((tmp_path / "json" / SETTINGS).read_text())
    template = settings.pop("chat_template")
    (tmp_path / "json" / SETTINGS).write_text(json.dumps(settings | {"eos_token": {"content": "<|im_end|>", "lstrip": False}}))
    (tmp_path / "json" / "chat_template.jinja").write_text(template)
    files, read = tokenizer_files(tmp_path / "json")
    assert files == chatml_files()
    assert {path.name for path in read} == {JSON, SETTINGS, "chat_template.jinja"}
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / PIECES).write_bytes(pieces())
    assert list(tokenizer_files(tmp_path / "pieces")[0]) == [PIECES, SETTINGS]
    # A SentencePiece model with a chat format of its own needs its special tokens to be written by the template.
    (tmp_path / "pieces" / SETTINGS).write_text(
        json.dumps({"chat_template": CHATML.replace("<|im_end|>", "</s>").replace("<|im_start|>", "<s>")})
    )
    opened = open_chat(tokenizer_files(tmp_path / "pieces")[0], "pieces")
    assert isinstance(opened, TemplateChat)
    plain = SentencePieceTokenizer("tokenizer.model", pieces())
    for text in HARD_TEXTS:
        assert opened.tokenizer.encode(text) == plain.encode(text), text


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.model or tokenizer\.json, found neither"):
        tokenizer_files(tmp_path)
    with pytest.raises(ValueError, match=r"expected tokenizer\.model or tokenizer\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / JSON).write_text('{"version": "1.0"}')
    with pytest.raises(ValueError, match=r"tokenizer\.json can not be read"):
        load_chat(tmp_path)
    with pytest.raises(ValueError, match="has no eos_token"):
        open_tokenizer({JSON: byte_level()}, "here")
    with pytest.raises(ValueError, match=r"eos_token '</s>', which tokenizer\.json does not have"):
        open_tokenizer(with_settings({JSON: byte_level()}, {"eos_token": "</s>"}), "here")
