"""The one registry of benchmark cases."""

from . import beams, lookup, training, trie
from .case import Case

# What may go unseen stands last: a GPU's time can end before.
CASES: list[Case] = [*trie.CASES, *beams.CASES, *training.CASES, *lookup.CASES]

__all__ = ["CASES", "Case"]
