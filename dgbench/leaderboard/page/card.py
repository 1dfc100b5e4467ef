"""A method's card as HTML: Markdown without raw HTML, pictures or anything that is loaded from elsewhere."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup

from dgbench.info import MethodInfo
from dgbench.registry import card

TOP_LEVEL = 3
"""The card stands below a heading of its own: its highest headings are of the page's third level."""


def method_card(info: MethodInfo) -> Markup | None:
    """The rendered card of an installed method, without its title line; None where it has none or it cannot be read."""
    try:
        text = card(info)
    except (OSError, ValueError, ImportError):
        return None
    return None if text is None else render_markdown(text, title=info.name)


def render_markdown(text: str, *, title: str = "") -> Markup:
    """``text`` (CommonMark with tables) as HTML. A first heading that repeats ``title`` is left out.

    Raw HTML is shown as text. Links to http and https stay, others keep their words only; pictures become their words.
    """
    tokens = _parser().parse(text)
    if title and len(tokens) > 2 and tokens[0].tag == "h1" and tokens[1].content.strip() == title:
        tokens = tokens[3:]
    tokens = _without_empty_headers(tokens)
    headings = [token for token in tokens if token.type in ("heading_open", "heading_close")]
    highest = min((int(token.tag[1]) for token in headings), default=1)
    for token in headings:
        token.tag = f"h{min(6, int(token.tag[1]) - highest + TOP_LEVEL)}"
    for token in tokens:
        if token.type == "inline":
            token.children = _without_local_links(token.children or [])
    parser = _parser()
    return Markup(parser.renderer.render(tokens, parser.options, {}))


def _without_empty_headers(tokens: Sequence[Token]) -> list[Token]:
    """Cards use tables without header words: an empty header row is dropped, an empty header cell is a cell."""
    kept: list[Token] = []
    start = 0
    for position, token in enumerate(tokens):
        kept.append(token)
        if token.type == "thead_open":
            start = len(kept) - 1
        if token.type == "th_open" and not tokens[position + 1].content.strip():
            token.tag = tokens[position + 2].tag = "td"
        if token.type == "thead_close" and not any(one.tag == "th" for one in kept[start:]):
            del kept[start:]
    return kept


def _without_local_links(tokens: Sequence[Token]) -> list[Token]:
    kept: list[Token] = []
    inside = []
    for token in tokens:
        if token.type == "link_open":
            remote = str(token.attrGet("href")).startswith(("https://", "http://"))
            inside.append(remote)
            if remote:
                token.attrSet("rel", "noopener noreferrer")
                kept.append(token)
        elif token.type == "link_close":
            if inside.pop():
                kept.append(token)
        else:
            kept.append(token)
    return kept


@cache
def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    parser.add_render_rule("table_open", _table_open)
    parser.add_render_rule("table_close", _table_close)
    return parser


def _table_open(self: Any, *_: Any) -> str:
    return '<div class="scroll" tabindex="0" role="region" aria-label="table of the card"><table aria-label="table of the card">\n'


def _table_close(self: Any, *_: Any) -> str:
    return "</table></div>\n"
