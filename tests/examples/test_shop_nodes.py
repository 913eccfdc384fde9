"""
What the shop example's look-ups promise
1. A customer sees the orders of that customer and of nobody else.
2. A product that fits the words is found; sold-out ones come last; the answer is never empty and fits the fan-out.
3. A complaint always gets a rule.
4. Any text is legal, from any thread.
5. The tables and the requests are well formed.
"""

from __future__ import annotations

import json
import re
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shop import nodes

HOSTILE = [
    "",
    "  ",
    '"',
    "' OR 1=1 --",
    "C101' OR 'a'='a",
    "mug* NEAR(",
    "name : x ^ -",
    "%",
    "\x00",
    "\ud800",
    "茶",
    "mug " * 20_000,
]


@pytest.fixture(scope="module")
def tables(request: pytest.FixtureRequest) -> sqlite3.Connection:
    sql = Path(nodes.__file__).with_name("shop.sql").read_text(encoding="utf-8")
    shop = sqlite3.connect(":memory:")
    shop.executescript("PRAGMA foreign_keys = ON;" + sql)
    return shop


def test_1_a_customer_sees_only_that_customers_orders(tables: sqlite3.Connection) -> None:
    customer_by_order = dict(tables.execute("SELECT number, customer FROM customer_order").fetchall())
    for customer in set(customer_by_order.values()):
        for asked in ("", *(f"where is order {number}?" for number in customer_by_order)):
            shown = [
                int(number)
                for number in re.findall(r"^Order (\d+)", nodes.lookup_orders(customer, asked), re.MULTILINE)
            ]
            assert [customer_by_order[number] for number in shown] == [customer]


@pytest.mark.parametrize(
    ("customer", "question", "number"),
    [
        ("C101", "What about order 5001?", 5001),
        ("C101", "", 5024),
        ("C101", "Where is order 5027?", 5024),
        ("C109", "Was my tent delivered?", 5011),
        ("C109", "Is my parcel still at the depot?", 5025),
        ("C104", "Did my refund for the cutting board go through?", 5015),
    ],
)
def test_1_the_order_the_question_is_about_is_shown_else_the_newest(
    customer: str, question: str, number: int
) -> None:
    assert nodes.lookup_orders(customer, question).startswith(f"Order {number} ")


@pytest.mark.parametrize("customer", [*HOSTILE, "C999", "c101"])
def test_1_an_unknown_customer_has_no_orders(customer: str) -> None:
    assert nodes.lookup_orders(customer, "5001") == "There are no orders for this customer."


@pytest.mark.parametrize(
    ("query", "question", "product"),
    [
        ("", "Do you have a light stove for hiking?", "Ridge gas stove"),
        ("", "I need a tent for two people.", "Tarn two-person tent"),
        ("", "What can I use to sharpen my knives?", "Whetstone 1000/3000"),
        ("", "Any waterproof bags for kayaking?", "Dry bag set"),
        ("bottle, flask, thermos", "Something for my walk", "Cirque steel bottle"),
        ("", "moka", "Moka pot, 6 cups"),
    ],
)
def test_2_a_product_that_fits_is_in_the_first_batch(query: str, question: str, product: str) -> None:
    assert product in nodes.search_products(query, question)[0]


def test_2_sold_out_products_come_last() -> None:
    lines = "\n".join(nodes.search_products("coffee")).splitlines()
    assert "sold out" not in " ".join(lines[:-1])


def test_2_the_words_of_the_customer_count_before_the_query() -> None:
    assert nodes.search_products("kettle, stove", "I want to buy a coffee grinder.")[0].startswith(
        "Hand coffee grinder"
    )


@pytest.mark.parametrize("query", [*HOSTILE, "submarine", "the of a"])
def test_2_there_is_always_something_to_compare(query: str) -> None:
    batches = nodes.search_products(query)
    assert 1 <= len(batches) <= nodes.BATCHES
    assert all(1 <= len(batch.splitlines()) <= nodes.PRODUCTS_PER_BATCH for batch in batches)


@pytest.mark.parametrize(
    ("complaint", "words"),
    [
        ("My new mug arrived broken and I am angry.", "replace a damaged item"),
        ("You sent me the wrong size of jacket again!", "collect the other"),
        ("I was charged twice.", "within five working days"),
        ("I have waited three weeks.", "refund the shipping"),
        ("I am not happy.", "calls back"),
    ],
)
def test_3_a_complaint_gets_the_rule_that_fits(complaint: str, words: str) -> None:
    assert words in nodes.find_rule(complaint)


@given(st.text())
def test_4_any_text_is_legal(text: str) -> None:
    assert nodes.find_rule(text)
    assert nodes.search_products(text, text)
    assert nodes.lookup_orders(text, text) == "There are no orders for this customer."


def test_4_look_ups_from_many_threads_agree_with_look_ups_in_turn(examples: Path) -> None:
    questions = [request["question"] for request in _requests(examples)] * 4
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(nodes.search_products, questions))
    assert together == [nodes.search_products(question) for question in questions]


def test_5_the_tables_are_consistent(tables: sqlite3.Connection) -> None:
    assert tables.execute("PRAGMA foreign_key_check").fetchall() == []
    assert tables.execute("SELECT count(*) FROM product").fetchone() == (60,)
    assert tables.execute("SELECT count(*), count(DISTINCT customer) FROM customer_order").fetchone() == (
        40,
        15,
    )


def test_5_the_requests_are_well_formed(examples: Path, tables: sqlite3.Connection) -> None:
    customers = {customer for (customer,) in tables.execute("SELECT DISTINCT customer FROM customer_order")}
    requests = _requests(examples)
    assert len({request["question"] for request in requests}) == len(requests) >= 40
    for request in requests:
        assert set(request) == {"question", "customer_id", "kind"}
        assert request["kind"] in {"order", "browse", "complaint", "chat"}
        assert request["customer_id"] in customers or (
            not request["customer_id"] and request["kind"] != "order"
        )


def _requests(examples: Path) -> list[dict[str, str]]:
    lines = (examples / "shop" / "requests.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
