"""
What the RAG example's retrieval promises
1. The passages that answer a known question are found.
2. Any text is a legal question.
3. A prompt stays small: few passages, few words.
4. Searches from many threads agree with searches one after the other.
5. The corpus is well formed, small, and says under which licence it is shipped.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rag import make_corpus, nodes


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("Do I have to pay royalties to use SQLite in a commercial product?", "public domain"),
        ("What is the maximum size of an SQLite database file?", "281 terabytes"),
        ("Does WAL mode work over a network filesystem?", "does not work over a network filesystem"),
        ("Does SQLite have a Boolean datatype?", "integers 0 (false) and 1 (true)"),
        ("How do I turn on foreign key enforcement?", "foreign key constraints is turned off"),
        ("Why does the database file stay the same size after I delete a lot of rows?", "VACUUM"),
        ("What is the difference between a VIRTUAL and a STORED generated column?", "computed when read"),
        ("How do I list all tables in a database?", ".tables"),
        ("How much faster is reading a blob from SQLite than from a file?", "35% faster"),
        ("Are NULL values distinct in a UNIQUE column?", "NULLs are still distinct in a UNIQUE column"),
    ],
)
def test_1_the_passage_that_answers_a_known_question_is_found(question: str, words: str) -> None:
    assert any(words in passage for passage in nodes.retrieve(question))


def test_1_every_question_of_the_example_finds_passages(examples: Path) -> None:
    questions = (examples / "rag" / "questions.txt").read_text(encoding="utf-8").splitlines()
    assert len(questions) == len(set(questions)) >= 40
    assert [question for question in questions if len(nodes.retrieve(question)) < nodes.PASSAGES] == []


@pytest.mark.parametrize(
    "question",
    [
        "",
        "   ",
        "?!",
        "the of a",
        '"',
        "'; DROP TABLE passage; --",
        "vacuum AND OR NOT NEAR(",
        'title : wal* ^"x" {section body} : + -',
        "NEAR NOT",
        "\x00vacuum\x00",
        "\ud800 vacuum",
        "значение 值 قيمة",
        "vacuum " * 20_000,
    ],
)
def test_2_a_hostile_question_is_only_a_question(question: str) -> None:
    assert all(isinstance(passage, str) for passage in nodes.retrieve(question))


@given(st.text())
def test_2_any_text_is_a_legal_question(question: str) -> None:
    nodes.retrieve(question)


def test_2_operators_of_the_search_are_plain_words() -> None:
    assert nodes.retrieve("vacuum") == nodes.retrieve('"vacuum*" (')


def test_3_passages_are_few_and_short(examples: Path) -> None:
    for question in (examples / "rag" / "questions.txt").read_text(encoding="utf-8").splitlines():
        passages = nodes.retrieve(question)
        assert len(passages) <= nodes.PASSAGES
        assert all(
            len(passage.split()) <= nodes.HEADING_WORDS + nodes.WORDS_PER_PASSAGE for passage in passages
        )


def test_4_searches_from_many_threads_agree_with_searches_in_turn(examples: Path) -> None:
    questions = (examples / "rag" / "questions.txt").read_text(encoding="utf-8").splitlines() * 4
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(nodes.retrieve, questions))
    assert together == [nodes.retrieve(question) for question in questions]


def test_5_the_corpus_is_well_formed_and_small(examples: Path) -> None:
    corpus = examples / "rag" / "passages.jsonl"
    passages = [json.loads(line) for line in corpus.read_text(encoding="utf-8").splitlines()]
    assert corpus.stat().st_size < 500_000
    assert len({passage["id"] for passage in passages}) == len(passages) >= 300
    for passage in passages:
        assert set(passage) == {"id", "page", "title", "section", "text"}
        assert all(isinstance(value, str) and value.strip() for value in passage.values())
        assert make_corpus.MIN_WORDS <= len(passage["text"].split()) <= make_corpus.MAX_WORDS
        assert not {"<", "&lt;", "&nbsp;"} & set(passage["text"].split())


def test_5_the_licence_of_the_corpus_is_stated(examples: Path) -> None:
    readme = (examples / "rag" / "README.md").read_text(encoding="utf-8")
    assert "public domain" in readme
    assert "passages.jsonl" in readme
    assert "https://www.sqlite.org/copyright.html" in readme


def test_5_a_page_becomes_passages_without_code_tables_or_navigation() -> None:
    sentence = "Every word of this sentence belongs to the running text of the page and must be kept. "
    html = (
        "<title>Pages &amp; words</title><div class=nosearch><p>menu menu</p></div><h1><span>1. </span>First</h1>"
        f"<p>{sentence * 3}<p>As in this example:</p><pre>SELECT dropped;</pre><table><tr><td>cell</td></tr></table>"
    )
    (passage,) = make_corpus.passages_of("page", html)
    assert passage == make_corpus.Passage(
        "page-1", "page.html", "Pages & words", "First", (sentence * 3).strip()
    )
