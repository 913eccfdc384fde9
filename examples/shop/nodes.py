"""The shop's own knowledge: product search, orders of one customer, house rules; read from shop.sql.

Owns what is looked up and how it reads in a prompt. Leaves routing and wording to shopping.yaml and prompts/.
"""

from __future__ import annotations

import re
import sqlite3
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

BATCHES = 2
PRODUCTS_PER_BATCH = 2
QUERY_WORDS = 40

_DATA = Path(__file__).with_name("shop.sql")
_SEARCH = """
    SELECT p.name, p.details, p.price_cents, p.stock FROM product_text JOIN product AS p ON p.id = product_text.rowid
    WHERE product_text MATCH ? ORDER BY p.stock = 0, bm25(product_text, 4.0, 2.0, 1.0, 3.0), p.id LIMIT ?
"""
_MOST_ORDERED = """
    SELECT p.name, p.details, p.price_cents, p.stock FROM product AS p
    LEFT JOIN customer_order AS o ON o.product_id = p.id
    WHERE p.stock > 0 GROUP BY p.id ORDER BY coalesce(sum(o.quantity), 0) DESC, p.id LIMIT ?
"""
_ORDERS = """
    SELECT o.number, o.quantity, p.name, o.placed_on, o.status, o.remark, p.uses
    FROM customer_order AS o JOIN product AS p ON p.id = o.product_id
    WHERE o.customer = ? ORDER BY o.placed_on DESC, o.number DESC
"""
_COMMON = frozenset(
    "a about am an and any are as at be best buy can could do does for from get good have hello hi i in is it like "
    "looking me my need new of on one or please recommend sell show some something suggest than that the them there "
    "this to under us want we what which with would you your".split()
)


def search_products(
    query: str, question: str = "", batches: int = BATCHES, per_batch: int = PRODUCTS_PER_BATCH
) -> list[str]:
    """Products, best match first, as at most `batches` texts of at most `per_batch` lines.

    Those the customer's own words find come before those the query finds; sold-out ones come last in each. Never
    empty: when nothing matches, what is ordered most. Any text is a legal query.
    """
    wanted = batches * per_batch
    found = [*_matching(question, wanted), *_matching(query, wanted)] or _rows(_MOST_ORDERED, wanted)
    lines = list(dict.fromkeys(_product_line(*row) for row in found))[:wanted]
    return ["\n".join(lines[at : at + per_batch]) for at in range(0, len(lines), per_batch)]


def lookup_orders(customer: str, question: str = "") -> str:
    """The order of this customer that the question is about, as one line: the one whose number it names, else the one
    with most words in common, else the newest.

    Never an order of somebody else, whatever number the question names. One plain sentence when there is none.
    """
    orders = _rows(_ORDERS, customer.strip().encode(errors="replace").decode())
    if not orders:
        return "There are no orders for this customer."
    asked = set(_words(question)) - _COMMON
    return _order_line(*max(orders, key=lambda order: _likeness(asked, order))[:-1])  # the newest of equals


def find_rule(question: str) -> str:
    """The house rule that fits a complaint best (most of its words occur); the one on service when none does."""
    words = set(_words(question))
    rules = _rows("SELECT words, rule, topic = 'service' FROM house_rule ORDER BY topic")
    best = max(rules, key=lambda rule: (len(words & set(rule[0].split())), rule[2]))
    return str(best[1])


def _matching(text: str, most: int) -> list[tuple[Any, ...]]:
    match = " OR ".join(f'"{word}"' for word in _words(text) if word not in _COMMON)
    return _rows(_SEARCH, match, most) if match else []


def _likeness(asked: set[str], order: tuple[Any, ...]) -> tuple[bool, int]:
    number, _, name, _, status, remark, uses = order
    return str(number) in asked, len(asked & set(_words(f"{name} {status} {remark} {uses}")))


def _words(text: str) -> list[str]:
    """The first different words of a text, lower case; nothing else of it reaches the search."""
    return list(dict.fromkeys(re.findall(r"[^\W_]+", text.lower())))[:QUERY_WORDS]


def _product_line(name: str, details: str, price_cents: int, stock: int) -> str:
    sold_out = "" if stock else ", sold out"
    return f"{name}: {details}, {price_cents / 100:.2f} EUR{sold_out}"


def _order_line(number: int, quantity: int, name: str, placed_on: str, status: str, remark: str) -> str:
    return f"Order {number} of {placed_on}: {quantity} x {name}, {status}, {remark}."


def _rows(query: str, *values: str | int) -> list[tuple[Any, ...]]:
    shop, lock = _shop()
    with lock:
        return shop.execute(query, values).fetchall()


@cache
def _shop() -> tuple[sqlite3.Connection, Lock]:
    """One connection and the lock that guards it; the tables are small and stay in memory."""
    shop = sqlite3.connect(":memory:", check_same_thread=False)
    shop.executescript(_DATA.read_text(encoding="utf-8"))
    shop.executescript("""
        CREATE VIRTUAL TABLE product_text USING fts5(name, category, details, uses, tokenize = 'porter unicode61');
        INSERT INTO product_text (rowid, name, category, details, uses)
            SELECT id, name, category, details, uses FROM product;
    """)
    return shop, Lock()
