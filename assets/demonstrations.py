"""Demonstrations of one's own: public formats of dialogues to learn from, read line by line; nothing is dropped.

Formats: `messages` (`role` and `content`; also with `label`, of which false is kept out), `sharegpt` (`conversations` of `from` and
`value`), `instructions` (`instruction`, `input`, `output`, or `prompt` and `completion`), and `oasst-paths`, the best-ranked path through each
OpenAssistant tree. A file may begin with an `Origin` line, as `tampu ingest` writes it.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import polars as pl
from pydantic import BaseModel, Field, model_validator

from assets.preferences.formats import ChatTurn, Messages, TreeNode, Turn, with_input
from assets.preferences.reading import LOOKED_AT, MOST_CHARACTERS, QUARANTINE, Origin, reason_of, refused, split_origin
from assets.preferences.schema import Message, check_roles
from resources.prompts.prompt import prompt_identity

COLUMNS = {"line": pl.Int64, "prompt_id": pl.String, "messages": pl.String, "turns": pl.Int64, "is_safety": pl.Boolean, "source": pl.String}
END_OF_TEXT = "<|endoftext|>"  # GPT's separator, which some sets leave at the end of a completion


class Demonstration(BaseModel):
    """A dialogue that ends with an answer to learn from; `is_safety` says whether it shows how to meet an adversarial prompt, if known."""

    messages: list[Message] = Field(min_length=2)
    is_safety: bool | None = None

    @model_validator(mode="after")
    def _alternates(self) -> "Demonstration":
        check_roles([message.role for message in self.messages], last="assistant")
        return self


class ChatMessages(BaseModel):
    """Messages with `role` and `content`."""

    NAME: ClassVar[str] = "messages"
    messages: list[ChatTurn]
    label: bool = True
    is_safety: bool | None = None

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        return isinstance(record.get("messages"), list)

    def dialogue(self) -> Messages:
        if not self.label:
            raise ValueError("labelled as undesirable")
        return [turn.message() for turn in self.messages]


class ShareGPT(BaseModel):
    """ShareGPT's dialogues."""

    NAME: ClassVar[str] = "sharegpt"
    conversations: list[Turn]
    system: str | None = None
    is_safety: bool | None = None

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        return isinstance(record.get("conversations"), list) and not {"chosen", "rejected"} & record.keys()

    def dialogue(self) -> Messages:
        before = [{"role": "system", "content": self.system}] if self.system else []
        return before + [turn.message() for turn in self.conversations]


class Instruction(BaseModel):
    """Alpaca's and Dolly's rows, and prompt with completion."""

    NAME: ClassVar[str] = "instructions"
    instruction: str | None = None
    prompt: str | None = None
    given: str | None = Field(default=None, validation_alias="input")
    context: str | None = None
    output: str | None = None
    completion: str | None = None
    response: str | None = None
    is_safety: bool | None = None

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        asked, answered = ("instruction", "prompt"), ("output", "completion", "response")
        return any(isinstance(record.get(key), str) for key in asked) and any(isinstance(record.get(key), str) for key in answered)

    def dialogue(self) -> Messages:
        asked = self.instruction if self.instruction is not None else self.prompt
        answer = next((text for text in (self.output, self.completion, self.response) if text is not None), None)
        if asked is None or answer is None:
            raise ValueError(f"{'instruction' if asked is None else 'output'}: missing")
        return [*with_input(asked, self.given or self.context), {"role": "assistant", "content": answer.strip().removesuffix(END_OF_TEXT)}]


class OpenAssistantPaths(BaseModel):
    """The best path through an OpenAssistant tree: at each message the reply of the best rank, the first where none is ranked."""

    NAME: ClassVar[str] = "oasst-paths"
    prompt: TreeNode
    is_safety: bool | None = None

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        return isinstance(record.get("prompt"), dict) and "replies" in record["prompt"]

    def dialogue(self) -> Messages:
        node, path = self.prompt, [self.prompt.message()]
        while node.replies:
            node = min(node.replies, key=lambda reply: (reply.rank is None, reply.rank or 0))
            path.append(node.message())
        while path and path[-1]["role"] != "assistant":
            path.pop()
        if not path:
            raise ValueError("no answer in the tree")
        return path


BY_NAME: dict[str, type[Any]] = {one.NAME: one for one in (ChatMessages, ShareGPT, OpenAssistantPaths, Instruction)}


@dataclass(frozen=True)
class Demonstrations:
    """`accepted` with `COLUMNS`, `quarantined` with line, reason and text; together all `read` lines."""

    accepted: pl.DataFrame
    quarantined: pl.DataFrame
    read: int
    format: str

    @property
    def reasons(self) -> dict[str, int]:
        return dict(sorted(Counter(self.quarantined["reason"].to_list()).items()))


def detect(lines: list[tuple[int, bytes]]) -> str | None:
    """The format that most of the first records are of, or None where most are of none."""
    votes: Counter[str | None] = Counter()
    for _, line in lines[:LOOKED_AT]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            votes[next((name for name, one in BY_NAME.items() if one.claims(record)), None)] += 1
    return votes.most_common(1)[0][0] if votes else None


def read_demonstrations(raw: bytes, *, most_characters: int = MOST_CHARACTERS) -> Demonstrations:
    """Validate every line of a file; each is accepted or quarantined with its reason. Lines of no known format are read as `messages`."""
    parts = split_origin(raw, BY_NAME)
    lines, origin = parts.numbered, parts.origin
    if parts.problem:
        return Demonstrations(pl.DataFrame(schema=COLUMNS), refused(parts), len(lines), ChatMessages.NAME)
    if origin is None:
        found = detect(lines) or ChatMessages.NAME
        origin = Origin(format=found, source=found)
    rows: list[dict[str, Any]] = []
    bad: list[tuple[int, str, str]] = []
    seen: set[str] = set()
    for line, content in lines:
        try:
            text = content.decode("utf-8-sig" if line == 1 else "utf-8")
        except UnicodeDecodeError:
            bad.append((line, "invalid UTF-8", content.decode("utf-8", "replace")))
            continue
        try:
            row = _row(json.loads(text), origin, line)
            if sum(len(message["content"]) for message in json.loads(row["messages"])) > most_characters:
                raise ValueError(f"over-long: more than {most_characters} characters")
            if row["messages"] in seen:
                raise ValueError("duplicate")
        except (ValueError, RecursionError) as error:
            bad.append((line, reason_of(error), text))
            continue
        seen.add(row["messages"])
        rows.append(row)
    return Demonstrations(pl.DataFrame(rows, schema=COLUMNS), pl.DataFrame(bad, schema=QUARANTINE, orient="row"), len(lines), origin.format)


def _row(record: Any, origin: Origin, line: int) -> dict[str, Any]:
    """The flat row of a record. ValueError with the reason if it is no demonstration."""
    foreign = BY_NAME[origin.format].model_validate(record)
    flag = origin.is_safety if foreign.is_safety is None else foreign.is_safety
    checked = Demonstration.model_validate({"messages": foreign.dialogue(), "is_safety": flag})
    messages = [{"role": message.role, "content": message.content.strip()} for message in checked.messages]
    return {
        "line": line,
        "prompt_id": prompt_identity(messages[:-1]),
        "messages": json.dumps(messages, ensure_ascii=False),
        "turns": sum(message["role"] == "user" for message in messages),
        "is_safety": checked.is_safety,
        "source": origin.source,
    }
