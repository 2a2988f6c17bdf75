"""The report as a page: everything inside, nothing from outside, and no text becomes markup."""

import base64
import re
from html.parser import HTMLParser

from titans_jax.evaluation.html import Sample, Section, to_html, to_markdown

VOID = {"meta", "link", "img", "br"}
FACTS = {"loss": "1.5", "corpus": "a|b <i>"}
SECTIONS = [
    Section("Samples", "Drawn & shown.", samples=[Sample("<script>", "two\nlines", "&amp;")]),
    Section("Pictures", "One.", [("one.png", "what it's of"), ("two.gif", "moves")]),
]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(text: str) -> Page:
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open
    return page


def test_a_page_has_all_in_it_and_asks_for_nothing(tmp_path):
    (tmp_path / "one.png").write_bytes(b"\x89PNG one")
    (tmp_path / "two.gif").write_bytes(b"GIF89a two")
    text = to_html("On <it>", FACTS, SECTIONS, tmp_path)
    page = parsed(text)
    sources = [attributes["src"] for tag, attributes in page.seen if tag == "img"]
    assert [base64.b64decode(source.partition(",")[2]) for source in sources] == [b"\x89PNG one", b"GIF89a two"]
    assert [source.partition(";")[0] for source in sources] == ["data:image/png", "data:image/gif"]
    assert all(attributes["alt"] for tag, attributes in page.seen if tag == "img")
    links = [attributes[name] for _, attributes in page.seen for name in ("src", "href") if name in attributes]
    ids = {attributes["id"] for _, attributes in page.seen if "id" in attributes}
    assert all(link.startswith("data:") or link.removeprefix("#") in ids for link in links)
    assert not re.search(r"https?:|@import|url\(", text)
    assert "script" not in {tag for tag, _ in page.seen} and "<script>two\nlines" in page.text
    assert "a|b <i>" in page.text and "prefers-color-scheme: dark" in text


def test_markdown_says_the_same():
    text = to_markdown("On it", FACTS, SECTIONS)
    assert text.startswith("# On it\n") and "| corpus | a\\|b <i> |" in text
    assert "    two\n    lines" in text and "![what it's of](one.png)" in text
