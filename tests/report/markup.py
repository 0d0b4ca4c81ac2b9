"""What every page must be: balanced, self-contained."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_VOID = {"meta", "br", "hr", "img", "input", "link"}


class _Balanced(HTMLParser):
    """Every tag that opens closes, in order."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag


def assert_whole(page: str) -> None:
    """One balanced HTML file that loads nothing from anywhere."""
    parser = _Balanced()
    parser.feed(page)
    assert parser.open == [] and page.startswith("<!doctype html>")
    loads = re.findall(r'(?:src|href)\s*=\s*"([^"#][^"]*)"|url\(\s*["\']?([^#)"\']+)', page)
    assert [load for load in loads if not load[0].startswith("data:")] == []
    assert "@import" not in page and "<script" not in page
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert "nan" not in re.sub(r"<[^>]*>|[a-z]nan|nan[a-z]", "", page)


def without_drawings(page: str) -> str:
    """The page without its SVGs and its style."""
    return re.sub(r"<svg.*?</svg>|<style>.*?</style>", "", page, flags=re.S)
