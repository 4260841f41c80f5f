"""Markup: nothing that a stranger wrote becomes HTML."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from pliant.recipes.report.markup import element, joined, text


def test_text_is_escaped_and_markup_is_not() -> None:
    inner = element("b", "<i>&\"'")
    assert inner == "<b>&lt;i&gt;&amp;&quot;&#x27;</b>"
    assert element("p", inner, " < ", title='"x', class_="a", aria_label="b") == (
        f'<p title="&quot;x" class="a" aria-label="b">{inner} &lt; </p>'
    )


def test_what_cannot_be_seen_is_shown() -> None:
    assert text("a\u202eb\x00c\u200bd") == "a\ufffdb\ufffdc\ufffdd"


@settings(max_examples=30, deadline=None)
@given(st.text())
def test_no_text_breaks_out(words: str) -> None:
    assert not set("<>\"'") & set(text(words))
    assert text(joined(words)) == joined(words)
