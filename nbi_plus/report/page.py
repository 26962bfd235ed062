"""Page: the frame of a report, one file of HTML that asks the network for nothing."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape

from nbi_plus.io.fingerprint import checksum
from nbi_plus.markup import Html

_STYLE = """
:root { color-scheme: light; --ink: #1b1b1b; --pale: #e3e6ea; --blue: #0a5c96; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; color: var(--ink); background: #fff;
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { margin-top: 2.2rem; font-size: 1.25rem;
  border-bottom: 2px solid var(--pale); padding-bottom: .2rem; } h3 { margin: 0 0 .4rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #444; padding: .2rem 0; }
th, td { text-align: left; padding: .25rem .9rem .25rem 0; vertical-align: top;
  border-bottom: 1px solid var(--pale); overflow-wrap: normal; }
th { font-weight: 600; } thead th { vertical-align: bottom; white-space: nowrap; }
table + table, .wide + .wide { margin-top: 1rem; } .wide td:last-child { min-width: 12rem; }
.wide { overflow-x: auto; max-width: 100%; } .wide:focus-visible { outline: 3px solid var(--blue); }
.tall { max-height: 36rem; overflow-y: auto; }
.tall thead th { position: sticky; top: 0; background: #fff; z-index: 1; }
#objects th, #objects td { white-space: nowrap; min-width: 0; }
#objects tbody th { white-space: normal; min-width: 8rem; max-width: 16rem;
  overflow-wrap: anywhere; }
.wide img { max-width: none; }
button { font: inherit; font-weight: 600; color: var(--blue); background: none; cursor: pointer;
  border: 0; border-bottom: 1px dotted; padding: .35rem 0; min-height: 1.8rem; text-align: left; }
button:focus-visible { outline: 3px solid var(--blue); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
.bar { display: inline-block; height: .8em; background: var(--blue); min-width: 1px;
  vertical-align: baseline; }
.bars { display: inline-block; width: 6rem; background: var(--pale); line-height: 1; }
.share { white-space: nowrap; display: inline-block; } .share b { display: inline-block;
  width: 3.6rem; font-weight: 400; }
.grid { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.pairs { grid-template-columns: repeat(auto-fit, minmax(min(28rem, 100%), 1fr)); }
article { border: 1px solid var(--pale); border-radius: .5rem; padding: .8rem; min-width: 0; }
figure { margin: .5rem 0; } img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .85rem; color: #444; }
.key { display: flex; flex-wrap: wrap; gap: .8rem; padding: 0; list-style: none; }
.key li { border: 1px solid var(--pale); border-radius: .5rem; padding: .5rem .9rem; }
.key strong { display: block; font-size: 1.5rem; line-height: 1.2; }
@media (max-width: 40rem) { .bars { display: none; } .wide td:last-child { min-width: 9rem; } }
@media print { .tall { max-height: none; } }
"""

# what is no number, or a number with its error, is compared as text; what is missing comes last
_SCRIPT = """
for (const button of document.querySelectorAll("#objects thead button"))
  button.addEventListener("click", () => {
    const head = button.closest("th"), body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending", at = head.cellIndex;
    const key = row => row.cells[at].textContent;
    const blank = text => text === "" || text === "nan";
    const order = (a, b) => {
      if (blank(a) || blank(b)) return blank(a) - blank(b);
      const sign = up ? 1 : -1, [x, y] = [a, b].map(text => Number(text.split(" ± ")[0]));
      return sign * (isNaN(x) || isNaN(y) ? a.localeCompare(b) : x - y);
    };
    const rows = [...body.rows].sort((a, b) => order(key(a), key(b)));
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...rows);
  });
"""


def page(title: str, parts: Iterable[Html]) -> str:
    """Return a page of HTML; its only script is known by its hash, and no other one is run."""
    known = base64.b64encode(bytes.fromhex(checksum([_SCRIPT.encode()]))).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{known}'; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{escape(title)}</h1>\n"
        f"{''.join(parts)}</main>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def section(title: str, *parts: str) -> Html:
    """Return a part of the page under a heading of its own."""
    return Html(f"<section>\n<h2>{escape(title)}</h2>\n{''.join(parts)}</section>\n")


def paragraph(text: str) -> Html:
    """Return a text as a paragraph."""
    return Html(f"<p>{escape(text)}</p>\n")


def wide(part: Html, words: str, *, tall: bool = False) -> Html:
    """Return a part that scrolls by itself where it is wider than the page, by keyboard too."""
    own = "wide tall" if tall else "wide"
    return Html(
        f'<div class="{own}" role="region" aria-label="{escape(words)}" tabindex="0">{part}</div>\n'
    )


def grid(parts: Iterable[Html], look: str = "grid") -> Html:
    """Return parts side by side where there is room."""
    return Html(f'<div class="{look}">{"".join(parts)}</div>\n')


def bar(share: float) -> Html:
    """Return a share of one as a bar, with the number beside it."""
    width = f"{min(max(share, 0.0), 1.0):.1%}"
    return Html(
        f'<span class="share"><b>{share:.1%}</b><span class="bars" aria-hidden="true">'
        f'<span class="bar" style="width:{width}"></span></span></span>'
    )
