"""Tables, and one page that shows a result: `report.html`, with no server and no network.

Pictures are inside the page, text is escaped, and it reads on a phone, in light and in dark.
"""

import base64
import html
import types
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import rich.console
import rich.table

STYLE = """
:root { color-scheme: light dark;
  --ink: #1c2430; --paper: #fdfdfc; --rule: #d5d9df; --soft: #5b6675; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --paper: #15181d; --rule: #3a424d; --soft: #a3adba; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 76rem; margin: 0 auto; padding: 1rem 1rem 4rem; overflow-wrap: anywhere; }
h1, p, dl { max-width: 52rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.finding { font-size: 1.15rem; }
dl { display: grid; grid-template-columns: fit-content(12rem) 1fr; gap: .2rem 1rem;
  margin: 1rem 0; }
dt { font-weight: 600; } dd { margin: 0; color: var(--soft); }
@media (max-width: 30rem) {
  dl { display: block; } dt { margin-top: .5rem; } th, td { padding: .3rem .5rem; }
  .name { position: sticky; left: 0; background: var(--paper); }
}
figure { margin: 1rem 0; } figcaption, .note { color: var(--soft); font-size: .9rem; }
img { max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap;
  font-size: .9rem; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid var(--rule); }
th { color: var(--soft); font-weight: 600; }
.text { text-align: left; } tr.first td { border-top: 2px solid var(--rule); }
pre { overflow-x: auto; border: 1px solid var(--rule); border-radius: 6px; padding: .8rem;
  font-size: .85rem; }
.side { display: flex; flex-wrap: wrap; gap: 0 1.5rem; } .side figure { flex: 1 1 20rem; }
"""


class Table(NamedTuple):
    """A table of finished strings.

    Attributes:
        headers: one for each column.
        rows: cells, as many in each row as there are headers.
        num_text: how many of the first columns are text; the others are numbers, set to the right.
        meanings: of columns and rows, which a page explains above the table.
    """

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    num_text: int = 1
    meanings: Mapping[str, str] = types.MappingProxyType({})

    def print(self, title: str, console: rich.console.Console) -> None:
        """Print it to a console."""
        console.print(title, style="italic", soft_wrap=True)  # as wide as it is, whatever the table
        table = rich.table.Table()
        for column, header in enumerate(self.headers):
            table.add_column(header, justify="left" if column < self.num_text else "right")
        for row, opens_group in zip(self.rows, self._opens_group(), strict=True):
            if opens_group:
                table.add_section()
            table.add_row(*row)
        console.print(table)

    def html(self) -> str:
        """The same for a page, below what it means; on a narrow screen it scrolls, names stay."""

        def line(tag: str, cells: Sequence[str], kind: str = "") -> str:
            opening = [f"<{tag} class=text>"] * self.num_text
            opening[-1:] = [f'<{tag} class="text name">'] * bool(opening)
            opening += [f"<{tag}>"] * len(cells)
            marked = [
                start + html.escape(cell) for start, cell in zip(opening, cells, strict=False)
            ]
            return f"<tr{kind}>{''.join(marked)}\n"

        lines = [line("th", self.headers)]
        for row, opens_group in zip(self.rows, self._opens_group(), strict=True):
            lines.append(line("td", row, " class=first" if opens_group else ""))
        above = columns(self.meanings) if self.meanings else ""
        return f"{above}<div class=scroll><table>\n{''.join(lines)}</table></div>"

    def _opens_group(self) -> list[bool]:
        """For each row: does a rule go above it, since its first cell differs from the last?"""
        firsts = [row[0] for row in self.rows]
        grouped = self.num_text > 1
        return [grouped and i > 0 and firsts[i - 1] != first for i, first in enumerate(firsts)]


def page(title: str, finding: str, about: str, sections: Sequence[tuple[str, str]] = ()) -> str:
    """A self-contained HTML page.

    Args:
        title: plain text.
        finding: plain text, what came out in one sentence.
        about: plain text, the paragraph below it.
        sections: pairs of a heading, plain text, and finished HTML.
    """
    parts = [f"<h2>{html.escape(heading)}</h2>\n{body}" for heading, body in sections]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<h1>{html.escape(title)}</h1>\n<p class=finding>{html.escape(finding)}</p>\n"
        f"<p>{html.escape(about)}</p>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def columns(meanings: Mapping[str, str]) -> str:
    """What the columns and rows of the table below mean, a line for each."""
    lines = [f"<dt>{html.escape(name)}<dd>{html.escape(text)}\n" for name, text in meanings.items()]
    return f"<dl>\n{''.join(lines)}</dl>"


def figure(png: bytes, caption: str) -> str:
    """A picture with its caption as HTML, the picture inside it."""
    data = base64.b64encode(png).decode()
    text = html.escape(caption, quote=True)
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>"


def side_by_side(*figures: str) -> str:
    """Figures beside each other, or below each other on a narrow screen."""
    return f"<div class=side>{''.join(figures)}</div>"


def note(text: str) -> str:
    """A paragraph in small print."""
    return f"<p class=note>{html.escape(text)}</p>"


def listing(text: str) -> str:
    """Text as it is, such as indented JSON."""
    return f"<pre>{html.escape(text)}</pre>"
