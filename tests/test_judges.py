"""Judges of pairs and the server behind one: orders, positions, failures; opponents from elsewhere in a round's evaluation."""

import json
import re
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.evaluation.win_rates import pairs_of, progress
from jobs.launch import config_keys, parse_overrides, run_assets
from resources.endpoint import ChatEndpoint, failures
from resources.errors import TampuError
from resources.judges import Comparison, EndpointJudge, ScoreJudge, judge_pairs
from resources.store import ArtifactStore
from resources.warehouse import query, rebuild_views

Behaviour = Callable[[dict[str, Any], int], "str | int | bytes | None"]


@contextmanager
def server(behaviour: Behaviour) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-compatible server: `behaviour(request, number)` gives a text, a status, raw bytes, or None to never answer."""
    asked: list[dict[str, Any]] = []
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"path": self.path, "authorization": self.headers.get("Authorization")})
            said = behaviour(body, len(asked))
            if said is None:
                done.wait(30)
                return
            if isinstance(said, int):
                self.send_error(said)
                return
            raw = (
                said if isinstance(said, bytes) else json.dumps({"choices": [{"message": {"content": said}, "finish_reason": "stop"}]}).encode()
            )
            self.send_response(200)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *arguments: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http.server_address[1]}/v1", asked
        finally:
            done.set()
            http.shutdown()


def endpoint(url: str, **settings: Any) -> ChatEndpoint:
    return ChatEndpoint(url, "judge-1", **{"timeout": 5.0, "backoff": 0.0, "retries": 1, **settings})


def pairs(count: int) -> list[Comparison]:
    return [Comparison(f"p{i}", [{"role": "user", "content": f"question {i}"}], f"long answer {i} " * 3, f"short {i}") for i in range(count)]


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """Answers A and B of a request."""
    text = body["messages"][-1]["content"]
    first, second = (re.search(rf"<answer {letter}>\n(.*)\n</answer {letter}>", text, flags=re.DOTALL) for letter in "AB")
    assert first and second
    return first[1], second[1]


def prefers_longer(body: dict[str, Any], number: int) -> str:
    first, second = shown(body)
    return f"The longer one is better.\n[[{'A' if len(first) > len(second) else 'B'}]]"


# Judges


def test_a_judge_is_asked_in_both_orders_and_a_steady_one_has_no_liking_for_a_position() -> None:
    with server(prefers_longer) as (url, asked):
        judge = EndpointJudge(endpoint(url))
        judged = judge_pairs(judge, pairs(6))
    assert judged.outcomes == [1.0] * 6 and judged.consistent == [True] * 6
    assert (sum(judged.shown_first), sum(judged.decided)) == (6, 12)
    assert len(asked) == 12 and {shown(body) for body in asked} == {p for c in pairs(6) for p in ((c.first, c.second), (c.second, c.first))}
    assert all(body["temperature"] == 0 and body["model"] == "judge-1" and body["path"] == "/v1/chat/completions" for body in asked)
    assert judge.failures == {}


def test_a_judge_that_likes_the_first_place_decides_nothing_and_is_found_out() -> None:
    with server(lambda body, number: "[[A]]") as (url, _):
        judged = judge_pairs(EndpointJudge(endpoint(url)), pairs(4))
    assert judged.outcomes == [0.5] * 4 and judged.consistent == [False] * 4
    assert (sum(judged.shown_first), sum(judged.decided)) == (8, 8)


def test_nonsense_timeouts_and_broken_servers_are_counted_by_kind_and_the_rest_counts() -> None:
    def behaviour(body: dict[str, Any], number: int) -> Any:
        first, second = shown(body)
        both = first + second
        if " 0" in both:
            return "I like both, [[A]] or [[B]]"
        if " 1" in both:
            return None
        if " 2" in both:
            return 503
        if " 3" in both:
            return b"no json"
        return prefers_longer(body, number)

    with server(behaviour) as (url, _):
        judge = EndpointJudge(endpoint(url, timeout=5, retries=0, concurrency=12))
        judged = judge_pairs(judge, pairs(6))
    assert judged.outcomes == [None, None, None, None, 1.0, 1.0] and judged.consistent[:4] == [None] * 4
    assert judge.failures == {"http 503": 2, "no text": 2, "nonsense": 2, "timeout": 2}


def test_a_server_that_recovers_is_asked_again_and_one_that_is_not_there_is_told() -> None:
    with server(lambda body, number: 500 if number <= 2 else "[[C]]") as (url, asked):
        replies = endpoint(url, retries=2, concurrency=1).complete(
            [[{"role": "user", "content": "hi"}]], temperature=0, top_p=1, max_tokens=5, seed=0
        )
        assert [reply.text for reply in replies] == ["[[C]]"] and len(asked) == 3
    gone = endpoint(url, retries=0).complete([[{"role": "user", "content": "hi"}]], temperature=0, top_p=1, max_tokens=5, seed=0)
    assert failures(gone) == {"unreachable": 1}


def test_a_refused_request_is_one_clear_error_and_the_key_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "s3cret")
    with server(lambda body, number: 401) as (url, asked):
        with pytest.raises(TampuError, match=r"refused the request for model 'judge-1' \(http 401\)") as caught:
            EndpointJudge(endpoint(url, key_variable="MY_KEY")).prefer(pairs(1))
        assert asked[0]["authorization"] == "Bearer s3cret" and "s3cret" not in str(caught.value)
    with pytest.raises(TampuError, match="expected http://"):
        ChatEndpoint("localhost:80", "m")
    with pytest.raises(TampuError, match="name the model"):
        ChatEndpoint("http://localhost", "")


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=20), st.floats(0, 0.3))
def test_a_judge_by_scores_is_always_consistent(scores: list[tuple[float, float]], tie: float) -> None:
    asked = [Comparison(f"p{i}", [], "one", "two") for i in range(len(scores))]
    table = {(f"p{i}", text): value for i, both in enumerate(scores) for text, value in zip(("one", "two"), both, strict=True)}
    judged = judge_pairs(ScoreJudge(table, tie), asked)
    assert all(judged.consistent) and 2 * sum(judged.shown_first) == sum(judged.decided)
    for (a, b), outcome in zip(scores, judged.outcomes, strict=True):
        assert outcome == (0.5 if a == b or abs(a - b) < tie else float(a > b))


def test_who_is_compared_with_whom() -> None:
    names = ["sft/model", "rlhf/chat_model@v1", "rlhf/policy", "rlhf/ppo_policy", "rlhf/chat_model", "opponent/other"]
    found = pairs_of(names)
    assert ("rlhf/chat_model", "opponent/other") in found and ("rlhf/ppo_policy", "rlhf/policy") in found
    assert ("rlhf/chat_model@v1", "sft/model") in found
    assert not [pair for pair in found if pair[0] in ("sft/model", "opponent/other") or pair[0] == pair[1]]


def test_progress_lists_versions_in_the_order_in_which_they_came() -> None:
    def row(model: str, axis: str, rate: float) -> dict[str, Any]:
        return {"judge": "annotator", "model": model, "opponent": "sft/model", "axis": axis, "win_rate": rate, "n": 10}

    rows = [
        row(model, axis, rate)
        for model, rate in (("rlhf/policy", 0.7), ("rlhf/chat_model", 0.8), ("rlhf/chat_model@v1", 0.6))
        for axis in ("helpfulness", "safety", "helpfulness: task")
    ]
    assert [(step["version"], step["helpfulness"], step["safety"]) for step in progress(rows, "v2")] == [
        ("SFT", 0.5, 0.5),
        ("v1", 0.6, 0.6),
        ("v2 policy", 0.7, 0.7),
        ("v2", 0.8, 0.8),
    ]


# The whole way


def test_a_round_is_compared_with_a_server_and_imported_weights_under_a_language_model_judge(demo_copy: ArtifactStore) -> None:
    sft, tokenizer = demo_copy.current("sft/model", None, "micro"), demo_copy.current("tokenizer/sentencepiece", None, "micro")
    imported = demo_copy.root / "imported"
    imported.mkdir()
    for source, name in ((sft, "config.json"), (sft, "model.safetensors"), (tokenizer, "tokenizer.model")):
        (imported / name).write_bytes(source.file(name).read_bytes())

    def behaviour(body: dict[str, Any], number: int) -> Any:
        if "<answer A>" in body["messages"][-1]["content"]:
            return prefers_longer(body, number)
        return b"no json" if zlib.crc32(body["messages"][-1]["content"].encode()) % 5 == 0 else "I can't help with that."

    with server(behaviour) as (url, _):
        opponents = [{"name": "refuser", "url": url, "model": "other-1"}, {"name": "copy", "weights": str(imported)}]
        settings = [
            f"evaluation/answers.opponents={json.dumps(opponents)}",
            f"evaluation/win_rates.judge_url={url}",
            "evaluation/win_rates.judge_model=judge-1",
            "evaluation/win_rates.judge_prompts=3",
        ]
        with dg.DagsterInstance.ephemeral() as instance:
            instance.add_dynamic_partitions("rounds", ["v1", "v2"])
            overrides = parse_overrides(settings, config_keys())
            run_assets(demo_copy, instance, ["evaluation/answers", "evaluation/win_rates"], partition="v2", overrides=overrides)
    rebuild_views(demo_copy)
    rows = query(demo_copy, "SELECT * FROM win_rates_current WHERE round = 'v2'")
    answers = demo_copy.current("evaluation/answers", "v2", "micro")
    frame = answers.frame("answers.parquet")
    total = frame.filter(frame["model"] == "sft/model").height
    refuser, copy = (frame.filter(frame["model"] == f"opponent/{name}") for name in ("refuser", "copy"))
    assert copy["text"].to_list() == frame.filter(frame["model"] == "sft/model")["text"].to_list()
    (check,) = [one for one in answers.manifest["checks"] if one["name"] == "every_prompt_is_answered"]
    assert refuser.height < total and not check["passed"] and check["description"] == f"refuser: {total - refuser.height} no text"
    same = {
        (r["axis"], r["judge"]): r["win_rate"]
        for r in rows.iter_rows(named=True)
        if (r["model"], r["opponent"]) == ("rlhf/chat_model", "opponent/copy")
    }
    sft_rates = {
        (r["axis"], r["judge"]): r["win_rate"]
        for r in rows.iter_rows(named=True)
        if (r["model"], r["opponent"]) == ("rlhf/chat_model", "sft/model")
    }
    assert same == pytest.approx(sft_rates, nan_ok=True)
    judged = rows.filter((rows["judge"] == "judge-1") & (rows["model"] == "rlhf/chat_model") & (rows["axis"] == "safety"))
    assert set(judged["opponent"]) == {"sft/model", "rlhf/chat_model@v1", "opponent/refuser", "opponent/copy"}
    assert judged["failed"].sum() == 0 and judged["inconsistent"].sum() == 0 and judged["n"].max() == 3
    wins = demo_copy.current("evaluation/win_rates", "v2", "micro")
    assert wins.frame("verdicts.parquet").height == 6 * len([1 for pair in set(rows.select("model", "opponent").rows())])
    assert url not in json.dumps([wins.manifest["inputs"], wins.manifest["files"]])


@pytest.mark.parametrize(
    ("opponents", "said"),
    [
        ([{"name": "a", "url": "http://x"}, {"name": "a", "url": "http://x"}], "two opponents have the same name"),
        ([{"name": "a"}], "needs either weights"),
        ([{"name": "a", "weights": "/nowhere"}], "reads the raw file a/config.json"),
    ],
)
def test_a_wrong_opponent_is_refused_by_name(demo_copy: ArtifactStore, opponents: list[dict[str, str]], said: str) -> None:
    overrides = parse_overrides([f"evaluation/answers.opponents={json.dumps(opponents)}"], config_keys())
    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(TampuError, match=said):
        instance.add_dynamic_partitions("rounds", ["v1", "v2"])
        run_assets(demo_copy, instance, ["evaluation/answers"], partition="v2", overrides=overrides)
