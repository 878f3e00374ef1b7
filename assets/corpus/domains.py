"""Sites that are left out: those known for much personal information on private individuals (recipe section 2).

The paper names none. This list holds people-search services, registers of arrests and voters, and collections of
resumes and obituaries; a run can add its own.
"""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from resources.errors import TampuError

PERSONAL_SITES: frozenset[str] = frozenset(
    """
    192.com 411.com advancedbackgroundchecks.com anywho.com ancestry.com arrestfacts.com arrests.org backgroundalert.com
    beenverified.com checkpeople.com clustrmaps.com cyberbackgroundchecks.com familytreenow.com fastpeoplesearch.com
    findagrave.com findpeoplesearch.com idtrue.com instantcheckmate.com intelius.com legacy.com locatefamily.com
    mugshots.com mylife.com neighborwho.com nuwber.com peekyou.com peoplebyname.com peoplefinder.com peoplefinders.com
    peoplelooker.com peoplesearchnow.com peoplewhiz.com peopletrail.com phonebook.com pipl.com privateeye.com
    publicrecords360.com radaris.com recentlybooked.com searchpeoplefree.com smartbackgroundchecks.com spokeo.com
    spyfly.com thatsthem.com truepeoplesearch.com truthfinder.com usphonebook.com ussearch.com voterrecords.com
    whitepages.com yasni.com zabasearch.com zoominfo.com
    """.split()
)


LABELS = 127  # of a name, at most (RFC 1035, 2.3.4)


def read_domains(path: Path) -> frozenset[str]:
    """Domains of a file, one a line; empty lines and what follows a # are passed over. TampuError for what is no domain."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TampuError(f"the list of excluded domains {path} cannot be read: {error}") from None
    return checked(line.split("#")[0].strip() for line in lines if line.split("#")[0].strip())


def checked(domains: Iterable[str]) -> frozenset[str]:
    """The domains in lower case. TampuError for one with a scheme, a path or no dot."""
    found = set()
    for domain in domains:
        name = domain.lower().removeprefix("www.")
        if "." not in name or not all(part and part.replace("-", "").replace("_", "").isalnum() for part in name.split(".")):
            raise TampuError(f"excluded domain {domain!r}: expected a name such as 'example.com', without https:// and without a path")
        found.add(name)
    return frozenset(found)


def excluded(urls: pl.Series, domains: frozenset[str]) -> pl.Series:
    """By address, the excluded domain that it or a domain above it is, or null. Text without a scheme counts as one, too."""
    host = urls.str.to_lowercase().str.extract(r"^\s*(?:(?:[a-z][a-z0-9+.\-]*:)?//)?(?:[^/@?#]*@)?([^/:?#\s]+)", 1).str.strip_chars(".")
    names = host.to_frame("host").lazy()
    known = sorted(domains)
    # A domain above: what follows the first, second, … dot.
    dots = host.str.count_matches(r"\.").max()
    levels = min(LABELS, 1 + (dots if isinstance(dots, int) else 0))
    above = [pl.col("host").str.extract(rf"^(?:[^.]+\.){{{skipped}}}(.+)$", 1) for skipped in range(levels)]
    return names.select(pl.coalesce(pl.when(name.is_in(known)).then(name) for name in above).alias("domain")).collect()["domain"]
