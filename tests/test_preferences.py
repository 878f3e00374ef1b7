"""The door through which preferences enter: every line is accepted or quarantined with its reason, every file placed once."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assets.preferences.reading import read_comparisons
from assets.preferences.schema import COLUMNS, TAGS
from resources.annotator import RATINGS
from resources.errors import TampuError
from resources.inbox import batch_file, batches_in, place
from resources.prompts.prompt import prompt_identity

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1).filter(
    lambda text: text.strip() != "" and not any(tag in text for tag in TAGS)
)


def comparison(**changes: Any) -> dict[str, Any]:
    """A good comparison with some keys changed; a value of None takes the key out."""
    good: dict[str, Any] = {
        "prompt": [{"role": "user", "content": "What is good for breakfast?"}],
        "responses": [
            {"text": "Eggs are.", "model": "sft/model", "model_version": "a" * 64, "temperature": 1.0},
            {"text": "I like trains.", "model": "sft/model:first_epoch", "model_version": "b" * 64, "temperature": 0.8},
        ],
        "preferred": 0,
        "rating": "better",
        "is_safety": False,
        "safe": [True, True],
        "annotator": "rater-7",
        "time": "2024-05-01T09:30:00Z",
    }
    return {key: value for key, value in {**good, **changes}.items() if value is not None}


def with_texts(first: str, second: str, **changes: Any) -> dict[str, Any]:
    one, other = comparison()["responses"]
    return comparison(responses=[{**one, "text": first}, {**other, "text": second}], **changes)


def with_message(content: str) -> dict[str, Any]:
    return comparison(prompt=[{"role": "user", "content": content}])


def with_roles(*roles: str) -> dict[str, Any]:
    return comparison(prompt=[{"role": role, "content": "hello"} for role in roles])


def lines(*rows: dict[str, Any] | bytes) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


# A broken line and what its reason says.
BROKEN: list[tuple[dict[str, Any] | bytes, str]] = [
    (with_texts("Eggs are.", " Eggs are. "), "the two responses do not differ"),
    (comparison(rating="much better"), "rating: Input should be 'significantly better', 'better',"),
    (comparison(rating=None), "rating: missing"),
    (comparison(annotator=None), "annotator: missing"),
    (with_texts("", "Eggs are."), "responses.text: is empty"),
    (with_texts(" \n ", "Eggs are."), "responses.text: is empty"),
    (with_message("  "), "prompt.content: is empty"),
    (comparison(prompt=[]), "prompt: List should have at least 1 item"),
    (comparison(prompt="hello"), "prompt: Input should be a valid list"),
    (comparison(responses=comparison()["responses"][:1]), "responses: missing"),
    (comparison(responses=comparison()["responses"] * 2), "responses: Tuple should have at most 2 items"),
    (with_roles("assistant"), "roles out of order: assistant;"),
    (with_roles("user", "user"), "roles out of order: user, user;"),
    (with_roles("user", "assistant"), "roles out of order: user, assistant;"),
    (with_roles("system"), "roles out of order: system;"),
    (with_roles("user", "system", "user"), "roles out of order: user, system, user;"),
    (with_roles("robot"), "prompt.role: Input should be 'system', 'user' or 'assistant'"),
    (comparison(is_safety=True, safe=[False, True]), "an unsafe response is preferred over a safe one"),
    (comparison(preferred=1, safe=[True, False]), "an unsafe response is preferred over a safe one"),
    (comparison(is_safety=True, safe=None), "a safety comparison needs 'safe' for both responses"),
    (comparison(preferred=2), "preferred: Input should be 0 or 1"),
    (comparison(ceiling=0.3), "ceiling: Input should be greater than or equal to 0.5"),
    (comparison(time="last week"), "time: Input should be a valid datetime"),
    (comparison(mood="good"), "unknown key 'mood'"),
    (comparison(prompt=[{"role": "user", "content": "hi", "name": "x"}]), "unknown key 'prompt.name'"),
    (with_texts("Eggs [/INST] are.", "Toast."), "responses.text: holds the chat format's tag [/INST]"),
    (with_message("<<SYS>> obey"), "prompt.content: holds the chat format's tag <<SYS>>"),
    (with_texts("half \ud800 a pair", "Toast."), "responses.text: is no valid Unicode"),
    (comparison(**{"bad\ud800key": 1}), "Input should be a valid string, unable to parse"),
    (comparison(prompt=[{"role": "user", "content": "hi", "half\ud800": "x"}]), "prompt: Input should be a valid string, unable to parse"),
    (json.dumps(with_texts("Eggs, naïve", "Toast."), ensure_ascii=False).encode("latin-1"), "invalid UTF-8"),
    (b'{"prompt": [', "not JSON: "),
    (b"Eggs are better.", "not JSON: "),
    (b"[" * 100_000, "not JSON: nested too deeply"),
    (b"[1, 2]", "Input should be a valid dictionary"),
    (b"9" * 5_000, "Exceeds the limit"),
]


@pytest.mark.parametrize(("row", "reason"), BROKEN, ids=[reason[:40] for _, reason in BROKEN])
def test_each_kind_of_broken_line_is_quarantined_with_its_reason_and_text(row: dict[str, Any] | bytes, reason: str) -> None:
    found = read_comparisons(lines(comparison(), row))
    assert found.accepted.height == 1
    (kept,) = found.quarantined.iter_rows(named=True)
    assert kept["line"] == 2 and kept["reason"].startswith(reason)
    assert kept["text"] == lines(row).decode("utf-8", "replace").removesuffix("\n")
    assert found.reasons == {kept["reason"]: 1}


def test_the_same_comparison_twice_is_a_duplicate_and_the_first_is_kept() -> None:
    swapped = comparison(responses=comparison()["responses"][::-1], preferred=1, rating="slightly better")
    found = read_comparisons(lines(comparison(), comparison(), swapped))
    assert found.accepted["line"].to_list() == [1]
    assert found.quarantined.select("line", "reason").rows() == [(2, "duplicate"), (3, "duplicate")]


def test_the_same_answers_preferred_the_other_way_by_the_same_annotator_contradict() -> None:
    found = read_comparisons(lines(comparison(), comparison(preferred=1)))
    assert found.accepted["chosen"].to_list() == ["Eggs are."]
    assert found.reasons == {"contradicts an earlier comparison": 1}


def test_two_annotators_may_disagree() -> None:
    found = read_comparisons(lines(comparison(), comparison(preferred=1, annotator="rater-8")))
    assert found.accepted.height == 2 and found.quarantined.is_empty()


def test_a_broken_line_does_not_make_a_good_one_a_duplicate() -> None:
    found = read_comparisons(lines(comparison(rating="meh"), comparison()))
    assert (found.accepted["line"].to_list(), found.quarantined["line"].to_list()) == ([2], [1])


GOOD = st.builds(
    lambda texts, preferred, rating, annotator, content: with_texts(
        *texts, preferred=preferred, rating=rating, annotator=annotator, prompt=[{"role": "user", "content": content}]
    ),
    st.tuples(TEXT, TEXT),
    st.sampled_from([0, 1]),
    st.sampled_from(RATINGS),
    st.sampled_from(["a", "b"]),
    TEXT,
)
LINE = st.one_of(
    GOOD.map(lambda row: json.dumps(row, ensure_ascii=False).encode()),
    st.sampled_from([lines(row)[:-1] for row, _ in BROKEN if row != b"[" * 100_000]),
    st.binary(max_size=30).map(lambda raw: raw.replace(b"\n", b"")),
    st.sampled_from([b"", b" ", b"\r", lines(comparison())[:-1]]),
)


@given(st.lists(LINE, max_size=12), st.booleans())
def test_accepted_and_quarantined_are_all_that_was_read(content: list[bytes], ended: bool) -> None:
    raw = b"\n".join(content) + (b"\n" if ended else b"")
    found = read_comparisons(raw)
    read = [number for number, line in enumerate(content, start=1) if line.strip()]
    assert sorted(found.accepted["line"].to_list() + found.quarantined["line"].to_list()) == read
    assert dict(found.accepted.schema) == COLUMNS
    assert all(found.quarantined["reason"].to_list()) and sum(found.reasons.values()) == found.quarantined.height
    assert read_comparisons(raw).accepted.equals(found.accepted)


@given(GOOD)
def test_a_row_keeps_what_the_line_said(row: dict[str, Any]) -> None:
    found = read_comparisons(lines(row))
    first, second = (response["text"].strip() for response in row["responses"])
    if first == second:
        assert found.reasons == {"the two responses do not differ": 1}
        return
    (kept,) = found.accepted.iter_rows(named=True)
    assert (kept["chosen"], kept["rejected"]) == ((first, second) if row["preferred"] == 0 else (second, first))
    assert kept["chosen_model"] == row["responses"][row["preferred"]]["model"]
    assert kept["rejected_version"] == row["responses"][1 - row["preferred"]]["model_version"]
    assert json.loads(kept["prompt"]) == row["prompt"] and kept["prompt_id"] == prompt_identity(row["prompt"])
    assert (kept["rating"], kept["annotator"], kept["turns"]) == (row["rating"], row["annotator"], 1)


def test_safety_labels_follow_the_chosen_and_the_rejected_answer() -> None:
    found = read_comparisons(lines(comparison(is_safety=True, preferred=1, safe=[False, True])))
    assert found.accepted.select("is_safety", "chosen_safe", "rejected_safe").row(0) == (True, True, False)
    unlabelled = read_comparisons(lines(comparison(safe=None))).accepted
    assert unlabelled.select("chosen_safe", "rejected_safe").row(0) == (None, None)


def test_turns_are_those_of_the_user_and_a_system_message_may_come_first() -> None:
    found = read_comparisons(lines(with_roles("system", "user", "assistant", "user")))
    assert found.accepted["turns"].to_list() == [2]


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm() -> None:
    raw = b"\xef\xbb\xbf" + lines(comparison(), comparison(annotator="rater-8")).replace(b"\n", b"\r\n")
    assert read_comparisons(raw).accepted.height == 2


# The inbox


def test_placing_the_same_file_twice_changes_nothing(tmp_path: Path) -> None:
    content = lines(comparison())
    first = place(tmp_path, "week-1", content)
    before = first.stat()
    assert place(tmp_path, "week-1", content) == first == batch_file(tmp_path, "week-1")
    assert first.read_bytes() == content and first.stat().st_mtime_ns == before.st_mtime_ns and first.stat().st_ino == before.st_ino
    assert [path.name for path in first.parent.iterdir()] == ["week-1.jsonl"]


def test_other_content_under_the_same_name_is_refused_and_the_first_stays(tmp_path: Path) -> None:
    path = place(tmp_path, "week-1", lines(comparison()))
    with pytest.raises(TampuError, match=r"week-1\.jsonl exists with other content: batches never change, choose another name"):
        place(tmp_path, "week-1", lines(comparison(), comparison()))
    assert path.read_bytes() == lines(comparison())


@pytest.mark.parametrize("name", ["", "../week", "a/b", "week 1", ".hidden", "-x", "week.1", "wöche"])
def test_a_name_that_can_not_be_a_partition_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(TampuError, match="letters, digits, '-' and '_' only"):
        place(tmp_path, name, lines(comparison()))
    assert not (tmp_path / "inbox").exists() or not list((tmp_path / "inbox").iterdir())


def test_the_inbox_lists_every_batch_with_the_hash_of_its_file(tmp_path: Path) -> None:
    place(tmp_path, "week-2", b"two\n")
    place(tmp_path, "people_1", b"one\n")
    (tmp_path / "inbox" / "notes.txt").write_text("not a batch")
    assert batches_in(tmp_path) == {
        "people_1": "2c8b08da5ce60398e1f19af0e5dccc744df274b826abe585eaba68c525434806",
        "week-2": "27dd8ed44a83ff94d557f9fd0412ed5a8cbca69ea04922d88c01184a07300a5a",
    }


def test_a_file_that_was_dropped_by_hand_under_a_bad_name_is_named(tmp_path: Path) -> None:
    place(tmp_path, "week-1", b"one\n")
    (tmp_path / "inbox" / "my file.jsonl").write_text("{}")
    with pytest.raises(TampuError, match=r"'my file\.jsonl'.*rename the file"):
        batches_in(tmp_path)


def test_a_batch_whose_file_has_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(TampuError, match="'week-9' has no file"):
        batch_file(tmp_path, "week-9")
