"""The one registry of benchmark cases."""

from . import beams, lookup, training, trie
from .case import Case

# What takes longest stands last: a GPU's time can end before.
CASES: list[Case] = [*trie.CASES, *lookup.CASES, *training.CASES, *beams.CASES]

__all__ = ["CASES", "Case"]
