"""Retrieval for the RAG workflow: BM25 over passages.jsonl by SQLite FTS5, in memory.

Owns the index and how a question becomes a query. Leaves what is asked of the models to rag.yaml and prompts/.
"""

from __future__ import annotations

import json
import re
import sqlite3
from functools import cache
from pathlib import Path
from threading import Lock

PASSAGES = 2
WORDS_PER_PASSAGE = 24  # two passages, an example and the question stay near 150 tokens
HEADING_WORDS = 12
QUERY_WORDS = 24  # a longer question is searched by its first words

_CORPUS = Path(__file__).with_name("passages.jsonl")
_COMMON = frozenset(
    "a about am an and any are as at be been but by can could did do does doing for from get had has have how i if in "
    "is it its may me mean means might must my no not of on one or our should so some sqlite than that the their them "
    "then there these they this to us use used using was we were what when where which who why will with would you "
    "your".split()
)
# The heading of a passage says most about it; snippet() cuts the stretch of the body that holds most words asked for.
_SEARCH = """
    SELECT title, section, snippet(passage, 2, '', '', '...', ?) FROM passage WHERE passage MATCH ?
    ORDER BY bm25(passage, 2.0, 3.0, 1.0), rowid LIMIT ?
"""


def retrieve(question: str, passages: int = PASSAGES, words: int = WORDS_PER_PASSAGE) -> list[str]:
    """The best passages for a question, best first, each as `heading: text`.

    At most `passages` of them, each of at most `words` words (as FTS5 counts words, at most 64) after a heading of at
    most HEADING_WORDS; none when nothing matches.
    Any text is a legal question. May be called from several threads at once.
    """
    query = _query(question)
    if not query:
        return []
    index, lock = _index()
    with lock:
        found = index.execute(_SEARCH, (words, query, passages)).fetchall()
    return [f"{_heading(title, section)}: {excerpt}" for title, section, excerpt in found]


def _query(question: str) -> str:
    """Only letters and digits reach FTS5, each word quoted: its operators cannot be typed by a user."""
    words = [
        word for word in re.findall(r"[^\W_]+", question.lower()) if len(word) > 1 and word not in _COMMON
    ]
    return " OR ".join(f'"{word}"' for word in dict.fromkeys(words[:QUERY_WORDS]))


def _heading(title: str, section: str) -> str:
    words = (section or title).rstrip(":?.").split()
    return " ".join(words[:HEADING_WORDS])


@cache
def _index() -> tuple[sqlite3.Connection, Lock]:
    """One connection and the lock that guards it: a search takes well under a millisecond."""
    index = sqlite3.connect(":memory:", check_same_thread=False)
    index.execute(
        "CREATE VIRTUAL TABLE passage USING fts5(title, section, body, tokenize = 'porter unicode61')"
    )
    with _CORPUS.open(encoding="utf-8") as lines:
        passages = [json.loads(line) for line in lines]
    rows = [(passage["title"], passage["section"], passage["text"]) for passage in passages]
    index.executemany("INSERT INTO passage VALUES (?, ?, ?)", rows)
    index.commit()
    return index, Lock()
