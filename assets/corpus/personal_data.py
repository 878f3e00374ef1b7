"""Personal data in texts: found by pattern and checksum, replaced by typed placeholders, counted, and dropped if dense.

The placeholders are Dolma's (arXiv:2402.00159) and two of the same form. They hold no digit, '@' or
colon, so redacting twice is redacting once, and no brackets, so they never look like dialogue tags.
Names and postal addresses are not found: that needs a trained tagger.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import polars as pl

from resources.errors import TampuError

PLACEHOLDERS = {
    "iban": "|||IBAN|||",
    "credit_card": "|||CREDIT_CARD|||",
    "email": "|||EMAIL_ADDRESS|||",
    "ip_address": "|||IP_ADDRESS|||",
    "phone": "|||PHONE_NUMBER|||",
}

COUNT_SCHEMA: dict[str, type[pl.DataType]] = {
    "source": pl.String,
    "type": pl.String,
    "documents": pl.Int64,
    "spans": pl.Int64,
}

Span = tuple[int, int]


@dataclass(frozen=True)
class PersonalData:
    """A document is dropped if it holds more than `spans_max` spans (Dolma's 5) and more than `per_thousand_max` of
    them in 1,000 characters (our choice: a long text may name six contacts). `phone_region` reads numbers without a
    country code (ISO 3166 alpha-2)."""

    spans_max: int = 5
    per_thousand_max: float = 2.0
    phone_region: str = "US"

    def __post_init__(self) -> None:
        import phonenumbers

        if self.spans_max < 0 or not self.per_thousand_max >= 0:
            raise TampuError(f"personal data: spans_max {self.spans_max} and per_thousand_max {self.per_thousand_max} must be numbers from 0 up")
        if self.phone_region not in phonenumbers.SUPPORTED_REGIONS:
            raise TampuError(f"personal data: phone_region {self.phone_region!r} is unknown; expected a code such as 'US'")


@dataclass(frozen=True)
class Redacted:
    """`frame` with redacted texts, in the order given; `dense` (document_id, value) names the documents that are to be
    dropped, with their spans in 1,000 characters; `counts` has COUNT_SCHEMA over all documents given."""

    frame: pl.DataFrame
    dense: pl.DataFrame
    counts: pl.DataFrame


# What a text must hold for any detector to look at it; a regex of the Rust engine, run over whole columns.
_SUSPECT = (
    r"@"
    r"|[0-9](?:[^0-9\n]{0,3}[0-9]){6}"
    r"|[0-9](?:\.[0-9]{1,3}){2}\.[0-9]"
    r"|[0-9A-Fa-f]:[0-9A-Fa-f:]*:"
    r"|\b[A-Za-z]{2}[0-9]{2} ?[A-Za-z0-9]"
)


def redact_frame(frame: pl.DataFrame, settings: PersonalData = PersonalData()) -> Redacted:
    """Redacts the column `text`. Needs the columns document_id, source and text."""
    suspect = frame["text"].str.contains(_SUSPECT)
    texts = frame["text"].to_list()
    found: list[tuple[str, str, int]] = []
    dense: list[tuple[str, float]] = []
    names, sources = frame["document_id"].to_list(), frame["source"].to_list()
    for index in suspect.arg_true():
        length = len(texts[index])
        texts[index], spans = redact(texts[index], settings.phone_region)
        found += [(sources[index], kind, number) for kind, number in spans.items()]
        total = sum(spans.values())
        rate = 1000 * total / max(length, 1)
        if total > settings.spans_max and rate > settings.per_thousand_max:
            dense.append((names[index], rate))
    counts = pl.DataFrame(found, schema={"source": pl.String, "type": pl.String, "spans": pl.Int64}, orient="row")
    counts = counts.group_by("source", "type").agg(documents=pl.len().cast(pl.Int64), spans=pl.col("spans").sum())
    return Redacted(
        frame=frame.with_columns(text=pl.Series(texts, dtype=pl.String)),
        dense=pl.DataFrame(dense, schema={"document_id": pl.String, "value": pl.Float64}, orient="row"),
        counts=counts.select(COUNT_SCHEMA.keys()).sort("source", "type"),
    )


def redact(text: str, phone_region: str = "US") -> tuple[str, dict[str, int]]:
    """`text` with every span replaced by its placeholder, and the number of spans by type (types found only).

    Repeats until nothing is found: what a replaced span leaves beside it may be a span of its own. It ends, for each
    round takes digits, '@' or colons away.
    """
    counts: dict[str, int] = {}
    again = True
    while again:
        again = False
        for kind, spans in _DETECTORS.items():
            found = list(spans(text, phone_region))
            if found:
                text = PLACEHOLDERS[kind].join(_outside(text, found))
                counts[kind] = counts.get(kind, 0) + len(found)
                again = True
    return text, counts


def _outside(text: str, spans: list[Span]) -> list[str]:
    """The parts of `text` before, between and behind `spans`, which are sorted and do not overlap."""
    edges = [0, *(edge for span in spans for edge in span), len(text)]
    return [text[start:end] for start, end in zip(edges[::2], edges[1::2], strict=True)]


def find(text: str, phone_region: str = "US") -> dict[str, list[Span]]:
    """The spans [start, end) that each detector finds in `text` by itself, by type (types found only)."""
    found = {kind: list(spans(text, phone_region)) for kind, spans in _DETECTORS.items()}
    return {kind: spans for kind, spans in found.items() if spans}


# The look-behind lets a match begin only where a run of these characters begins, so a long run is read once.
_EMAIL = re.compile(r"(?<![\w.%+\-])[\w.%+\-]+@(?:[\w\-]+\.)+[^\W\d_]{2,}")


def _emails(text: str, region: str) -> Iterator[Span]:
    if "@" in text:
        yield from (match.span() for match in _EMAIL.finditer(text))


_OCTET = r"(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = re.compile(rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?![\w]|\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{5,39}(?![\w:])")


def _ip_addresses(text: str, region: str) -> Iterator[Span]:
    """Every valid address, private ranges included. IPv6 needs three groups: `::` alone is an operator in code."""
    spans = [match.span() for match in _IPV4.finditer(text)] if text.count(".") >= 3 else []
    for match in _IPV6.finditer(text) if text.count(":") >= 2 else ():
        if sum(bool(group) for group in match[0].split(":")) >= 3 and _is_ipv6(match[0]):
            spans.append(match.span())
    yield from sorted(spans)


def _is_ipv6(candidate: str) -> bool:
    try:
        ipaddress.IPv6Address(candidate)
    except ValueError:
        return False
    return True


_CARD = re.compile(r"(?<![\w.])(?:[0-9][ \-]?){12,18}[0-9](?!\w)")
# First digits and lengths (ISO/IEC 7812) of Visa, Mastercard, American Express, Discover, JCB, Diners Club, UnionPay,
# and Maestro.
_ISSUER = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|(?:5[1-5]|2[2-7])\d{14}|3[47]\d{13}|6(?:011|4[4-9]\d|5\d\d)\d{12,15}"
    r"|35\d{14}|3(?:0[0-5]|[689]\d)\d{11}|62\d{14,17}|(?:50|5[6-9]|6[37])\d{10,17}"
)


def _credit_cards(text: str, region: str) -> Iterator[Span]:
    """Card numbers of a known issuer whose Luhn check digit is right."""
    for match in _CARD.finditer(text):
        digits = re.sub(r"[ \-]", "", match[0])
        if _ISSUER.fullmatch(digits) and _luhn(digits):
            yield match.span()


def _luhn(digits: str) -> bool:
    from stdnum import luhn

    return luhn.is_valid(digits)


_IBAN = re.compile(r"(?<!\w)[A-Za-z]{2}[0-9]{2}(?: ?[A-Za-z0-9]){11,30}")


def _ibans(text: str, region: str) -> Iterator[Span]:
    """Account numbers whose ISO 7064 check digits and national length are right; the longest at each place."""
    from stdnum import iban

    position = 0
    while match := _IBAN.search(text, position):
        position = match.start() + 1
        for end in range(match.end(), match.start() + 14, -1):
            whole = not text[end - 1].isspace() and not text[end : end + 1].isalnum()
            if whole and iban.is_valid(text[match.start() : end], check_country=False):
                yield match.start(), end
                position = end
                break


_PHONE = re.compile(r"(?<![\w.,/=\-])(?:\+|\()?[0-9](?:[ \t().\-/]{0,3}[0-9]){6,17}(?![\w@])")


def _phones(text: str, region: str) -> Iterator[Span]:
    """Numbers that are valid in `region` or by their country code (Google's libphonenumber, at its level VALID)."""
    import phonenumbers

    for match in _PHONE.finditer(text):
        for found in phonenumbers.PhoneNumberMatcher(match[0], region):
            yield match.start() + found.start, match.start() + found.end


# Numbers with a checksum come first, so that no other pattern takes a part of them.
_DETECTORS: dict[str, Callable[[str, str], Iterator[Span]]] = {
    "iban": _ibans,
    "credit_card": _credit_cards,
    "email": _emails,
    "ip_address": _ip_addresses,
    "phone": _phones,
}
