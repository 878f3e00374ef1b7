"""Public formats: what each means, and that every row of every file ends up accepted or quarantined."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.demonstrations import read_demonstrations
from assets.preferences.formats import BY_NAME, rating_of
from assets.preferences.reading import MARK, Origin, read_comparisons
from jobs.ingest import ingest, json_lines
from resources.annotator import RATINGS
from resources.errors import TampuError
from resources.inbox import batches_in, demonstration_files
from resources.store import ArtifactStore

TREE = {
    "message_tree_id": "t",
    "prompt": {
        "role": "prompter",
        "text": "Hi",
        "rank": None,
        "replies": [
            {"role": "assistant", "text": "second", "rank": 1, "replies": []},
            {
                "role": "assistant",
                "text": "best",
                "rank": 0,
                "replies": [
                    {
                        "role": "prompter",
                        "text": "More",
                        "rank": None,
                        "replies": [
                            {"role": "assistant", "text": "a", "rank": 3, "replies": []},
                            {"role": "assistant", "text": "b", "rank": 0, "replies": []},
                        ],
                    }
                ],
            },
            {"role": "assistant", "text": "unranked", "rank": None, "replies": []},
        ],
    },
}
TOLD = "\n\nHuman: Hi\n\nAssistant: Hello?\n\nHuman: Go on\n\nAssistant:"
# format: a record, then (prompt's last message, chosen, rejected, rating) of each comparison in it
KNOWN: dict[str, tuple[dict[str, Any], list[tuple[str, str, str, str]]]] = {
    "anthropic-hh": ({"chosen": f"{TOLD} Yes.", "rejected": f"{TOLD} No."}, [("Go on", "Yes.", "No.", "negligibly better")]),
    "alpaca-eval": (
        {"instruction": "Add", "input": "1 2", "output_1": "2", "output_2": "3", "preference": 1.9, "generator_2": "m", "annotator": "gpt"},
        [("Add\n\n1 2", "3", "2", "significantly better")],
    ),
    "pandalm": (
        {
            "instruction": "Add",
            "input": "",
            "response1": "a",
            "response2": "b",
            "annotator1": 1,
            "annotator2": 1,
            "annotator3": 2,
            "majority": 1,
        },
        [("Add", "a", "b", "slightly better")],
    ),
    "llmbar": ({"input": "Add", "output_1": "a", "output_2": "b", "label": 2, "subset": "Natural"}, [("Add", "b", "a", "negligibly better")]),
    "sharegpt-dpo": (
        {
            "conversations": [{"from": "system", "value": "Be kind"}, {"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        [("Hi", "a", "b", "negligibly better")],
    ),
    "chosen-rejected": (
        {
            "prompt": "Hi",
            "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "b"}],
            "score_chosen": 9,
            "score_rejected": 4,
        },
        [("Hi", "a", "b", "better")],
    ),
    "oasst": (TREE, [("Hi", "best", "second", "slightly better"), ("More", "b", "a", "significantly better")]),
    "shp": (
        {"history": "Why?", "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "score_ratio": 2.0, "domain": "x"},
        [("Why?", "b", "a", "better")],
    ),
    "webgpt": (
        {"question": {"full_text": "Why?"}, "answer_0": "a", "answer_1": "b", "score_0": -0.25, "score_1": 0.25, "quotes_0": {}},
        [("Why?", "b", "a", "slightly better")],
    ),
    "summarize": (
        {
            "info": {"post": "Long", "title": "T"},
            "summaries": [{"text": "a", "policy": "sup2"}, {"text": "b", "policy": "ref"}],
            "choice": 1,
            "worker": "w",
            "extra": {"confidence": 9},
        },
        [("Summarize this post.\n\nT\n\nLong", "b", "a", "significantly better")],
    ),
    "ultrafeedback": (
        {"instruction": "Hi", "completions": [{"response": t, "model": t, "overall_score": s} for t, s in (("a", 1), ("b", 10), ("c", 9.5))]},
        [("Hi", "b", "a", "significantly better"), ("Hi", "c", "a", "significantly better"), ("Hi", "b", "c", "negligibly better")],
    ),
    "pku-saferlhf": (
        {
            "prompt": "Hi",
            "response_0": "a",
            "response_1": "b",
            "is_response_0_safe": True,
            "is_response_1_safe": False,
            "better_response_id": 0,
            "safer_response_id": 0,
        },
        [("Hi", "a", "b", "negligibly better")],
    ),
}


def lines(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def test_every_format_has_an_example_here() -> None:
    assert set(KNOWN) == set(BY_NAME)


@pytest.mark.parametrize("name", KNOWN)
def test_a_record_of_each_format_is_recognised_and_means_what_its_makers_say(name: str) -> None:
    record, expected = KNOWN[name]
    found = read_comparisons(lines(record))
    assert found.format == name and found.quarantined.is_empty(), found.reasons
    got = [
        (json.loads(row["prompt"])[-1]["content"], row["chosen"], row["rejected"], row["rating"]) for row in found.accepted.iter_rows(named=True)
    ]
    assert got == expected
    assert found.accepted["source"].unique().to_list() == [name]
    assert found.accepted["comparison_id"].n_unique() == len(expected)


def test_labels_and_makers_are_kept_where_a_format_has_them() -> None:
    safe = read_comparisons(lines(KNOWN["pku-saferlhf"][0])).accepted.row(0, named=True)
    assert (safe["is_safety"], safe["chosen_safe"], safe["rejected_safe"]) == (True, True, False)
    judged = read_comparisons(lines(KNOWN["alpaca-eval"][0])).accepted.row(0, named=True)
    assert (judged["annotator"], judged["chosen_model"], judged["chosen_version"]) == ("gpt", "m", None)
    system = read_comparisons(lines(KNOWN["sharegpt-dpo"][0])).accepted.row(0, named=True)
    assert [message["role"] for message in json.loads(system["prompt"])] == ["system", "user"]


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("anthropic-hh", {"rejected": "\n\nHuman: Ho\n\nAssistant: No."}, "the two dialogues part before the last answer"),
        ("anthropic-hh", {"rejected": "Hello"}, "the transcript does not begin with 'Human:'"),
        ("anthropic-hh", {"chosen": TOLD, "rejected": f"{TOLD} No."}, "responses.text: is empty"),
        ("alpaca-eval", {"preference": 1.5}, "neither response is preferred"),
        ("alpaca-eval", {"preference": None}, "preference: nobody judged this pair"),
        ("alpaca-eval", {"preference": 3}, "preference: 3 is not between 1 and 2"),
        ("alpaca-eval", {"output_1": "3 "}, "the two responses do not differ"),
        ("pandalm", {"annotator2": 2, "annotator3": 0}, "neither response is preferred"),
        ("llmbar", {"label": 3}, "label: Input should be 1 or 2"),
        ("sharegpt-dpo", {"chosen": {"from": "robot", "value": "a"}}, "unknown speaker 'robot'"),
        ("sharegpt-dpo", {"conversations": [{"from": "gpt", "value": "Hi"}]}, "roles out of order: assistant;"),
        ("chosen-rejected", {"score_chosen": 1}, "the chosen answer's score 1.0 is below the rejected one's 4.0"),
        ("pku-saferlhf", {"better_response_id": 1}, "an unsafe response is preferred over a safe one"),
        ("shp", {"score_ratio": 0.5}, "score_ratio: Input should be greater than or equal to 1"),
        ("webgpt", {"score_1": -0.25}, "neither response is preferred"),
        ("oasst", {"prompt": {"role": "prompter", "text": "Hi", "replies": []}}, "no two ranked answers to one message"),
        ("ultrafeedback", {"completions": [{"response": "a"}, {"response": "b"}]}, "completions: an answer has neither overall_score nor score"),
    ],
)
def test_what_can_not_be_used_is_quarantined_with_its_reason(name: str, changes: dict[str, Any], reason: str) -> None:
    record, expected = KNOWN[name]
    found = read_comparisons(lines(record, {**record, **changes}))
    assert found.accepted.height == len(expected)
    assert [kept.startswith(reason) for kept in found.quarantined["reason"]] == [True], found.reasons
    assert found.quarantined["line"].to_list() == [2] and found.read == len(expected) + 1


def test_duplicates_contradictions_and_long_rows_of_a_public_format_are_quarantined() -> None:
    record = KNOWN["llmbar"][0]
    long = {**record, "output_1": "a " * 9_000}
    found = read_comparisons(lines(record, record, {**record, "label": 1}, long, b'\xff{"input": "x"}'))
    assert found.accepted.height == 1
    assert found.quarantined["reason"].to_list() == [
        "duplicate",
        "contradicts an earlier comparison",
        "over-long: more than 16384 characters",
        "invalid UTF-8",
    ]


@given(st.floats(0, 1))
def test_a_stronger_preference_never_gets_a_weaker_rating(strength: float) -> None:
    assert RATINGS.index(rating_of(strength)) >= RATINGS.index(rating_of(min(1.0, strength + 0.1)))


WRONG = st.sampled_from([None, True, 0, 1, -2, 2.5, "", "x", [], ["x"], {}, {"text": "x"}, {"role": "user", "replies": [{}]}, [{"from": 1}]])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A record of some format, with some of its values replaced or taken out."""
    record = dict(KNOWN[draw(st.sampled_from(sorted(KNOWN)))][0])
    for key in draw(st.lists(st.sampled_from(sorted(record)), max_size=2)):
        record[key] = draw(WRONG)
    return json.dumps(record).encode()


LINE = st.one_of(
    damaged(), st.sampled_from([b"", b" ", b"{", b"[]", b"\xff", MARK]), st.binary(max_size=12).map(lambda b: b.replace(b"\n", b""))
)


@settings(max_examples=60)
@given(st.lists(LINE, max_size=8), st.sampled_from([None, *sorted(KNOWN), "nonsense"]))
def test_accepted_and_quarantined_are_all_that_was_read_in_every_format(content: list[bytes], layout: str | None) -> None:
    raw = b"\n".join(content)
    found = read_comparisons((Origin(format=layout, source="s").line() if layout else b"") + raw)
    assert found.accepted.height + found.quarantined.height == found.read
    traces = {*found.accepted["line"], *found.quarantined["line"]}
    torn = layout == "nonsense"
    assert traces - ({1} if torn else set()) == {n + torn for n, line in enumerate(content, start=1) if line.strip()}
    assert not torn or found.accepted.is_empty()
    assert sum(found.reasons.values()) == found.quarantined.height


# Demonstrations


DIALOGUE = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("record", "layout", "expected"),
    [
        ({"instruction": "Add", "input": "1 2", "output": "3"}, "instructions", ["Add\n\n1 2", "3"]),
        ({"prompt": "Add", "completion": "3<|endoftext|>"}, "instructions", ["Add", "3"]),
        ({"messages": DIALOGUE, "is_safety": True}, "messages", ["Hi", "Hello"]),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}, "sharegpt", ["Hi", "Hello"]),
        (TREE, "oasst-paths", ["Hi", "best", "More", "b"]),
    ],
)
def test_a_demonstration_of_each_format_is_a_dialogue(record: dict[str, Any], layout: str, expected: list[str]) -> None:
    found = read_demonstrations(lines(record))
    assert (found.format, found.read, found.accepted.height) == (layout, 1, 1), found.reasons
    row = found.accepted.row(0, named=True)
    assert [message["content"] for message in json.loads(row["messages"])] == expected
    assert row["is_safety"] is record.get("is_safety")


SPOKEN: list[Any] = [
    {"messages": DIALOGUE},
    {"messages": DIALOGUE, "label": False},
    {"messages": DIALOGUE[:1]},
    {"messages": DIALOGUE[::-1]},
    {"messages": [{"role": "user", "content": " "}, DIALOGUE[1]]},
    b"",
    b"{",
    b"\xff",
    b"7",
]


@given(st.lists(st.sampled_from([lines(row)[:-1] for row in SPOKEN]), max_size=8))
def test_every_line_of_demonstrations_is_accepted_or_quarantined(content: list[bytes]) -> None:
    found = read_demonstrations(b"\n".join(content))
    assert found.accepted.height + found.quarantined.height == found.read == sum(bool(line.strip()) for line in content)
    assert found.accepted.height <= 1


# Handing files in


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(home=str(tmp_path / "home"))


def test_a_file_is_placed_as_it_is_with_how_to_read_it_and_once(store: ArtifactStore, tmp_path: Path) -> None:
    record, _ = KNOWN["anthropic-hh"]
    path = tmp_path / "hh.harmless-base.jsonl.gz"
    path.write_bytes(gzip.compress(lines(record, {**record, "rejected": "x"})))
    found = ingest(store, path)
    assert (found.kind, found.format, found.source, found.is_safety) == ("comparisons", "anthropic-hh", "anthropic-harmless", True)
    assert (found.read, found.accepted, found.quarantined, found.batch) == (2, 1, 1, "hh")
    placed = Path(str(found.file)).read_bytes()
    assert placed.startswith(MARK) and placed.endswith(lines(record, {**record, "rejected": "x"}))
    again = read_comparisons(placed)
    assert again.quarantined["line"].to_list() == [2] and again.accepted["is_safety"].to_list() == [True]
    assert ingest(store, path, name="copy").file == found.file
    assert ingest(store, Path(str(found.file)), name="again").file == found.file
    assert list(batches_in(store.root)) == ["hh"]


@pytest.mark.parametrize("ending", [".json", ".parquet", ".jsonl"])
def test_arrays_and_parquet_are_read_like_lines(tmp_path: Path, ending: str) -> None:
    rows = [KNOWN["llmbar"][0], {**KNOWN["llmbar"][0], "input": "Naïve?"}]
    path = tmp_path / f"rows{ending}"
    if ending == ".parquet":
        pl.DataFrame(rows).write_parquet(path)
    else:
        path.write_bytes(json.dumps(rows).encode() if ending == ".json" else lines(*rows))
    assert read_comparisons(json_lines(path)).accepted.height == 2


def test_demonstrations_go_to_their_own_folder_and_dry_runs_nowhere(store: ArtifactStore, tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(lines({"messages": DIALOGUE}, {"messages": DIALOGUE, "label": False}))
    assert ingest(store, path, dry_run=True).file is None and not demonstration_files(store.root)
    found = ingest(store, path, is_safety=True)
    assert (found.kind, found.accepted, found.quarantined, found.is_safety) == ("demonstrations", 1, 1, True)
    assert list(demonstration_files(store.root)) == ["mine"] and batches_in(store.root) == {}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.jsonl", None, "does not exist"),
        ("rows.csv", b"a,b", "the name ends in none of"),
        ("rows.jsonl.gz", b"no gzip", "is no whole gzip file"),
        ("rows.parquet", b"no parquet", "is no whole Parquet file"),
        ("rows.jsonl", b'{"a": 1}\n', "of no known format (a record has the keys a): name one with --format, of tampu"),
        ("rows.jsonl", b"", "no line is a JSON object"),
        ("rows.jsonl", lines({**KNOWN["llmbar"][0], "label": 7}), "no comparison could be read as llmbar; reasons: {'label"),
    ],
)
def test_a_file_that_can_not_be_taken_in_is_one_clear_error(
    store: ArtifactStore, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TampuError) as caught:
        ingest(store, path)
    assert said in str(caught.value) and "\n" not in str(caught.value)
    assert not list(store.root.glob("inbox/*"))


# A folder with the sets' own files, for whoever has them: TAMPU_REAL_DATA=/data pytest tests/test_formats.py
DATA = Path(os.environ.get("TAMPU_REAL_DATA", ""))
REAL = {
    "preference/alpaca_eval_pairs": "alpaca-eval",
    "preference/dpo_en_300": "sharegpt-dpo",
    "preference/hh_harmless_base": "anthropic-hh",
    "preference/llmbar": "llmbar",
    "preference/pandalm_human": "pandalm",
    "preference/rasbt_politeness": "chosen-rejected",
    "preference/kto_en_300": "messages",
    "sft/oasst_trees": "oasst",
    "sft/alpaca_gpt4_1k": "instructions",
    "sft/safety_refusals": "instructions",
}


@pytest.mark.skipif(not os.environ.get("TAMPU_REAL_DATA"), reason="TAMPU_REAL_DATA names no folder of real data sets")
@pytest.mark.parametrize(("name", "layout"), REAL.items())
def test_real_files_are_understood_without_being_told(store: ArtifactStore, name: str, layout: str) -> None:
    found = ingest(store, DATA / f"{name}.jsonl.gz")
    assert found.format == layout and found.accepted + found.quarantined == found.read
    assert found.accepted >= (0.45 if "kto" in name else 0.75) * found.read
