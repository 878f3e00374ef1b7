"""Personal data: what is found, what is left alone, and that nothing is left after redaction."""

import os
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assets.corpus.personal_data import PLACEHOLDERS, PersonalData, find, redact, redact_frame
from resources.errors import TampuError
from resources.sources import Source, read_documents


def documents(texts: list[str]) -> pl.DataFrame:
    return pl.DataFrame(
        {"document_id": [f"a/{i}" for i in range(len(texts))], "source": ["a"] * len(texts), "text": texts},
        schema={"document_id": pl.String, "source": pl.String, "text": pl.String},
    )


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("write to Ann.Lee+news@mail.example.org, please", "write to |||EMAIL_ADDRESS|||, please"),
        ("jürgen@müller.example is mine", "|||EMAIL_ADDRESS||| is mine"),
        ("call (650) 253-0000 today", "call |||PHONE_NUMBER||| today"),
        ("call 650.253.0000.", "call |||PHONE_NUMBER|||."),
        ("in London +44 20 7946 0958", "in London |||PHONE_NUMBER|||"),
        ("my host is 203.0.113.7.", "my host is |||IP_ADDRESS|||."),
        ("ping 8.8.8.8", "ping |||IP_ADDRESS|||"),
        ("at 2001:db8::ff00:42:8329 now", "at |||IP_ADDRESS||| now"),
        ("card 4111 1111 1111 1111 ok", "card |||CREDIT_CARD||| ok"),
        ("amex 378282246310005", "amex |||CREDIT_CARD|||"),
        ("5555-5555-5555-4444", "|||CREDIT_CARD|||"),
        ("pay GB82 WEST 1234 5698 7654 32 please", "pay |||IBAN||| please"),
        ("DE89370400440532013000", "|||IBAN|||"),
        ("a@b.example c@d.example", "|||EMAIL_ADDRESS||| |||EMAIL_ADDRESS|||"),
    ],
)
def test_personal_data_becomes_a_typed_placeholder(text: str, redacted: str) -> None:
    assert redact(text)[0] == redacted


@pytest.mark.parametrize(
    "text",
    [
        "In 2010 and 2011 and 2012 we grew by 1,234,567 people.",
        "It is 12:30:45 now, at 3:15 too",
        "version 1.2.3 of 300.400.500.600",
        "card 4111 1111 1111 1112 has a wrong check digit",
        "GB83 WEST 1234 5698 7654 32 has wrong check digits",
        "std::vector and a::b and ::",
        "me @ home, see @ann",
        "Next meeting: 2023-01-01 11:30, then 2021/12/08 09:15, 20230101 17:20 and 2021-2022",
        "3.14159265358979",
        "0000 0000 0000 0000",
        "12345678901234567890123456789",
    ],
)
def test_numbers_that_are_no_personal_data_stay(text: str) -> None:
    assert redact(text) == (text, {})


noise = st.text(alphabet="0123456789abfGB@.:-+() \n|é", max_size=60)
known = st.sampled_from(
    [
        "a@b.example",
        "650-253-0000",
        "8.8.8.8",
        "4111111111111111",
        "GB82WEST12345698765432",
        "::1:2:3",
        " ",
        "call",
        "\n",
    ]
)


@settings(deadline=None, max_examples=300)
@given(st.one_of(noise, st.lists(st.one_of(known, noise), max_size=6).map("".join)))
def test_redaction_leaves_nothing_to_find_and_redacts_once(text: str) -> None:
    redacted, counts = redact(text)
    assert find(redacted) == {}
    assert redact(redacted) == (redacted, {})
    assert (redacted == text) == (counts == {})
    assert redacted.count("\n") == text.count("\n")


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(noise, st.lists(st.one_of(known, noise), max_size=4).map("".join)), min_size=1, max_size=5))
def test_a_frame_is_redacted_like_its_texts_and_its_counts_add_up(texts: list[str]) -> None:
    found = redact_frame(documents(texts))
    assert found.frame["text"].to_list() == [redact(text)[0] for text in texts]
    spans = dict(found.counts.select("type", "spans").iter_rows())
    for kind in PLACEHOLDERS:
        assert spans.get(kind, 0) == sum(redact(text)[1].get(kind, 0) for text in texts)


def test_placeholders_hold_nothing_that_a_detector_or_a_dialogue_tag_needs() -> None:
    for placeholder in PLACEHOLDERS.values():
        assert not set(placeholder) & set("<>[]@:0123456789\n ")
        assert find(placeholder) == {}


def test_documents_dense_with_personal_data_are_named_and_long_ones_with_few_are_not() -> None:
    numbers = " ".join(f"650-253-{i:04d}" for i in range(8))
    found = redact_frame(documents([numbers, numbers + " word" * 2000, "only 650-253-0000"]))
    assert found.dense["document_id"].to_list() == ["a/0"]
    assert found.dense["value"][0] == pytest.approx(1000 * 8 / len(numbers))
    counts = found.counts.to_dicts()
    assert counts == [{"source": "a", "type": "phone", "documents": 3, "spans": 17}]


def test_numbers_without_a_country_code_are_read_in_the_region_asked_for() -> None:
    assert redact("ring 020 7946 0958", "GB")[1] == {"phone": 1}
    assert redact("ring 020 7946 0958", "US")[1] == {}


def test_long_runs_of_one_kind_of_character_are_read_in_linear_time() -> None:
    for run in ("a" * 200_000, "1" * 200_000, "1.1." * 50_000, "a@" * 100_000, ":" * 200_000, "ab12 " * 40_000):
        redact(run)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(TampuError, match="phone_region 'XX' is unknown"):
        PersonalData(phone_region="XX")
    with pytest.raises(TampuError, match="spans_max -1"):
        PersonalData(spans_max=-1)
    with pytest.raises(TampuError, match="per_thousand_max nan"):
        PersonalData(per_thousand_max=float("nan"))


@pytest.mark.skipif("TAMPU_TEST_DATA" not in os.environ, reason="TAMPU_TEST_DATA names no folder of text")
def test_nothing_is_left_in_real_business_text() -> None:
    path = Path(os.environ["TAMPU_TEST_DATA"]) / "privacy" / "enterprise_pii.jsonl.gz"
    source = Source(name="business", reader="jsonl", licence="see its folder", path=path, text_field="query")
    found = redact_frame(read_documents(source, validation=0.1, test=0.1).frame)
    assert found.counts["spans"].sum() > 0
    assert all(find(text) == {} for text in found.frame["text"])


NATIONAL = [
    "536-90-4399",
    "AB 12 34 56 C",
    "12345678Z",
    "X-1234567-L",
    "RSSMRA85T10A562S",
    "111.444.777-35",
    "123 456 782",
    "131052-308T",
    "ABCPE1234F",
]


@pytest.mark.parametrize("number", NATIONAL)
def test_identity_numbers_of_several_countries_are_redacted(number: str) -> None:
    text, spans = redact(f"My number is {number}, thanks.")
    assert (text, spans) == ("My number is |||NATIONAL_ID|||, thanks.", {"national_id": 1})


@pytest.mark.parametrize("number", ["000-12-3456", "536-90-43991", "BG 12 34 56 A", "12345678A", "111.444.777-36", "123 456 783", "ABCDE1234F"])
def test_numbers_of_the_form_with_a_wrong_check_are_left_alone(number: str) -> None:
    assert "national_id" not in redact(f"My number is {number}, thanks.")[1]


parts = st.sampled_from(
    [*NATIONAL, "a@b.example", "8.8.8.8", "2001:db8::ff00:42:8329", "4111 1111 1111 1111", "GB82 WEST 1234 5698 7654 32", "(650) 253-0000"]
)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.one_of(parts, st.text("0123456789 .:-@+ABxy", max_size=24)), max_size=5).map(" ".join))
def test_a_column_is_redacted_as_its_texts_are(text: str) -> None:
    assert redact_frame(documents([text])).frame["text"].to_list() == [redact(text)[0]]
