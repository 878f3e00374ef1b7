"""The comparison, the one form in which preferences are kept: from people, from the simulated annotator and from public sets alike."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from resources.annotator import Rating
from resources.prompts.prompt import prompt_identity

TAGS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
COLUMNS = {
    "comparison_id": pl.String,
    "prompt_id": pl.String,
    "line": pl.Int64,
    "prompt": pl.String,
    "chosen": pl.String,
    "rejected": pl.String,
    "rating": pl.String,
    "is_safety": pl.Boolean,
    "chosen_safe": pl.Boolean,
    "rejected_safe": pl.Boolean,
    "annotator": pl.String,
    "chosen_model": pl.String,
    "chosen_version": pl.String,
    "rejected_model": pl.String,
    "rejected_version": pl.String,
    "turns": pl.Int64,
    "ceiling": pl.Float64,
    "source": pl.String,
}


def sound(text: str) -> str:
    """The text itself. ValueError if it is blank, no Unicode (half a surrogate pair, which JSON can spell), or could forge a turn."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("is no valid Unicode")
    if not text.strip():
        raise ValueError("is empty")
    for tag in TAGS:
        if tag in text:
            raise ValueError(f"holds the chat format's tag {tag}")
    return text


def check_roles(roles: Sequence[str], *, last: str) -> None:
    """ValueError unless, after an optional system message, user and assistant take turns and `last` speaks last."""
    spoken = roles[1:] if list(roles[:1]) == ["system"] else roles
    wrong = next((index for index, role in enumerate(spoken) if role != ("user", "assistant")[index % 2]), None)
    if wrong is not None or not spoken or spoken[-1] != last:
        shown = roles if wrong is None else roles[: len(roles) - len(spoken) + wrong + 1]
        first = ", ".join(roles) if len(roles) <= 5 else f"…, {', '.join(shown[-3:])}"
        raise ValueError(f"roles out of order: {first}; user and assistant take turns and the {last} speaks last")


class Message(BaseModel):
    """One message of a dialogue."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str

    @field_validator("content")
    @classmethod
    def _checked(cls, content: str) -> str:
        return sound(content)


class Response(BaseModel):
    """One answer and where it came from. Version and temperature may be unknown for an answer of a public set."""

    model_config = ConfigDict(extra="forbid")
    text: str
    model: str = Field(min_length=1)
    model_version: str | None = Field(default=None, min_length=1)
    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @field_validator("text")
    @classmethod
    def _checked(cls, text: str) -> str:
        return sound(text)


class Comparison(BaseModel):
    """A prompt, two answers, which is better and by how much, and whether each is safe (None where nobody judged it).

    `source` names the public set that it is from. Without one it is our own annotators', who say all that the recipe needs.
    """

    model_config = ConfigDict(extra="forbid")
    prompt: list[Message] = Field(min_length=1)
    responses: tuple[Response, Response]
    preferred: Literal[0, 1]
    rating: Rating
    is_safety: bool
    safe: tuple[bool, bool] | None = None
    annotator: str = Field(min_length=1)
    time: datetime | None = None
    source: str | None = Field(default=None, min_length=1)
    ceiling: float | None = Field(default=None, ge=0.5, le=1, description="chance that the label agrees with its own noise-free order")

    @model_validator(mode="after")
    def _consistent(self) -> "Comparison":
        roles = [message.role for message in self.prompt]
        check_roles(roles, last="user")
        if self.responses[0].text.strip() == self.responses[1].text.strip():
            raise ValueError("the two responses do not differ")
        if self.safe is not None and not self.safe[self.preferred] and self.safe[1 - self.preferred]:
            raise ValueError("an unsafe response is preferred over a safe one")
        if self.source is None:
            self._complete()
        return self

    def _complete(self) -> None:
        for name in ("model_version", "temperature"):
            if any(getattr(response, name) is None for response in self.responses):
                raise ValueError(f"responses.{name}: missing")
        if self.time is None:
            raise ValueError("time: missing")
        if self.is_safety and self.safe is None:
            raise ValueError("a safety comparison needs 'safe' for both responses")

    def row(self, line: int, number: int = 0) -> dict[str, Any]:
        """The flat row of `COLUMNS`, for the comparison of that number in its line."""
        messages = [message.model_dump() for message in self.prompt]
        chosen, rejected = self.responses[self.preferred], self.responses[1 - self.preferred]
        safe = self.safe or (None, None)
        prompt_id = prompt_identity(messages)
        return {
            "comparison_id": f"{prompt_id}-{line}" + (f"-{number}" if number else ""),
            "prompt_id": prompt_id,
            "line": line,
            "prompt": json.dumps(messages, ensure_ascii=False),
            "chosen": chosen.text.strip(),
            "rejected": rejected.text.strip(),
            "rating": self.rating,
            "is_safety": self.is_safety,
            "chosen_safe": safe[self.preferred],
            "rejected_safe": safe[1 - self.preferred],
            "annotator": self.annotator,
            "chosen_model": chosen.model,
            "chosen_version": chosen.model_version,
            "rejected_model": rejected.model,
            "rejected_version": rejected.model_version,
            "turns": sum(m.role == "user" for m in self.prompt),
            "ceiling": self.ceiling,
            "source": self.source,
        }
