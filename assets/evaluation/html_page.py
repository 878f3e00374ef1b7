"""The report as one HTML page that needs nothing but itself: styles inside, pictures inside, links to the artifacts beside it."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from assets.evaluation.model_card import Section, manifest_link

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; --good: #2a7d46; --bad: #b03a2e; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid var(--line); }
table { border-collapse: collapse; display: block; overflow-x: auto; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: left; border-bottom: 1px solid var(--soft); white-space: nowrap; }
td.number { text-align: right; } tr:hover td { background: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); }
figure { margin: 1rem 0; display: inline-block; vertical-align: top; } figure img { max-width: 100%; background: white; }
figcaption { font-size: .85rem; } nav a { margin-right: 1rem; } dt { font-weight: 600; margin-top: .6rem; } dd { margin-left: 1rem; }
"""


@dataclass(frozen=True)
class Picture:
    """A PNG of an artifact."""

    title: str
    content: bytes
    artifact: str


def page(title: str, sections: Sequence[Section], pictures: Sequence[Picture]) -> str:
    """The whole page. A table's column `artifact` (`<asset>/<key>`) is shown as a link on the row's numbers and as the asset's name."""
    navigation = "".join(f'<a href="#{_anchor(section.title)}">{html.escape(section.title)}</a>' for section in sections)
    body = "".join(_section(section) for section in sections)
    shown = "".join(_figure(picture) for picture in pictures)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>\n'
        f'<body><h1>{html.escape(title)}</h1>\n<nav>{navigation}<a href="#pictures">Pictures</a></nav>\n{body}'
        f'<h2 id="pictures">Pictures</h2>\n{shown}</body></html>\n'
    )


def _section(section: Section) -> str:
    parts = [f'<h2 id="{_anchor(section.title)}">{html.escape(section.title)}</h2>\n']
    if section.facts:
        parts.append("<dl>")
        for fact in section.facts:
            links = ", ".join(
                f'<a href="{html.escape(manifest_link(f"{one.asset}/{one.key}"))}">{html.escape(one.asset)}</a>' for one in fact.sources
            )
            parts.append(f"<dt>{html.escape(fact.name)}</dt><dd>{_inline(fact.text)}{f' <small>({links})</small>' if links else ''}</dd>")
        parts.append("</dl>\n")
    if section.table is not None:
        parts.append(_table(section.table))
    return "".join(parts)


def _table(frame: pl.DataFrame) -> str:
    names = [name for name in frame.columns if name != "artifact"]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in [*names, *(["artifact"] if "artifact" in frame.columns else [])])
    rows = []
    for row in frame.iter_rows(named=True):
        link = manifest_link(row["artifact"]) if row.get("artifact") else None
        cells = [_cell(row[name], link) for name in names]
        if "artifact" in row:
            asset = row["artifact"].rpartition("/")[0]
            cells.append(f'<td><a href="{html.escape(link)}">{html.escape(asset)}</a></td>' if link else "<td></td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>\n"


def _cell(value: object, link: str | None) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, bool):
        return f'<td class="{"good" if value else "bad"}">{"yes" if value else "no"}</td>'
    if isinstance(value, int | float):
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
        return f'<td class="number">{f"<a href={chr(34)}{html.escape(link)}{chr(34)}>{text}</a>" if link else text}</td>'
    return f"<td>{html.escape(str(value))}</td>"


def _figure(picture: Picture) -> str:
    content = base64.b64encode(picture.content).decode()
    link = html.escape(manifest_link(picture.artifact))
    title = html.escape(picture.title)
    asset = html.escape(picture.artifact.rpartition("/")[0])
    caption = f'<figcaption>{title} (<a href="{link}">{asset}</a>)</figcaption>'
    return f'<figure><img alt="{title}" src="data:image/png;base64,{content}">{caption}</figure>\n'


def _inline(text: str) -> str:
    """Escaped text in which `code` is marked as such."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())
