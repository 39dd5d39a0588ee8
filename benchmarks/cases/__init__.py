"""The one registry of benchmark cases."""

from . import beams, lookup, training, trie
from .case import Case

CASES: list[Case] = [*trie.CASES, *beams.CASES, *lookup.CASES, *training.CASES]

__all__ = ["CASES", "Case"]
