"""Chat formats behind one interface: Llama 2's, and the Jinja template that comes with an imported model."""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, Literal, Protocol

from model.dialogue import TAGS, Example, Message, decode_answer, encode_dialogue, encode_prompt
from model.optional import optional
from model.tokenizer import Tokenizer
from model.tokenizer_json import JsonTokenizer

Learn = Literal["answers", "last"]

# Llama 2's format for readers of chat templates. Tags in a message are refused as `model.dialogue` does; special tokens are too, because
# such readers would take them for themselves.
LLAMA2_TEMPLATE = """\
{%- set first = messages[0] if messages else raise_exception('a dialogue needs at least one user message') -%}
{%- set spoken = messages[1:] if first['role'] == 'system' else messages -%}
{%- if not spoken -%}{{ raise_exception('a dialogue needs at least one user message') }}{%- endif -%}
{%- for message in messages -%}
{%- for tag in ['[INST]', '[/INST]', '<<SYS>>', '<</SYS>>', bos_token, eos_token] -%}
{%- if tag in message['content'] -%}{{ raise_exception('a message contains the tag ' + tag + ', which is reserved') }}{%- endif -%}
{%- endfor -%}
{%- endfor -%}
{%- for message in spoken -%}
{%- if message['role'] != ('user' if loop.index0 % 2 == 0 else 'assistant') -%}
{{ raise_exception('roles must be an optional system, then user and assistant in turn') }}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{%- if loop.index0 == 0 and first['role'] == 'system' -%}
{%- set content = '<<SYS>>\\n' + first['content'] + '\\n<</SYS>>\\n\\n' + message['content'] -%}
{%- else -%}
{%- set content = message['content'] -%}
{%- endif -%}
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
{%- else -%}
{{ ' ' + message['content'].strip() + ' ' + eos_token }}
{%- endif -%}
{%- endfor -%}
"""
_PROBE: list[Message] = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": "a"},
    {"role": "user", "content": "w"},
]
_PROBED = "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nu [/INST] a </s><s>[INST] w [/INST]"


class ChatFormat(Protocol):
    """How a dialogue becomes tokens, and tokens an answer. `tags` may stand in no message: they would let its writer forge turns."""

    tags: tuple[str, ...]

    @property
    def tokenizer(self) -> Tokenizer: ...

    def prompt(self, messages: list[Message]) -> list[int]:
        """Tokens up to where the next answer begins. Raises ValueError for roles in the wrong order, and for a tag in a message."""
        ...

    def example(self, messages: list[Message], learn: Learn = "answers") -> Example:
        """Tokens of a dialogue that ends with an answer and its EOS; learned are all answers with their EOS, or the last only.

        `prompt` of all messages but the last is a prefix of the tokens. Raises ValueError as `prompt` does.
        """
        ...

    def answer(self, ids: list[int]) -> str:
        """The text of a generated answer, up to its EOS, without tags and surrounding space."""
        ...


class Llama2Chat:
    """`model.dialogue`'s format, which is text between BOS and EOS and so goes with any tokenizer."""

    tags: tuple[str, ...] = TAGS

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def prompt(self, messages: list[Message]) -> list[int]:
        return encode_prompt(self.tokenizer, messages)

    def example(self, messages: list[Message], learn: Learn = "answers") -> Example:
        return encode_dialogue(self.tokenizer, messages, learn)

    def answer(self, ids: list[int]) -> str:
        return _without(decode_answer(self.tokenizer, ids), self.tags)


class TemplateChat:
    """An imported chat template, run in Jinja's sandbox. Special tokens of the tokenizer are its tags."""

    def __init__(self, tokenizer: JsonTokenizer, template: str, settings: Mapping[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.template, self.settings = template, settings
        self.tags = tuple(sorted(tokenizer.marks, key=len, reverse=True))

    def prompt(self, messages: list[Message]) -> list[int]:
        self._check_tags(messages)
        return self.tokenizer.encode_marked(self._begun(messages))

    def example(self, messages: list[Message], learn: Learn = "answers") -> Example:
        self._check_tags(messages)
        if learn not in ("answers", "last"):
            raise ValueError(f"learn is {learn!r}; it must be 'answers' or 'last'")
        if not messages or messages[-1]["role"] != "assistant":
            raise ValueError("the last message of a dialogue must be the assistant's")
        begun = self._begun(messages[:-1])
        answer = self.tokenizer.encode_marked(_continued(render(self.template, messages, self.settings, answering=False), begun))
        answer = answer[: self._end(answer)]
        tokens, starts = self.tokenizer.encode_marked_with_starts(begun)
        learned = [False] * len(tokens)
        earlier = [index for index, message in enumerate(messages[:-1]) if message["role"] == "assistant"]
        for index in earlier if learn == "answers" else ():
            before = self._begun(messages[:index])
            _continued(begun, before)
            first = bisect_left(starts, len(before))
            end = self._end(tokens, first)
            learned[first:end] = [True] * (end - first)
        return Example(tokens + answer, learned + [True] * len(answer))

    def answer(self, ids: list[int]) -> str:
        return _without(decode_answer(self.tokenizer, ids), self.tags)

    def _check_tags(self, messages: list[Message]) -> None:
        for index, message in enumerate(messages):
            for tag in self.tags:
                if tag in message["content"]:
                    raise ValueError(f"message {index} ({message['role']}) contains the tag {tag}, which is reserved; remove it")

    def _begun(self, messages: list[Message]) -> str:
        """The text up to where the next answer begins."""
        if not messages or messages[-1]["role"] != "user":
            raise ValueError("the last message of a prompt must be the user's")
        return render(self.template, messages, self.settings)

    def _end(self, tokens: list[int], first: int = 0) -> int:
        """The place after the first EOS from `first` on."""
        if self.tokenizer.eos_id not in tokens[first:]:
            raise ValueError("the chat template writes no EOS after an answer: a model can not learn from it where to stop")
        return tokens.index(self.tokenizer.eos_id, first) + 1


def _continued(text: str, begun: str) -> str:
    """What comes after `begun` in `text`."""
    if not text.startswith(begun):
        raise ValueError("the chat template writes the messages before an answer otherwise once it is there: it can not be trained on")
    return text[len(begun) :]


def _without(text: str, tags: tuple[str, ...]) -> str:
    """A small model now and then writes a tag, which would be refused when its answer comes back as history: it becomes a space."""
    for tag in tags:
        text = text.replace(tag, " ")
    return text.strip()


def is_llama2(template: str) -> bool:
    """Whether a chat template writes Llama 2's format."""
    if template == LLAMA2_TEMPLATE:
        return True
    try:
        return render(template, _PROBE, {"bos_token": "<s>", "eos_token": "</s>"}).rstrip() == _PROBED
    except ValueError as error:
        if type(error) is not ValueError:  # a package is missing
            raise
        return False


def render(template: str, messages: list[Message], settings: Mapping[str, Any], *, answering: bool = True) -> str:
    """What a chat template writes for a dialogue whose answer comes next, or that ends; its special tokens come from `settings`.

    The environment is transformers': sandboxed, with `raise_exception`, `break` and `continue`. Only `strftime_now` is missing: a clock
    would make equal dialogues differ (Llama 3's template then takes the date that is written in it). Raises ValueError with the
    template's own complaint, or where it does what the sandbox forbids.
    """
    jinja2 = optional("jinja2", "import", "a chat template")
    special = {name: settings.get(name) or "" for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    try:
        return _compiled(template).render(messages=messages, add_generation_prompt=answering, **special)
    except (jinja2.TemplateError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(f"the chat template refuses the dialogue: {error}") from None


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    jinja2 = optional("jinja2", "import", "a chat template")
    sandbox = optional("jinja2.sandbox", "import", "a chat template")

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment = sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template)
