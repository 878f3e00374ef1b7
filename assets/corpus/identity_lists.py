"""HolisticBias' lists of identity terms (arXiv:2205.09209), read from a file of one's own, as the Llama 2 paper uses them."""

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from resources.errors import TampuError

# The paper's five axes by the names of HolisticBias.
AXES = {
    "gender_and_sex": "gender and sex",
    "sexual_orientation": "sexual orientation",
    "nationality": "nationality",
    "race_ethnicity": "race and ethnicity",
    "religion": "religion",
}

# Terms that mostly mean something else. The paper names the first three and says that there are more; the rest is our choice.
AMBIGUOUS = frozenset("straight white black bi brown colored turkey polish pride questioning ace single".split())


def holistic_bias(path: Path) -> dict[str, tuple[str, ...]]:
    """Terms by axis from `descriptors.json` (axis → bucket → terms) or JSON lines (axis, descriptor), plain or gzip.

    Words are lower-cased, parted at anything but letters; the ambiguous are dropped; a term of sexual orientation is
    dropped from gender and sex (the paper removes the overlap of these two; which of them keeps it is our choice).
    TampuError if the file is no such list.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.name.endswith(".gz") else data).decode()
        found = list(_json_lines(text) if ".jsonl" in path.name else _tree(json.loads(text)))
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TampuError(f"{path} is no list of HolisticBias descriptors ({error!r}): give its descriptors.json") from None
    terms: dict[str, dict[str, None]] = {name: {} for name in AXES.values()}
    for axis, descriptor in found:
        term = " ".join(re.findall(r"[^\W\d_]+", descriptor.lower()))
        if axis in AXES and term and term not in AMBIGUOUS and term != "any":
            terms[AXES[axis]][term] = None
    for term in terms["sexual orientation"]:
        terms["gender and sex"].pop(term, None)
    if empty := [axis for axis, words in terms.items() if not words]:
        raise TampuError(f"{path} has no descriptor on the axis {empty[0]!r}: give the descriptors.json of HolisticBias")
    return {axis: tuple(words) for axis, words in terms.items()}


def _json_lines(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        if line.strip():
            row = json.loads(line)
            yield row["axis"], row["descriptor"]


def _tree(axes: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for axis, buckets in axes.items():
        for terms in buckets.values():
            for term in terms:
                yield axis, term if isinstance(term, str) else term["descriptor"]
