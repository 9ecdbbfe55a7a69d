"""Formulas of the pages become MathML when the site is built, so they need no script."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
"""What ``pymdownx.arithmatex`` makes of ``$...$`` (a span) and of ``$$...$$`` (a div)."""

UPRIGHT = re.compile(r'(?:<mi mathvariant="normal">\w</mi>){2,}')
"""A word in upright letters, which the converter writes as single variables."""


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Convert the formulas of a page; mkdocs calls this function.

    Args:
        html: the content of the page.
        page: the page.

    Raises:
        PluginError: a formula cannot be converted, so the build ends.
    """

    def converted(match: re.Match[str]) -> str:
        tag, text = match[1], unescape(match[2]).strip()
        try:
            math = convert(text, display="block" if tag == "div" else "inline")
        except Exception as error:
            raise PluginError(f"{page.file.src_uri}: cannot convert the formula {text}") from error
        math = UPRIGHT.sub(lambda word: f"<mi>{re.sub('<[^>]*>', '', word[0])}</mi>", math)
        return f'<{tag} class="formula">{math}</{tag}>'

    return FORMULA.sub(converted, html)
