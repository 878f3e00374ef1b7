"""The tables of the corpus investigation, by the paper's definitions."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.corpus import investigation
from assets.corpus.identity_lists import holistic_bias
from assets.corpus.investigation_asset import KEYS, facts
from assets.corpus.language import identify
from assets.corpus.word_lists import IDENTITY_TERMS, PRONOUNS, RUDE_WORDS
from resources.errors import TampuError


def documents(texts: list[str], language: str = "en", source: str = "a") -> pl.DataFrame:
    return pl.DataFrame(
        {"source": [source] * len(texts), "text": texts, "language": [language] * len(texts)},
        schema={"source": pl.String, "text": pl.String, "language": pl.String},
    ).with_columns(split=pl.lit("train"))


def row(table: pl.DataFrame, **where: str) -> dict[str, object]:
    return table.row(by_predicate=pl.all_horizontal(pl.col(key) == value for key, value in where.items()), named=True)


TEXTS = ["She's late. He knows.", "They sang", "the lake is cold", "Is it YOURS?", "we saw ourselves"]


def test_pronouns_are_counted_by_presence_in_english_documents() -> None:
    table = investigation.pronouns(pl.concat([documents(TEXTS), documents(["she he they"], language="fr")]))
    she = row(table, source="all", kind="gender", group="she")
    assert (she["documents"], she["base"]) == (1, 5)
    assert she["share"] == 1 / 5 and she["share_of_kind"] == 1 / 2
    assert row(table, source="all", kind="gender", group="any")["documents"] == 2
    assert row(table, source="all", kind="person", group="1st")["documents"] == 1
    assert row(table, source="all", kind="person", group="2nd")["documents"] == 1
    assert row(table, source="all", kind="person", group="3rd")["documents"] == 3
    assert row(table, source="all", kind="any", group="any")["documents"] == 4


def test_the_third_person_holds_the_three_gender_lists() -> None:
    gender = {word for (kind, _), words in PRONOUNS.items() if kind == "gender" for word in words}
    assert set(PRONOUNS["person", "3rd"]) == gender | {"it", "its", "itself"}
    assert [len(words) for words in PRONOUNS.values()] == [4, 4, 7, 10, 5, 18]


def test_identity_terms_are_shares_of_documents_and_of_their_axis() -> None:
    table = investigation.identity_terms(documents(["A female lama", "male or female", "an American", "nothing"]))
    assert row(table, source="a", axis="gender and sex", term="any")["share"] == 0.5
    assert row(table, source="a", axis="gender and sex", term="female")["share_of_axis"] == 1.0
    assert row(table, source="a", axis="gender and sex", term="male")["share_of_axis"] == 0.5
    assert row(table, source="a", axis="nationality", term="american")["documents"] == 1
    assert row(table, source="a", axis="religion", term="any")["share_of_axis"] is None


def test_every_identity_term_is_one_lower_case_word_on_one_axis() -> None:
    terms = [term for words in IDENTITY_TERMS.values() for term in words]
    assert len(IDENTITY_TERMS) == 5 and len(terms) == len(set(terms))
    assert all(term.isalpha() and term == term.lower() for term in terms)
    assert not {"straight", "white", "black"} & set(terms)


def test_languages_below_the_smallest_share_are_summed() -> None:
    frame = pl.concat([documents(["x"] * 98), documents(["x"], "fr"), documents(["x"], "de")])
    table = investigation.languages(frame, smallest_share=0.02)
    rows = table.filter(pl.col("source") == "all").select("language", "documents", "share").rows()
    assert rows == [("en", 98, 0.98), ("other", 2, 0.02)]


def test_lengths_give_quantiles_by_source_and_unit() -> None:
    table = investigation.lengths(pl.concat([documents(["a b\nc", "a"]), documents(["abc"], source="b")]))
    lines = row(table, source="a", unit="lines")
    assert (lines["documents"], lines["mean"], lines["p50"]) == (2, 1.5, 1.5)
    assert row(table, source="all", unit="characters")["mean"] == 3.0
    assert row(table, source="b", unit="words")["p95"] == 1.0


def test_repetition_and_sources_add_up() -> None:
    frame = pl.concat([documents(["a b c d e a b c d e"]), documents(["one two"], source="b")])
    repeated = investigation.repetition(frame)
    assert row(repeated, source="a")["repeated_5grams_mean"] == 1 / 6
    assert row(repeated, source="all")["repeated_5grams_mean"] == 1 / 12
    shares = investigation.sources(frame)
    assert shares["share"].sum() == pytest.approx(1.0)
    assert shares["words"].to_list() == [10, 2]


def test_toxicity_is_the_mean_of_the_lines_and_any_scorer_may_give_it() -> None:
    frame = documents([f"you {RUDE_WORDS[0]}\nlovely day\n\n", "You " + RUDE_WORDS[0].upper() + "!", "a\nb\nshut up"])
    table = investigation.toxicity(frame)
    found = row(table, source="all")
    assert (found["documents"], found["documents_above"], found["documents_any"]) == (3, 2, 3)
    assert (found["lines"], found["share_of_lines"]) == (6, 0.5)
    assert found["mean"] == pytest.approx((1 / 2 + 1 + 1 / 3) / 3)
    by_length = investigation.toxicity(frame, lambda lines: lines.str.len_chars().to_numpy() / 100, threshold=0.05)
    assert row(by_length, source="all")["documents_any"] == 3
    with pytest.raises(TampuError, match="the scorer gave"):
        investigation.toxicity(frame, lambda lines: np.full(len(lines), 2.0))
    with pytest.raises(TampuError, match="the scorer gave"):
        investigation.toxicity(frame, lambda lines: np.zeros(1))


def test_rude_words_are_whole_words() -> None:
    assert investigation.rude_words(pl.Series(["a scarecrow", "dumbbell", "damn it"])).tolist() == [0.0, 0.0, 1.0]


def test_tables_of_the_english_part_need_the_language() -> None:
    for table in (
        investigation.pronouns,
        investigation.identity_terms,
        investigation.languages,
        investigation.toxicity,
    ):
        with pytest.raises(TampuError, match="no column 'language'"):
            table(documents(["x"]).drop("language"))


words = st.sampled_from("she he they i you it female gay american lake stupid day \n".split(" "))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.lists(words, max_size=8).map(" ".join), st.sampled_from("ab")), min_size=1, max_size=10))
def test_tables_do_not_depend_on_the_order_of_documents_and_sources_add_up_to_all(rows: list[tuple[str, str]]) -> None:
    frame = pl.concat(documents([text], source=source) for text, source in rows)
    for table in (investigation.pronouns, investigation.identity_terms):
        found = table(frame)
        assert table(frame.reverse()).equals(found)
        keys = found.columns[1:3]
        parts = found.filter(pl.col("source") != "all").group_by(keys).agg(pl.col("documents").sum())
        whole = found.filter(pl.col("source") == "all").select(*keys, "documents")
        assert parts.sort(keys).equals(whole.sort(keys))
        assert (found["documents"] <= found["base"]).all()
    assert investigation.toxicity(frame.reverse()).equals(investigation.toxicity(frame))
    assert investigation.lengths(frame.reverse()).equals(investigation.lengths(frame))


def test_no_documents_give_empty_tables() -> None:
    for name in ("pronouns", "identity_terms", "languages", "lengths", "repetition", "sources", "toxicity"):
        assert getattr(investigation, name)(documents([])).height == 0


def test_languages_are_told_apart_and_gibberish_is_not_taken_for_one() -> None:
    frame = documents(
        [
            "Where shall we go for dinner tonight, and who is coming along?",
            "Wo sollen wir heute Abend essen gehen, und wer kommt eigentlich mit?",
            "hm",
        ]
    ).drop("language")
    found = identify(frame)
    assert found["language"].to_list() == ["en", "de", "unknown"]
    assert found["language_probability"].is_between(0, 1).all()
    assert identify(frame, threshold=1.0)["language"].to_list() == ["unknown"] * 3


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.lists(words, max_size=8).map(" ".join), st.sampled_from("ab")), min_size=1, max_size=10), st.integers(1, 4))
def test_a_corpus_in_batches_gives_the_tables_that_it_gives_whole(rows: list[tuple[str, str]], size: int) -> None:
    frame = pl.concat(documents([text], source=source) for text, source in rows)
    wanted = investigation.measures()
    whole = {name: measure(frame) for name, measure in wanted.items()}
    parts = [frame[begin : begin + size] for begin in range(0, frame.height, size)]
    for name, table in investigation.investigate(parts, wanted, workers=2).items():
        assert table.equals(whole[name]), name


def test_every_number_of_a_table_is_a_row_of_the_warehouse() -> None:
    frame = pl.concat([documents(TEXTS), documents(["a female lama"], source="b")])
    for name, measure in investigation.measures().items():
        table = measure(frame)
        rows = facts(name, table)
        keys = [key for key in ("source", *KEYS[name]) if key is not None]
        numbers = table.drop(keys)
        assert rows.height == sum(numbers.height - numbers[column].null_count() for column in numbers.columns)
        assert rows.select("source", "kind", "term", "metric").is_unique().all()


def test_the_share_of_documents_for_toxicity_is_chosen_by_their_ids() -> None:
    frame = documents([f"stupid line {i}" for i in range(300)]).with_columns(document_id=pl.format("a/{}", pl.int_range(300)))
    measure = investigation.measures(toxicity_share=0.1)["toxicity"]
    table = measure(frame)
    assert 10 < row(table, source="all")["documents"] < 60  # type: ignore[operator]
    assert measure(frame.reverse()).equals(table)


def test_identity_terms_are_read_from_the_lists_of_holistic_bias(tmp_path: Path) -> None:
    tree = {
        "gender_and_sex": {"x": ["female", "gay", {"descriptor": "gender-fluid"}]},
        "sexual_orientation": {"x": ["gay", "straight"]},
        "nationality": {"x": ["American"]},
        "race_ethnicity": {"x": ["African-American", "white"]},
        "religion": {"x": ["Latter-day Saint"]},
        "body_type": {"x": ["tall"]},
    }
    path = tmp_path / "descriptors.json"
    path.write_text(json.dumps(tree))
    terms = holistic_bias(path)
    assert terms["gender and sex"] == ("female", "gender fluid") and terms["sexual orientation"] == ("gay",)
    lines = [
        json.dumps({"axis": axis, "descriptor": term if isinstance(term, str) else term["descriptor"]})
        for axis in tree
        for term in tree[axis]["x"]
    ]
    packed = tmp_path / "descriptors.jsonl.gz"
    packed.write_bytes(gzip.compress("\n".join(lines).encode()))
    assert holistic_bias(packed) == terms
    spoken = documents(["An AFRICAN American, American too.", "a gender, fluid", "latter day saint", "the saint of a latter day", "tall"])
    table = investigation.identity_terms(spoken, terms)
    assert row(table, source="all", axis="race and ethnicity", term="african american")["documents"] == 1
    assert row(table, source="all", axis="nationality", term="american")["documents"] == 1
    assert row(table, source="all", axis="gender and sex", term="gender fluid")["documents"] == 1
    assert row(table, source="all", axis="religion", term="any")["documents"] == 1
    path.write_text("[1]")
    with pytest.raises(TampuError, match="no list of HolisticBias descriptors"):
        holistic_bias(path)
    path.write_text(json.dumps({"religion": {"x": ["Sikh"]}}))
    with pytest.raises(TampuError, match="no descriptor on the axis 'gender and sex'"):
        holistic_bias(path)


def test_a_classifier_of_the_hubs_form_scores_lines(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    from assets.corpus.toxicity_model import classifier

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "lovely", "day", "stupid"]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    shape = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=32
    )
    BertForSequenceClassification(shape).save_pretrained(tmp_path)
    scorer = classifier(str(tmp_path))
    lines = pl.Series(["lovely day", "stupid", "lovely lovely stupid day"])
    scores = scorer(lines)
    assert scores.shape == (3,) and ((scores > 0) & (scores < 1)).all()
    assert scorer(lines.reverse())[::-1] == pytest.approx(scores, abs=1e-6)
    assert investigation.toxicity(documents(lines.to_list()), scorer)["documents"].to_list() == [3, 3]
    (tmp_path / "none").mkdir()
    with pytest.raises(TampuError, match=r"toxicity model .* cannot be loaded"):
        classifier(str(tmp_path / "none"))
    with pytest.raises(TampuError, match=r"can change on the hub: write tomh/toxigen_hatebert@<commit>"):
        classifier("tomh/toxigen_hatebert")


@pytest.mark.skipif("TAMPU_TEST_DATA" not in os.environ, reason="TAMPU_TEST_DATA names no folder of text")
def test_the_published_descriptors_have_terms_on_all_five_axes() -> None:
    terms = holistic_bias(Path(os.environ["TAMPU_TEST_DATA"]) / "safety" / "holistic_bias_descriptors.jsonl.gz")
    assert all(len(words) > 10 for words in terms.values())
