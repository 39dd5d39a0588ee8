"""The one registry of benchmark cases."""

from . import beams, lookup, trie
from .case import Case

CASES: list[Case] = [*trie.CASES, *beams.CASES, *lookup.CASES]

__all__ = ["CASES", "Case"]
