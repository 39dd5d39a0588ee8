"""Semantic-ID tries: the constraint index, its vocabulary, its filters."""

from .item_filter import ItemFilter
from .sid_trie import SidTrie
from .sid_vocab import SidVocab

__all__ = ["ItemFilter", "SidTrie", "SidVocab"]
