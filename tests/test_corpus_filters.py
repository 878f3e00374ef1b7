"""The filter chain: every document is kept or rejected with a reason, whatever the order of the rows."""

import os
import unicodedata
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from assets.corpus.filters import FilterSettings, apply_filters, normalise
from assets.corpus.mixing import mix, mixture
from assets.corpus.quality import RULES, Quality, broken_rule, measure
from resources.errors import TampuError
from resources.sources import DOCUMENT_SCHEMA, Source, read_documents

TALK = "I went to the lake with my brother and we had to walk back because of the rain."


def documents(texts: list[str], source: str = "a", split: str = "train") -> pl.DataFrame:
    rows = [(f"{source}/{i:03d}", source, text, False, split, f"{source}/{i}", None) for i, text in enumerate(texts)]
    return pl.DataFrame(rows, schema=DOCUMENT_SCHEMA, orient="row")


def rule_of(text: str, language: str = "en", **limits: float) -> str | None:
    frame = documents([text]).with_columns(language=pl.lit(language))
    return broken_rule(measure(frame), Quality(**limits))[0]  # type: ignore[arg-type]


any_text = st.text(max_size=60)
words = st.sampled_from(["hello", "how", "are", "you", "the", "lake", "rain", "a@b.example", "+1 650 253 0000", "!!!!!!", "\n", "ok", "été"])
chat = st.lists(words, max_size=25).map(" ".join)
frames = st.lists(st.tuples(chat, st.sampled_from(["train", "validation", "test"])), min_size=1, max_size=12).map(
    lambda rows: pl.concat(
        documents([text], source=f"s{i % 2}", split=split).with_columns(document_id=pl.lit(f"s{i % 2}/{i}"))
        for i, (text, split) in enumerate(rows)
    )
)


@settings(deadline=None)
@given(st.lists(any_text, min_size=1, max_size=8))
def test_normalising_twice_is_normalising_once(texts: list[str]) -> None:
    once = normalise(documents(texts))
    assert normalise(once).equals(once)
    for text in once["text"]:
        assert text == unicodedata.normalize("NFC", text) == text.strip()
        assert not any(unicodedata.category(c) == "Cc" and c != "\n" for c in text)
        assert "  " not in text and "\n\n\n" not in text and "\u2028" not in text


def test_normalising_joins_accents_keeps_emoji_whole_and_keeps_lines_apart() -> None:
    family = "\U0001f468\u200d\U0001f469"
    frame = normalise(documents([f"cafe\u0301\u00a0 \tnow\r\nyes\u2028{family}\u200b\ufeff \n\n\n\n no\x00"]))
    assert frame["text"].item() == f"caf\u00e9 now\nyes\n{family}\n\nno"


@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(frames, st.randoms(use_true_random=False))
def test_every_document_is_kept_or_rejected_once_in_any_order_of_the_rows(frame: pl.DataFrame, random) -> None:  # type: ignore[no-untyped-def]
    found = apply_filters(frame)
    ids = [*found.frame["document_id"], *found.rejects["document_id"]]
    assert sorted(ids) == sorted(frame["document_id"])
    for source, part in found.counts.group_by("source"):
        rejects = found.rejects.filter(pl.col("source") == source[0])["filter"].value_counts()
        rejected = dict(rejects.iter_rows())
        before = frame.filter(pl.col("source") == source[0])
        assert part["documents_in"][0] == before.height
        assert part["bytes_in"][0] == before["text"].str.len_bytes().sum()
        assert part["documents_in"][1:].to_list() == part["documents_out"][:-1].to_list()
        assert part["bytes_in"][1:].to_list() == part["bytes_out"][:-1].to_list()
        for name, documents_in, documents_out in part.select("filter", "documents_in", "documents_out").iter_rows():
            assert documents_in == documents_out + rejected.get(name, 0)
        kept = found.frame.filter(pl.col("source") == source[0])
        assert part["bytes_out"][-1] == kept["text"].str.len_bytes().sum()

    rows = list(range(frame.height))
    random.shuffle(rows)
    again = apply_filters(frame[rows])
    assert again.frame.equals(found.frame)
    assert again.rejects.equals(found.rejects) and again.counts.equals(found.counts)


def test_what_passed_the_chain_passes_it_again_unchanged() -> None:
    once = apply_filters(documents([TALK, TALK + " Write to me at ann@lake.example or 650-253-0000.", "no", "5 5 5 5 5"]))
    twice = apply_filters(once.frame)
    texts = ["document_id", "text", "split"]
    assert twice.frame.select(texts).equals(once.frame.select(texts))
    assert twice.rejects.height == 0 and twice.personal_data.height == 0


def test_rejects_keep_their_text_and_say_which_number_was_judged() -> None:
    french = "Je ne sais pas encore si nous irons au marché demain matin avec les enfants de ma sœur."
    found = apply_filters(documents([TALK, TALK, "too short", french]))
    rows = {row["document_id"]: row for row in found.rejects.iter_rows(named=True)}
    assert {key: row["filter"] for key, row in rows.items()} == {
        "a/001": "exact_duplicate",
        "a/002": "words",
        "a/003": "language",
    }
    assert rows["a/001"]["detail"] == "a/000"
    assert rows["a/002"]["value"] == 2 and rows["a/002"]["text"] == "too short"
    assert rows["a/003"]["detail"] == "fr" and rows["a/003"]["value"] > 0.5
    kept = apply_filters(documents([french]), replace(FilterSettings(), languages=("en", "fr")))
    assert kept.frame["language"].to_list() == ["fr"]


def test_a_greeting_too_short_to_tell_its_language_is_not_taken_for_a_foreign_text() -> None:
    limits = replace(FilterSettings(), quality=Quality(words_min=1))
    found = apply_filters(documents(["Hey"]), limits)
    assert found.frame["language"].to_list() == ["unknown"]


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (TALK, None),
        ("hi there", "words"),
        ("a b c d e f g h", "mean_word_length"),
        (
            "Internationalisation characteristically misrepresents counterrevolutionaries notwithstanding",
            "mean_word_length",
        ),
        (TALK + " Well, here it comes: this is what my cat typed as she ran over it " + "a" * 150, "longest_word"),
        ("hey ##### you @@@@ there ^^^^^ now", "symbol_share"),
        ("we had 12 45 78 99 31 22", "alphabetic_words"),
        ("where did you go last night\n" * 4 + "home", "repeated_lines"),
        ("it is so very cold out " * 5, "repeated_ngrams"),
        (" ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(120)), "stop_words"),
    ],
)
def test_each_quality_rule_catches_what_it_is_for(text: str, rule: str | None) -> None:
    assert rule_of(text) == rule


def test_the_stop_word_rule_is_asked_of_english_only() -> None:
    text = " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(120))
    assert rule_of(text, language="fi") is None


def test_quality_is_measured_for_every_rule_also_of_an_empty_text() -> None:
    measured = measure(documents(["", TALK]).with_columns(language=pl.lit("en")))
    assert measured.columns == list(RULES)
    assert measured["words"].to_list() == [0, 18]
    assert rule_of("") == "words"


def test_documents_without_a_column_or_with_a_repeated_id_are_refused_by_name() -> None:
    frame = documents([TALK])
    with pytest.raises(TampuError, match="no column 'group'"):
        apply_filters(frame.drop("group"))
    with pytest.raises(TampuError, match="'a/000' comes more than once"):
        apply_filters(pl.concat([frame, frame]))


@pytest.mark.parametrize(
    "build",
    [
        lambda: Quality(symbol_share_max=1.5),
        lambda: Quality(mean_word_length_min=11),
        lambda: Quality(words_min=-1),
        lambda: Quality(stop_words_min=9),
        lambda: FilterSettings(languages=()),
        lambda: FilterSettings(language_threshold=2),
        lambda: FilterSettings(language_characters=0),
    ],
)
def test_a_limit_out_of_range_is_refused(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TampuError, match="filter: "):
        build()


def test_no_documents_give_empty_tables_of_the_same_shape() -> None:
    found, full = apply_filters(documents([])), apply_filters(documents([TALK]))
    assert found.frame.schema == full.frame.schema
    assert found.rejects.schema == full.rejects.schema and found.counts.schema == full.counts.schema
    assert found.frame.height == found.rejects.height == found.counts.height == 0


@settings(deadline=None)
@given(st.floats(0.1, 4), st.integers(0, 5))
def test_mixing_repeats_training_documents_by_weight_and_held_out_ones_never(weight: float, seed: int) -> None:
    frame = pl.concat([documents(["x"] * 200), documents(["y"] * 20, source="b"), documents(["z"] * 9, source="c", split="test")])
    weights = {"a": weight, "b": 1.0, "c": 5.0}
    mixed = mix(frame, weights, seed=seed)
    copies = dict(mixed.group_by("source").len().iter_rows())
    assert abs(copies.get("a", 0) - 200 * weight) < 40
    assert copies["b"] == 20 and copies["c"] == 9
    per_document = mixed.filter(pl.col("source") == "a").group_by("document_id").len()["len"]
    assert set(per_document) <= {int(weight), int(weight) + 1}
    assert mix(frame.reverse(), weights, seed=seed).equals(mixed)


def test_the_mixture_table_gives_shares_and_epochs_of_the_training_part() -> None:
    frame = pl.concat([documents(["xx"] * 10), documents(["yyyy"] * 5, source="b")])
    table = mixture(mix(frame, {"a": 1.0, "b": 3.0}, seed=0))
    assert table["epochs"].to_list() == [1.0, 3.0]
    assert table["bytes"].to_list() == [20, 60] and table["share"].to_list() == [0.25, 0.75]


def test_mixing_refuses_a_source_without_a_weight_above_0() -> None:
    for weights in ({}, {"a": 0.0}, {"a": float("nan")}):
        with pytest.raises(TampuError, match="source 'a'"):
            mix(documents([TALK]), weights, seed=0)


@pytest.mark.skipif("TAMPU_TEST_DATA" not in os.environ, reason="TAMPU_TEST_DATA names no folder of text")
def test_most_of_a_real_encyclopedia_passes_the_chain() -> None:
    path = Path(os.environ["TAMPU_TEST_DATA"]) / "pretrain" / "wiki.jsonl.gz"
    source = Source(name="wiki", reader="jsonl", licence="CC BY-SA 3.0", path=path)
    frame = read_documents(source, validation=0.1, test=0.1).frame
    found = apply_filters(frame)
    assert found.frame.height >= 0.9 * frame.height
