"""Cuts the SQLite documentation (a folder of its HTML pages) into short passages, one JSON object a line.

    python make_corpus.py FOLDER_OF_HTML > passages.jsonl

Owns which pages are taken and where a passage begins and ends. Leaves the search to nodes.py.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from html.parser import HTMLParser
from pathlib import Path

MIN_WORDS = 20
MAX_WORDS = 90
MOST_PER_PAGE = 12
WHOLE_PAGES = frozenset(("faq", "limits", "wal"))

PAGES = (
    "about appfileformat atomiccommit autoinc copyright datatype3 different expridx fasterthanfs faq flextypegood "
    "floatingpoint foreignkeys fts5 gencol howtocorrupt inmemorydb isolation json1 lang_analyze lang_attach "
    "lang_savepoint lang_transaction lang_upsert lang_vacuum limits mmap mostdeployed nulls onefile partialindex "
    "pragma quirks rowidtable security selfcontained serverless sharedcache stricttables tempfiles threadsafe uri "
    "wal whentouse whyc withoutrowid zeroconf"
).split()

BLOCK_TAGS = frozenset(
    "address blockquote body br center dd div dl dt h1 h2 h3 h4 h5 hr li ol p table td th tr ul".split()
)
HEADING_TAGS = frozenset(("h1", "h2", "h3", "h4"))
OMITTED_TAGS = frozenset(("pre", "s", "script", "style", "svg", "table", "title", "button"))


@dataclass(frozen=True, slots=True)
class Passage:
    id: str
    page: str
    title: str
    section: str
    text: str


@dataclass(frozen=True, slots=True)
class Block:
    """One paragraph or list item; `leads_nowhere` when what it introduced (code, a table) was left out."""

    section: str
    text: str
    leads_nowhere: bool


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print(f"usage: make_corpus.py FOLDER_OF_HTML (got {arguments})", file=sys.stderr)
        return 2
    folder = Path(arguments[0])
    missing = [page for page in PAGES if not (folder / f"{page}.html").is_file()]
    if missing:
        print(f"these pages are not in {folder}: {', '.join(missing)}", file=sys.stderr)
        return 2
    for page in PAGES:
        html = (folder / f"{page}.html").read_text(encoding="utf-8", errors="replace")
        for passage in passages_of(page, html):
            print(json.dumps(asdict(passage), ensure_ascii=False))
    return 0


def passages_of(page: str, html: str) -> Iterator[Passage]:
    """At most MOST_PER_PAGE passages (all of WHOLE_PAGES) of MIN_WORDS to MAX_WORDS words, none across two sections."""
    reader = _PageReader()
    reader.feed(html)
    reader.close()
    title = " ".join(reader.title.split()) or page
    chunks = list(_chunks(reader.blocks))
    if page not in WHOLE_PAGES:
        chunks = chunks[:MOST_PER_PAGE]
    for number, (section, text) in enumerate(chunks, start=1):
        yield Passage(f"{page}-{number}", f"{page}.html", title, section or title, text)


def _chunks(blocks: list[Block]) -> Iterator[tuple[str, str]]:
    section, words = "", list[str]()
    for block in blocks:
        for sentence in _sentences(block):
            added = sentence.split()
            if block.section != section or len(words) + len(added) > MAX_WORDS:
                if len(words) >= MIN_WORDS:
                    yield section, " ".join(words)
                section, words = block.section, []
            if len(added) <= MAX_WORDS:
                words += added
    if len(words) >= MIN_WORDS:
        yield section, " ".join(words)


def _sentences(block: Block) -> list[str]:
    text = block.text if block.text[-1] in ".!?:;,\"'" else block.text + "."
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z\"'(])", text)
    if block.leads_nowhere and sentences[-1].endswith(":"):
        sentences.pop()
    return [sentence for sentence in sentences if not sentence.startswith("This page last modified")]


class _PageReader(HTMLParser):
    """Collects the running text of a page; drops navigation, code, tables, struck-out text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self.blocks: list[Block] = []
        self._section = ""
        self._text = ""
        self._linked = 0  # characters of the text that are inside a link
        self._in_link = False
        self._in_title = False
        self._heading = False
        self._omitted: list[str] = []  # open tags inside an omitted one, the omitted one first

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_title = tag == "title"
        self._in_link = self._in_link or (tag == "a" and any(name == "href" for name, _ in attrs))
        if self._omitted:
            if tag == self._omitted[0]:
                self._omitted.append(tag)
            return
        if tag in BLOCK_TAGS or tag == "pre":
            self._flush(leads_nowhere=tag in ("pre", "table", "center"))
        if tag in OMITTED_TAGS or _is_navigation(tag, attrs):
            self._omitted.append(tag)
        elif tag in HEADING_TAGS:
            self._heading = True

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False
        self._in_link = self._in_link and tag != "a"
        if self._omitted:
            if tag == self._omitted[0]:
                self._omitted.pop()
            return
        if tag in HEADING_TAGS and self._heading:
            self._section = re.sub(r"^[\d.]+\s*", "", " ".join(self._text.split()))
            self._text, self._linked, self._heading = "", 0, False
        elif tag in BLOCK_TAGS:
            self._flush(leads_nowhere=False)

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._omitted:
            self._text += data
            self._linked += len(data.strip()) if self._in_link else 0

    def close(self) -> None:
        super().close()
        self._flush(leads_nowhere=False)

    def _flush(self, leads_nowhere: bool) -> None:
        text, is_link_only = " ".join(self._text.split()), self._linked >= len(self._text.strip())
        self._text, self._linked = "", 0
        if question := re.match(r"\(\d+\) (.+)", text):  # how the FAQ writes its headings
            self._section = question.group(1)
        elif text and not self._heading and not is_link_only:
            self.blocks.append(Block(self._section, text, leads_nowhere))
        elif not text and leads_nowhere and self.blocks:  # the paragraph was closed before the code began
            self.blocks[-1] = replace(self.blocks[-1], leads_nowhere=True)


def _is_navigation(tag: str, attrs: list[tuple[str, str | None]]) -> bool:
    marks = {value or "" for name, value in attrs if name in ("class", "id")}
    return tag == "div" and any("nosearch" in mark or "toc" in mark or "codeblock" in mark for mark in marks)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
