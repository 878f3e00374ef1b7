"""The comparison, the one form in which preferences enter: one JSON object a line, from people and from the simulated annotator alike."""

import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

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
}


def _sound(text: str) -> str:
    """The text itself. ValueError if it is blank, no Unicode (half a surrogate pair, which JSON can spell), or could forge a turn."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("is no valid Unicode")
    if not text.strip():
        raise ValueError("is empty")
    for tag in TAGS:
        if tag in text:
            raise ValueError(f"holds the chat format's tag {tag}")
    return text


class Message(BaseModel):
    """One message of a dialogue."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str

    @field_validator("content")
    @classmethod
    def _checked(cls, content: str) -> str:
        return _sound(content)


class Response(BaseModel):
    """One answer and where it came from."""

    model_config = ConfigDict(extra="forbid")
    text: str
    model: str = Field(min_length=1)
    model_version: str = Field(min_length=1)
    temperature: float = Field(ge=0, allow_inf_nan=False)

    @field_validator("text")
    @classmethod
    def _checked(cls, text: str) -> str:
        return _sound(text)


class Comparison(BaseModel):
    """A prompt, two answers, which is better and by how much, and whether each is safe (None where nobody judged it)."""

    model_config = ConfigDict(extra="forbid")
    prompt: list[Message] = Field(min_length=1)
    responses: tuple[Response, Response]
    preferred: Literal[0, 1]
    rating: Rating
    is_safety: bool
    safe: tuple[bool, bool] | None = None
    annotator: str = Field(min_length=1)
    time: datetime
    ceiling: float | None = Field(default=None, ge=0.5, le=1, description="chance that the label agrees with its own noise-free order")

    @model_validator(mode="after")
    def _consistent(self) -> "Comparison":
        roles = [message.role for message in self.prompt]
        spoken = roles[1:] if roles[0] == "system" else roles
        if not spoken or any(role != ("user", "assistant")[index % 2] for index, role in enumerate(spoken)) or spoken[-1] != "user":
            raise ValueError(f"roles out of order: {', '.join(roles)}; user and assistant take turns and the user speaks last")
        if self.responses[0].text.strip() == self.responses[1].text.strip():
            raise ValueError("the two responses do not differ")
        if self.safe is not None and not self.safe[self.preferred] and self.safe[1 - self.preferred]:
            raise ValueError("an unsafe response is preferred over a safe one")
        if self.is_safety and self.safe is None:
            raise ValueError("a safety comparison needs 'safe' for both responses")
        return self

    def row(self, line: int) -> dict[str, Any]:
        """The flat row of `COLUMNS`."""
        messages = [message.model_dump() for message in self.prompt]
        chosen, rejected = self.responses[self.preferred], self.responses[1 - self.preferred]
        safe = self.safe or (None, None)
        prompt_id = prompt_identity(messages)
        return {
            "comparison_id": f"{prompt_id}-{line}",
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
        }


@dataclass(frozen=True)
class Accepted:
    """What a file held: `accepted` with `COLUMNS`, `quarantined` with line, reason and the raw text. Together all that was read."""

    accepted: pl.DataFrame
    quarantined: pl.DataFrame

    @property
    def reasons(self) -> dict[str, int]:
        return dict(sorted(Counter(self.quarantined["reason"].to_list()).items()))


def read_comparisons(raw: bytes) -> Accepted:
    """Validate every line of a JSONL file. Nothing is dropped: a line is accepted or quarantined with its reason.

    Of two comparisons of the same prompt and answers by the same annotator the first is kept; the second is a duplicate, or a
    contradiction if it prefers the other answer.
    """
    rows, bad = [], []
    seen: dict[tuple[str, frozenset[str], str], str] = {}
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            bad.append((number, "invalid UTF-8", line.decode("utf-8", "replace")))
            continue
        try:
            row = Comparison.model_validate(json.loads(text)).row(number)
            identity = (row["prompt_id"], frozenset((row["chosen"], row["rejected"])), row["annotator"])
            if identity in seen:
                raise ValueError("duplicate" if seen[identity] == row["chosen"] else "contradicts an earlier comparison")
        except json.JSONDecodeError as error:
            bad.append((number, f"not JSON: {error.msg}", text))
        except RecursionError:
            bad.append((number, "not JSON: nested too deeply", text))
        except ValidationError as error:
            bad.append((number, _reason(error), text))
        except ValueError as error:
            bad.append((number, str(error), text))
        else:
            seen[identity] = row["chosen"]
            rows.append(row)
    schema = {"line": pl.Int64, "reason": pl.String, "text": pl.String}
    return Accepted(pl.DataFrame(rows, schema=COLUMNS), pl.DataFrame(bad, schema=schema, orient="row"))


def _reason(error: ValidationError) -> str:
    """The first complaint as one line: where, and what."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    if first["type"] == "extra_forbidden":
        return f"unknown key {place!r}"
    if first["type"] == "missing":
        return f"{place}: missing"
    text = str(first["msg"]).removeprefix("Value error, ")
    return f"{place}: {text}" if place else text
