"""The one registry of benchmark cases."""

from . import (
    attention,
    beams,
    collisions,
    head,
    lookup,
    published,
    respond,
    text_table,
    training,
    trie,
)
from .case import Case

# A GPU's time can end before all cases have run: those that matter least come last.
CASES: list[Case] = [
    *trie.CASES,
    *text_table.CASES,
    *attention.CASES,
    *head.CASES,
    *beams.CASES,
    *respond.CASES,
    *published.CASES,
    *training.CASES,
    *lookup.CASES,
    *collisions.CASES,
]

__all__ = ["CASES", "Case"]
