"""Parse an HTML page with Python's own parser: its elements, their attributes, and its text."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Final

#: Elements without an end tag (HTML, "Void elements"); `rect` is closed by its slash.
_VOID: Final = frozenset({"meta", "br", "hr", "img", "input", "link", "base"})
#: All elements and attributes of our pages. None of them runs a script, loads a resource or sends a form.
_ELEMENTS: Final = frozenset(
    re.findall(
        r"\S+",
        """
        html head meta title style body header main section footer h1 h2 h3 h4 h5 h6 p dl dt dd div ul li a code span
        data table caption thead tbody tr th td svg rect
        """,
    )
)
_ATTRIBUTES: Final = frozenset(
    re.findall(
        r"\S+",
        """
        lang charset name content http-equiv class id href scope value title role aria-label aria-hidden
        colspan x width height
        """,
    )
)


class Page(HTMLParser):
    """A parsed page. `links` are the targets of its links, `ids` the possible targets within the page."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[str] = []
        self.texts: list[str] = []
        self.titles: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    @property
    def text(self) -> str:
        """The text of the page, without its style sheet, with spaces in place of markup."""
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Check an element, and record it."""
        assert tag in _ELEMENTS, tag
        names = [name for name, _ in attrs]
        assert len(set(names)) == len(names), attrs
        assert set(names) <= _ATTRIBUTES, attrs
        values = {name: value or "" for name, value in attrs}
        self.elements.append(tag)
        self.links += [values["href"]] if "href" in values else []
        self.ids += [values["id"]] if "id" in values else []
        self.titles += [values["title"]] if "title" in values else []
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Check that elements end in order."""
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Record text."""
        if self._open[-1:] != ["style"]:
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        """Refuse comments."""
        raise AssertionError(data)

    def handle_pi(self, data: str) -> None:
        """Refuse processing instructions."""
        raise AssertionError(data)
