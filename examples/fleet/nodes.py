"""What the workflows of the emulated fleets look up: more of it than the small real model of the demo could read.

The searches are those of `rag.nodes` and `shop.nodes`; only how much is taken differs.
"""

from __future__ import annotations

from rag.nodes import retrieve as passages_of
from shop.nodes import search_products

PASSAGES = 12
WORDS_PER_PASSAGE = 64  # with the question about 1,200 tokens
PRODUCTS = 40  # about 900 tokens


def retrieve(question: str) -> list[str]:
    """At most PASSAGES long passages for a question, best first."""
    return passages_of(question, PASSAGES, WORDS_PER_PASSAGE)


def search(query: str, question: str) -> str:
    """At most PRODUCTS products, best match first, one a line."""
    return "\n".join(search_products(query, question, 1, PRODUCTS))
