"""Chat completions from an OpenAI-compatible server (vLLM, llama.cpp, Ollama, a hosted model): many at a time, failures told and counted."""

import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from resources.errors import TampuError
from resources.prompts.prompt import Messages


@dataclass(frozen=True)
class Reply:
    """What came back: a text, or the kind of failure (`timeout`, `unreachable`, `http 500`, `no text`)."""

    text: str | None
    failure: str | None = None
    finished: bool = True


@dataclass(frozen=True)
class ChatEndpoint:
    """A server at `url` (ending in /v1 as a rule) that serves `model`.

    The key, where the server wants one, is read from the environment variable `key_variable` and never kept. A request that times out
    (`timeout` seconds) or fails on the server's side is tried `retries` times more, waiting 1, 2, 4 … times `backoff` seconds.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    retries: int = 2
    concurrency: int = 4
    backoff: float = 1.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise TampuError(f"endpoint url {self.url!r}: expected http://… or https://…, such as http://127.0.0.1:8000/v1")
        if not self.model:
            raise TampuError(f"endpoint {self.url}: name the model that it serves (GET {self.url}/models lists them)")

    def complete(self, dialogues: Sequence[Messages], *, temperature: float, top_p: float, max_tokens: int, seed: int) -> list[Reply]:
        """One reply to each dialogue, in order. Raises TampuError when the server refuses the request itself (401, 404, …)."""
        bodies = [
            {"model": self.model, "messages": messages, "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed}
            for messages in dialogues
        ]
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            return list(pool.map(self._ask, bodies))

    def _ask(self, body: dict[str, Any]) -> Reply:
        reply = Reply(None, "unreachable")
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            reply = self._once(body)
            if reply.failure is None or reply.failure == "no text":
                break
        return reply

    def _once(self, body: dict[str, Any]) -> Reply:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_variable, ""):
            headers["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                choice = json.loads(response.read())["choices"][0]
            text = choice["message"]["content"]
            return (
                Reply(text, None, choice.get("finish_reason") != "length") if isinstance(text, str) and text.strip() else Reply(None, "no text")
            )
        except urllib.error.HTTPError as error:
            if error.code in (408, 429) or error.code >= 500:
                return Reply(None, f"http {error.code}")
            said = error.read(300).decode(errors="replace")
            raise TampuError(f"{self.url} refused the request for model {self.model!r} (http {error.code}): {said}") from None
        except TimeoutError:
            return Reply(None, "timeout")
        except urllib.error.URLError as error:
            return Reply(None, "timeout" if isinstance(error.reason, TimeoutError) else "unreachable")
        except (OSError, HTTPException):
            return Reply(None, "unreachable")
        except (ValueError, KeyError, IndexError, TypeError):
            return Reply(None, "no text")


def failures(replies: Sequence[Reply]) -> dict[str, int]:
    """Kind of failure -> how many."""
    return dict(sorted(Counter(reply.failure for reply in replies if reply.failure is not None).items()))
