"""Personal data in texts: found by pattern and checksum, replaced by typed placeholders, counted, and dropped if dense.

The placeholders are Dolma's (arXiv:2402.00159) and three of the same form. They hold no digit, '@' or
colon, so redacting twice is redacting once, and no brackets, so they never look like dialogue tags.
Names and postal addresses are not found: that needs a trained tagger.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import polars as pl

from resources.errors import TampuError

PLACEHOLDERS = {
    "iban": "|||IBAN|||",
    "credit_card": "|||CREDIT_CARD|||",
    "national_id": "|||NATIONAL_ID|||",
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


# What a text must hold for a detector to find anything in it; regexes of the Rust engine, run over whole columns.
_SUSPECTS = {
    "iban": r"\b[A-Za-z]{2}[0-9]{2}(?: ?[A-Za-z0-9]){11}",
    "credit_card": r"[0-9](?:[ \-]?[0-9]){12}",
    "national_id": r"[0-9]{3}[ .\-][0-9]{2,3}[ .\-][0-9]{3}|[0-9]{4}[ \-][0-9]{4}[ \-][0-9]{4}|[0-9]{17}"
    r"|[0-9](?: ?[0-9ABab]){14}|[0-9]{7}-?[A-Z]|[0-9]{6}[\-+A][0-9]{3}|[A-Z]{5}[0-9]{4}[A-Z]"
    r"|[A-Z]{6}[0-9A-Z]{2}[A-Z][0-9A-Z]{2}[A-Z][0-9A-Z]{3}[A-Z]|[A-Z]{2} ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]",
    "email": r"@",
    "ip_address": r"[0-9]\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|[0-9A-Fa-f:]:[0-9A-Fa-f:]*:",
    "phone": r"[0-9](?:[ \t().\-/]{0,3}[0-9]){6}",
}
_SUSPECT = "|".join(_SUSPECTS.values())


def redact_frame(frame: pl.DataFrame, settings: PersonalData = PersonalData()) -> Redacted:
    """Redacts the column `text`. Needs the columns document_id, source and text."""
    places = frame["text"].str.contains(_SUSPECT).arg_true()
    kinds = frame["text"].gather(places).to_frame().select(pl.col("text").str.contains(form).alias(kind) for kind, form in _SUSPECTS.items())
    texts = frame["text"].to_list()
    found: list[tuple[str, str, int]] = []
    dense: list[tuple[str, float]] = []
    names, sources = frame["document_id"].to_list(), frame["source"].to_list()
    for index, suspected in zip(places, kinds.iter_rows(named=True), strict=True):
        length = len(texts[index])
        texts[index], spans = redact(texts[index], settings.phone_region, [kind for kind in _DETECTORS if suspected[kind]])
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


def redact(text: str, phone_region: str = "US", kinds: Sequence[str] = tuple(PLACEHOLDERS)) -> tuple[str, dict[str, int]]:
    """`text` with every span replaced by its placeholder, and the number of spans by type (types found only).

    Repeats until nothing is found: what a replaced span leaves beside it may be a span of its own. It ends, for each
    round takes digits, '@' or colons away. The first round looks for `kinds` alone.
    """
    counts: dict[str, int] = {}
    again = True
    while again:
        again = False
        for kind in kinds:
            found = list(_DETECTORS[kind](text, phone_region))
            if found:
                text = PLACEHOLDERS[kind].join(_outside(text, found))
                counts[kind] = counts.get(kind, 0) + len(found)
                again = True
        kinds = tuple(_DETECTORS)
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


# National numbers that a form or a check digit tells from other numbers; bare runs of nine to eleven digits are left out,
# for one in ten of them passes any check. Each has its module of python-stdnum, but for the United Kingdom's, whose rule
# is HMRC's (NIM39110).
_NATIONAL = re.compile(
    r"(?<![\w.,/=\-])(?:"
    r"(?P<us>[0-9]{3}-[0-9]{2}-[0-9]{4})"
    r"|(?P<ca>[0-9]{3}[ \-][0-9]{3}[ \-][0-9]{3})"
    r"|(?P<br>[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2})"
    r"|(?P<india>[2-9][0-9]{3}[ \-][0-9]{4}[ \-][0-9]{4})"
    r"|(?P<de>[1-9][0-9] [0-9]{3} [0-9]{3} [0-9]{3})"
    r"|(?P<cn>[1-9][0-9]{16}[0-9Xx])"
    r"|(?P<fr>[1278] ?[0-9]{2} ?[0-9]{2} ?(?:[0-9]{2}|2[ABab]) ?[0-9]{3} ?[0-9]{3} ?[0-9]{2})"
    r"|(?P<dni>[0-9]{8}-?[A-Z])"
    r"|(?P<nie>[XYZ]-?[0-9]{7}-?[A-Z])"
    r"|(?P<it>[A-Z]{6}[0-9LMNP-V]{2}[A-EHLMPR-T][0-9LMNP-V]{2}[A-Z][0-9LMNP-V]{3}[A-Z])"
    r"|(?P<se>(?:[0-9]{2})?[0-9]{6}[\-+][0-9]{4})"
    r"|(?P<fi>[0-9]{6}[\-+A][0-9]{3}[0-9A-Y])"
    r"|(?P<pan>[A-Z]{3}P[A-Z][0-9]{4}[A-Z])"
    r"|(?P<gb>(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D])"
    r")(?!\w|[\-.,/=][0-9])"
)
_NATIONAL_MODULES = {
    "us": "us.ssn",
    "ca": "ca.sin",
    "br": "br.cpf",
    "india": "in_.aadhaar",
    "de": "de.idnr",
    "cn": "cn.ric",
    "fr": "fr.nir",
    "dni": "es.dni",
    "nie": "es.nie",
    "it": "it.codicefiscale",
    "se": "se.personnummer",
    "fi": "fi.hetu",
    "pan": "in_.pan",
}


@cache
def _valid(kind: str) -> Callable[[str], bool]:
    if kind not in _NATIONAL_MODULES:
        return lambda number: True
    return import_module(f"stdnum.{_NATIONAL_MODULES[kind]}").is_valid


def _national_ids(text: str, region: str) -> Iterator[Span]:
    """Social security, tax and identity numbers of people in twelve countries, by form and check digit."""
    position = 0
    while match := _NATIONAL.search(text, position):
        position = match.start() + 1
        if match.lastgroup is not None and _valid(match.lastgroup)(match[0]):
            yield match.span()
            position = match.end()


# libphonenumber passes over points in time, but sees no more than the digits here: "2023-01-01 11" of "2023-01-01 11:30".
_TIME = r"[12][0-9]{3}(?:(?:-[01][0-9]-|/[01][0-9]/)[0-3][0-9](?![0-9])|[01][0-9][0-3][0-9] +[0-2][0-9]:)"
_PHONE = re.compile(rf"(?<![\w.,/=\-])(?!{_TIME})(?:\+|\()?[0-9](?:[ \t().\-/]{{0,3}}[0-9]){{6,17}}(?![\w@])")


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
    "national_id": _national_ids,
    "email": _emails,
    "ip_address": _ip_addresses,
    "phone": _phones,
}
