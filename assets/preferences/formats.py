"""Public preference formats: what a record of each holds, as pairs of answers to one dialogue.

Each class below is a schema (pydantic; keys that it does not name are passed over) with `pairs()`, which gives every comparison of a
record and raises ValueError with the reason when it holds none. How much better an answer is, where a format says so, becomes one of the
paper's four ratings by `rating_of`; a format that only says which one is better leaves the rating open. The bounds are our choice.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, ClassVar, Literal, Protocol

from pydantic import BaseModel, Field

from resources.annotator import RATINGS, Rating

Messages = list[dict[str, str]]
STRENGTH_BOUNDS = (0.75, 0.5, 0.25, 0.0)
ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
}


@dataclass(frozen=True)
class Pair:
    """Two answers to a dialogue. None stands for what the record does not say; `preferred` None is a tie."""

    prompt: Messages
    texts: tuple[str, str]
    preferred: Literal[0, 1] | None
    rating: Rating | None = None
    models: tuple[str, str] = ("unknown", "unknown")
    is_safety: bool | None = None
    safe: tuple[bool, bool] | None = None
    annotator: str | None = None


class Format(Protocol):
    """What every schema below has."""

    NAME: ClassVar[str]

    def pairs(self) -> Iterator[Pair]: ...

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool: ...


def rating_of(strength: float) -> Rating:
    """The rating of a strength of preference in [0, 1], in four equal parts: from 0.75 on `significantly better`. Our choice."""
    return next(name for name, bound in zip(RATINGS, STRENGTH_BOUNDS, strict=True) if strength >= bound)


def with_input(instruction: str, given: str | None) -> Messages:
    """One user message: the instruction, and the input that it speaks of after a blank line."""
    return [{"role": "user", "content": f"{instruction}\n\n{given}" if given and given.strip() else instruction}]


def _by_score(first: float, second: float) -> Literal[0, 1] | None:
    return None if first == second else 0 if first > second else 1


class Turn(BaseModel):
    """A message, with its speaker under `from` and `value` (ShareGPT) or `role` and `content`."""

    speaker: str = Field(validation_alias="from")
    text: str = Field(validation_alias="value")

    def message(self) -> dict[str, str]:
        if self.speaker not in ROLES:
            raise ValueError(f"unknown speaker {self.speaker!r}; known are {', '.join(ROLES)}")
        return {"role": ROLES[self.speaker], "content": self.text}


class ChatTurn(BaseModel):
    """A message with `role` and `content`."""

    role: str
    content: str

    def message(self) -> dict[str, str]:
        return {"role": ROLES.get(self.role, self.role), "content": self.content}


class AnthropicHH(BaseModel):
    """Anthropic's helpful and harmless sets: two transcripts that part at the last answer."""

    NAME: ClassVar[str] = "anthropic-hh"
    chosen: str
    rejected: str

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        return all(isinstance(record.get(side), str) and record[side].lstrip().startswith("Human:") for side in ("chosen", "rejected"))

    def pairs(self) -> Iterator[Pair]:
        chosen, rejected = transcript(self.chosen), transcript(self.rejected)
        if chosen[:-1] != rejected[:-1]:
            raise ValueError("the two dialogues part before the last answer")
        yield _last_answers(chosen, rejected)


def transcript(text: str) -> Messages:
    """The messages of `\\n\\nHuman: …\\n\\nAssistant: …`. ValueError if it does not begin so."""
    parts = re.split(r"(?:^|\n\n)(Human|Assistant):", "\n\n" + text.lstrip())
    if parts[0].strip() or len(parts) < 3:
        raise ValueError("the transcript does not begin with 'Human:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[1::2], parts[2::2], strict=True)]


def _last_answers(chosen: Messages, rejected: Messages, rating: Rating | None = None) -> Pair:
    """The pair of two dialogues' last messages, the first preferred. ValueError unless both are the assistant's."""
    for dialogue in (chosen, rejected):
        if not dialogue or dialogue[-1]["role"] != "assistant":
            raise ValueError("roles out of order: a dialogue does not end with the assistant's answer")
    return Pair(chosen[:-1], (chosen[-1]["content"], rejected[-1]["content"]), 0, rating)


class AlpacaEval(BaseModel):
    """AlpacaEval and AlpacaFarm: `preference` lies between 1 (`output_1` is better) and 2; a whole number says nothing of how much."""

    NAME: ClassVar[str] = "alpaca-eval"
    instruction: str
    given: str | None = Field(default=None, validation_alias="input")
    output_1: str
    output_2: str
    preference: int | float | None
    generator_1: str = "unknown"
    generator_2: str = "unknown"
    annotator: str | None = None

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        return {"instruction", "output_1", "output_2", "preference"} <= record.keys()

    def pairs(self) -> Iterator[Pair]:
        value = self.preference
        if value is None:
            raise ValueError("preference: nobody judged this pair")
        if value != 0 and not 1 <= value <= 2:
            raise ValueError(f"preference: {value} is not between 1 and 2")
        tie = value in (0, 1.5)
        yield Pair(
            with_input(self.instruction, self.given),
            (self.output_1, self.output_2),
            None if tie else 0 if value < 1.5 else 1,
            None if isinstance(value, int) else rating_of(abs(2 * (value - 1.5))),
            (self.generator_1, self.generator_2),
            annotator=self.annotator,
        )


class PandaLM(BaseModel):
    """PandaLM's test set: votes of 1 or 2, 0 for a tie. The rating is the majority's lead as a share of the votes."""

    NAME: ClassVar[str] = "pandalm"
    instruction: str
    given: str | None = Field(default=None, validation_alias="input")
    response1: str
    response2: str
    annotator1: int | None = None
    annotator2: int | None = None
    annotator3: int | None = None
    cmp_key: str = ""

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        return {"instruction", "response1", "response2"} <= record.keys() and bool({"annotator1", "majority"} & record.keys())

    def pairs(self) -> Iterator[Pair]:
        votes = [vote for vote in (self.annotator1, self.annotator2, self.annotator3) if vote is not None]
        if not votes or any(vote not in (0, 1, 2) for vote in votes):
            raise ValueError(f"votes {votes}: expected 0 (tie), 1 or 2")
        lead = votes.count(1) - votes.count(2)
        names = self.cmp_key.split("_")
        yield Pair(
            with_input(self.instruction, self.given),
            (self.response1, self.response2),
            None if lead == 0 else 0 if lead > 0 else 1,
            rating_of(abs(lead) / len(votes)) if len(votes) > 1 else None,
            (names[0], names[1]) if len(names) == 2 and all(names) else ("unknown", "unknown"),
            annotator=f"majority of {len(votes)}",
        )


class LLMBar(BaseModel):
    """LLMBar: `label` 1 or 2 names the output that follows the instruction."""

    NAME: ClassVar[str] = "llmbar"
    instruction: str = Field(validation_alias="input")
    output_1: str
    output_2: str
    label: Literal[1, 2]

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        return {"input", "output_1", "output_2", "label"} <= record.keys()

    def pairs(self) -> Iterator[Pair]:
        yield Pair(with_input(self.instruction, None), (self.output_1, self.output_2), 0 if self.label == 1 else 1)


class ShareGPTPreference(BaseModel):
    """ShareGPT-style preferences (LLaMA-Factory's `ranking`): a dialogue, then a chosen and a rejected message."""

    NAME: ClassVar[str] = "sharegpt-dpo"
    conversations: list[Turn]
    chosen: Turn
    rejected: Turn
    system: str | None = None

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        return {"conversations", "chosen", "rejected"} <= record.keys()

    def pairs(self) -> Iterator[Pair]:
        before = [{"role": "system", "content": self.system}] if self.system else []
        prompt = before + [turn.message() for turn in self.conversations]
        yield _last_answers([*prompt, self.chosen.message()], [*prompt, self.rejected.message()])


class ChosenRejected(BaseModel):
    """Rows with `chosen` and `rejected`: texts or messages, after `prompt` (text or messages), `instruction` and `input`, or nothing.

    `score_chosen` and `score_rejected` (UltraFeedback's binarized form, 1 to 10) give the rating where they are there.
    """

    NAME: ClassVar[str] = "chosen-rejected"
    prompt: str | list[ChatTurn] | None = None
    instruction: str | None = None
    given: str | None = Field(default=None, validation_alias="input")
    question: str | None = None
    system: str | None = None
    chosen: str | list[ChatTurn] | ChatTurn
    rejected: str | list[ChatTurn] | ChatTurn
    score_chosen: float | None = None
    score_rejected: float | None = None

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        return {"chosen", "rejected"} <= record.keys()

    def pairs(self) -> Iterator[Pair]:
        prompt = self._prompt()
        chosen, rejected = (_dialogue(prompt, side) for side in (self.chosen, self.rejected))
        if chosen[:-1] != rejected[:-1]:
            raise ValueError("the two dialogues part before the last answer")
        scores = (self.score_chosen, self.score_rejected)
        if scores[0] is None or scores[1] is None:
            yield _last_answers(chosen, rejected)
            return
        if scores[0] < scores[1]:
            raise ValueError(f"the chosen answer's score {scores[0]} is below the rejected one's {scores[1]}")
        pair = _last_answers(chosen, rejected, rating_of(min(1.0, (scores[0] - scores[1]) / 9)))
        yield pair if scores[0] != scores[1] else Pair(pair.prompt, pair.texts, None)

    def _prompt(self) -> Messages:
        before = [{"role": "system", "content": self.system}] if self.system else []
        if isinstance(self.prompt, list):
            return before + [turn.message() for turn in self.prompt]
        text = self.prompt or self.instruction or self.question
        return before + with_input(text, self.given) if text else before


def _dialogue(prompt: Messages, side: str | list[ChatTurn] | ChatTurn) -> Messages:
    """A dialogue with its answer; a list that tells the whole dialogue is not put after its own prompt."""
    if isinstance(side, str):
        return [*prompt, {"role": "assistant", "content": side}]
    messages = [turn.message() for turn in (side if isinstance(side, list) else [side])]
    whole = any(message["role"] == "user" for message in messages)
    return messages if whole and prompt in ([], messages[: len(prompt)]) else [*prompt, *messages]


class TreeNode(BaseModel):
    """A message of an OpenAssistant tree; `rank` 0 is the best among the replies to one message."""

    role: str
    text: str
    rank: int | None = None
    replies: list["TreeNode"] = []

    def message(self) -> dict[str, str]:
        return {"role": ROLES.get(self.role, self.role), "content": self.text}


class OpenAssistant(BaseModel):
    """OpenAssistant trees: every two ranked answers to a message. One rank apart is `slightly better`, three `significantly`."""

    NAME: ClassVar[str] = "oasst"
    prompt: TreeNode

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        return isinstance(record.get("prompt"), dict) and "replies" in record["prompt"]

    def pairs(self) -> Iterator[Pair]:
        found = list(_ranked_siblings(self.prompt, []))
        if not found:
            raise ValueError("no two ranked answers to one message")
        yield from found


def _ranked_siblings(root: TreeNode, before: Messages) -> Iterator[Pair]:
    """Pairs below a node, by a stack of one's own: trees may be deep."""
    waiting = [(root, before)]
    while waiting:
        node, path = waiting.pop()
        here = [*path, node.message()]
        ranked = sorted((reply for reply in node.replies if reply.rank is not None and reply.role == "assistant"), key=lambda r: r.rank or 0)
        for better, worse in combinations(ranked, 2):
            apart = (worse.rank or 0) - (better.rank or 0)
            yield Pair(here, (better.text, worse.text), 0 if apart else None, RATINGS[max(0, 3 - apart)] if apart else None)
        waiting += [(reply, here) for reply in reversed(node.replies)]


class StanfordSHP(BaseModel):
    """Stanford Human Preferences: `labels` 1 means that A is better; the rating is by the ratio of the two scores."""

    NAME: ClassVar[str] = "shp"
    history: str
    human_ref_A: str
    human_ref_B: str
    labels: Literal[0, 1]
    score_ratio: float | None = Field(default=None, ge=1)

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        return {"history", "human_ref_A", "human_ref_B", "labels"} <= record.keys()

    def pairs(self) -> Iterator[Pair]:
        rating = None if self.score_ratio is None else rating_of(1 - 1 / self.score_ratio)
        yield Pair(with_input(self.history, None), (self.human_ref_A, self.human_ref_B), 1 - self.labels, rating)  # type: ignore[arg-type]


class Question(BaseModel):
    """WebGPT's question."""

    full_text: str


class WebGPT(BaseModel):
    """OpenAI's WebGPT comparisons: scores in [-1, 1]; half their difference is the strength."""

    NAME: ClassVar[str] = "webgpt"
    question: Question | str
    answer_0: str
    answer_1: str
    score_0: float = Field(ge=-1, le=1)
    score_1: float = Field(ge=-1, le=1)

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        return {"question", "answer_0", "answer_1", "score_0", "score_1"} <= record.keys()

    def pairs(self) -> Iterator[Pair]:
        question = self.question if isinstance(self.question, str) else self.question.full_text
        strength = abs(self.score_0 - self.score_1) / 2
        yield Pair(with_input(question, None), (self.answer_0, self.answer_1), _by_score(self.score_0, self.score_1), rating_of(strength))


class Post(BaseModel):
    """What is summarized."""

    post: str | None = None
    article: str | None = None
    title: str | None = None


class Summary(BaseModel):
    """One summary and the policy that wrote it."""

    text: str
    policy: str = "unknown"


class Confidence(BaseModel):
    """1 (surely the first) to 9 (surely the second)."""

    confidence: int | None = Field(default=None, ge=1, le=9)


class Summarize(BaseModel):
    """OpenAI's Summarize comparisons: two summaries of a post; the confidence, where there is one, gives the rating."""

    NAME: ClassVar[str] = "summarize"
    info: Post
    summaries: tuple[Summary, Summary]
    choice: Literal[0, 1]
    worker: str | None = None
    extra: Confidence = Confidence()

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        return {"info", "summaries", "choice"} <= record.keys()

    def pairs(self) -> Iterator[Pair]:
        text = self.info.post or self.info.article
        if not text:
            raise ValueError("info: neither post nor article")
        title = f"{self.info.title}\n\n" if self.info.title else ""
        first, second = self.summaries
        sure = self.extra.confidence
        yield Pair(
            [{"role": "user", "content": f"Summarize this post.\n\n{title}{text}"}],
            (first.text, second.text),
            self.choice,
            None if sure is None else rating_of(abs(sure - 5) / 4),
            (first.policy, second.policy),
            annotator=self.worker,
        )


class ScoredCompletion(BaseModel):
    """One answer with its score."""

    response: str
    model: str = "unknown"
    overall_score: float | None = None
    score: float | None = None

    @property
    def value(self) -> float:
        found = self.overall_score if self.overall_score is not None else self.score
        if found is None:
            raise ValueError("completions: an answer has neither overall_score nor score")
        return found


class UltraFeedback(BaseModel):
    """UltraFeedback: several scored answers to an instruction (1 to 10); every two make a pair, a ninth of the difference its strength."""

    NAME: ClassVar[str] = "ultrafeedback"
    instruction: str
    completions: list[ScoredCompletion] = Field(min_length=2)

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        return {"instruction", "completions"} <= record.keys()

    def pairs(self) -> Iterator[Pair]:
        for one, other in combinations(self.completions, 2):
            strength = min(1.0, abs(one.value - other.value) / 9)
            texts, models = (one.response, other.response), (one.model, other.model)
            yield Pair(with_input(self.instruction, None), texts, _by_score(one.value, other.value), rating_of(strength), models)


class SafeRLHF(BaseModel):
    """PKU-SafeRLHF: which answer is more helpful, and whether each is safe."""

    NAME: ClassVar[str] = "pku-saferlhf"
    prompt: str
    response_0: str
    response_1: str
    is_response_0_safe: bool
    is_response_1_safe: bool
    better_response_id: Literal[0, 1]

    @classmethod
    def claims(cls, record: Mapping[str, Any]) -> bool:
        return {"response_0", "response_1", "is_response_0_safe", "is_response_1_safe", "better_response_id"} <= record.keys()

    def pairs(self) -> Iterator[Pair]:
        yield Pair(
            with_input(self.prompt, None),
            (self.response_0, self.response_1),
            self.better_response_id,
            is_safety=True,
            safe=(self.is_response_0_safe, self.is_response_1_safe),
        )


# The first that claims a record takes it, so the special come before the general.
FORMATS: Sequence[type[Any]] = (
    AnthropicHH,
    SafeRLHF,
    AlpacaEval,
    PandaLM,
    LLMBar,
    ShareGPTPreference,
    OpenAssistant,
    StanfordSHP,
    WebGPT,
    Summarize,
    UltraFeedback,
    ChosenRejected,
)
BY_NAME: dict[str, type[Any]] = {one.NAME: one for one in FORMATS}


def format_of(record: Mapping[str, Any]) -> str | None:
    """The name of the first format that claims a record, or None."""
    return next((one.NAME for one in FORMATS if one.claims(record)), None)
