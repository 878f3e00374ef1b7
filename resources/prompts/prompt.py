"""One prompt as every stage passes it on: SFT, collection, RLHF, evaluation."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from resources.splits import Split

Family = Literal["task", "chat", "unsafe", "borderline"]
# A dialogue as `model.dialogue` takes it: dictionaries with role and content.
Messages = list[Any]


@dataclass(frozen=True)
class Prompt:
    """A dialogue that waits for an answer, with what the annotator and the checkers need to know of it.

    `family` says which guideline applies; `task` names the instruction family; `category` is the paper's risk
    category of an unsafe prompt; `topic` is what the split was decided on; `arguments` are the template's slots.
    """

    messages: Messages
    family: Family
    split: Split
    task: str = ""
    category: str = ""
    topic: str = ""
    suite: str = ""
    arguments: dict[str, str] = field(default_factory=dict)

    @property
    def prompt_id(self) -> str:
        """Names the dialogue: the first 16 hex digits of the SHA-256 over its messages."""
        return prompt_identity(self.messages)

    @property
    def is_safety(self) -> bool:
        """The paper's is_safety(p): tagged as likely to elicit unsafe output."""
        return self.family == "unsafe"

    def to_row(self) -> dict[str, object]:
        """A flat row for a frame; `messages` and `arguments` become JSON."""
        row = asdict(self)
        row["messages"] = json.dumps(self.messages, ensure_ascii=False)
        row["arguments"] = json.dumps(self.arguments, ensure_ascii=False, sort_keys=True)
        return {"prompt_id": self.prompt_id, "is_safety": self.is_safety, **row}

    @classmethod
    def from_row(cls, row: dict[str, object]) -> "Prompt":
        """The inverse of `to_row`."""
        names = ("family", "split", "task", "category", "topic", "suite")
        return cls(
            messages=json.loads(str(row["messages"])),
            arguments=json.loads(str(row["arguments"])),
            **{name: str(row[name]) for name in names},  # type: ignore[arg-type]
        )


def prompt_identity(messages: Sequence[dict[str, str]]) -> str:
    """The first 16 hex digits of the SHA-256 over role and content of each message."""
    text = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def user(content: str) -> Messages:
    """A dialogue of one user message."""
    return [{"role": "user", "content": content}]
